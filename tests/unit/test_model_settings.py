"""Which model has which setting: the registry says what the classes read, and a foreign setting is
refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_support import SMALL, VOCABULARY, tokens
from train_support import job

from ebmvk.config.checks import check_owned
from ebmvk.config.models import MODELS, WINDOWS, owners
from ebmvk.config.schema import SECTION_OF, Config, ModelConfig, Source, concerns, flag, items, replace
from ebmvk.config.sizes import PRESETS, RECIPES, recipe
from ebmvk.config.toml import write_toml
from ebmvk.engine.reference import Reference
from ebmvk.errors import ConfigError
from ebmvk.model.language import LanguageModel
from ebmvk.objective import losses

OTHER: dict[type, Any] = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value / 2 + 0.01,
}
"""Another value than the default, by type."""
SWITCHED: dict[str, list[dict[str, Any]]] = {
    "ebm": [{}, {"decoder": "transformer"}],
    **{model: [{}, {"use_moe": True}] for model in owners("use_moe")},
}
"""Settings under which a model reads everything it has."""


def another(name: str) -> Any:
    """A value of a setting that isn't its default or that of a size."""
    default = next(value for _, key, value in items(Config()) if key == name)
    usual = {default, *(size[name] for size in PRESETS.values() if name in size)}
    value = default
    while value in usual:
        value = OTHER.get(type(value), lambda _: 77)(value)
    return value


@pytest.mark.parametrize("name", MODELS)
def test_an_entry_names_a_language_model_and_settings_that_exist(name: str) -> None:
    entry = MODELS[name]
    assert issubclass(entry.load(), LanguageModel)
    assert set(entry.settings) | set(entry.defaults) <= set(SECTION_OF)
    for only in entry.only:
        assert set(only.settings) <= set(entry.settings)
        assert all(entry.has(other) for other in only.when)


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_is_used_or_refused_with_the_models_that_have_it(model: str) -> None:
    config = replace(Config(), {"model": model})
    for name, section in SECTION_OF.items():
        given = {name: another(name)}
        if MODELS[model].has(name):
            check_owned(config, [("flag", given)])
            continue
        assert not concerns(config, section, name)
        keys: dict[Source, str] = {"flag": flag(name), "file": f"{section}.{name} = ", "preset": flag(name)}
        for source, key in keys.items():
            with pytest.raises(ConfigError) as caught:
                check_owned(config, [(source, given)])
            assert key in caught.value.what.replace("--no-", "--")
            assert f"with --model {model}" in caught.value.what
            assert name in WINDOWS or str(caught.value.why) == f"it belongs to --model {' or '.join(owners(name))}"


class Watched(ModelConfig):
    """Settings of a model that remember which of them were read."""

    seen: set[str] = set()  # noqa: RUF012  # one for all: torch keeps the settings in many modules

    def __getattribute__(self, name: str) -> Any:
        Watched.seen.add(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_reads_the_settings_that_it_has_and_no_others(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is built and trained. Settings of the loss are read by name in the same way."""
    monkeypatch.setattr("ebmvk.model.ebm.check_model", lambda _: None)  # it reads all of them
    of_models = {entry.name for entry in dataclasses.fields(ModelConfig) if owners(entry.name)}
    of_losses = {"lambda_denoise", "lambda_spread", "moe_balance", "moe_z", "lambda_phi"}
    Watched.seen, parts = set(), set()
    for switches in SWITCHED.get(model, [{}]):
        config = Watched(**{**dataclasses.asdict(SMALL), "model": model, **switches})
        net = MODELS[model].load()(config, VOCABULARY)
        found = losses.objective(
            net.train(), tokens(9), Reference(), replace(Config(model=config), {"knn_k": 8}), seed=1, step=0
        )
        parts |= set(found.parts)
    windows = set(MODELS["plain"].settings) if MODELS[model].whole_sequence else set()
    assert Watched.seen & of_models - windows == {name for name in of_models if MODELS[model].has(name)} - windows
    named = {name for name in of_losses if name in parts or name.removeprefix("lambda_") in parts}
    assert named == {name for name in of_losses if MODELS[model].has(name)}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_has_settings_of_its_model_only(path: Path) -> None:
    model, _, name = path.stem.partition("-")
    check_owned(replace(Config(), {"model": model}), [("preset", recipe(model, name))])


@pytest.mark.parametrize(
    ("said", "what", "why"),
    [
        (
            "--model tinygpt --memory-slots 64",
            "--memory-slots 64 doesn't work with --model tinygpt",
            "--model infinito",
        ),
        ("--model ebm --use-moe", "--use-moe doesn't work with --model ebm", "--model tinygpt or minillm"),
        ("--model plain --no-use-splat", "--no-use-splat doesn't work with --model plain", "--model ebm"),
        ("--model plain --noise-levels 1 2", "--noise-levels 1.0 2.0 doesn't work with --model plain", "--model ebm"),
        ("--model infinito --langevin-steps 9", "--langevin-steps 9 doesn't work with --model infinito", "--model ebm"),
        (
            "--model tinygpt --context-local 5",
            "--context-local 5 doesn't work with --model tinygpt",
            "whole training window",
        ),
        (
            "--model tinygpt --config c.toml",
            "model.memory_slots = 64 doesn't work with --model tinygpt",
            "--model infinito",
        ),
    ],
)
def test_a_foreign_setting_is_refused_before_anything_is_read(
    said: str, what: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text("[model]\nmemory_slots = 64\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        job(*said.split(), "--dataset", "no-such-text")
    assert caught.value.what == what
    assert why in str(caught.value.why)


def test_the_file_of_a_run_starts_another_model(tmp_path: Path) -> None:
    """The file has all settings. Those that the other model doesn't have belong to the run's own
    model."""
    path = tmp_path / "config.toml"
    path.write_text(write_toml(replace(Config(), {"langevin_steps": 19, "hidden_dim": 33})), encoding="utf-8")
    for model in MODELS:
        found = job("--config", str(path), "--model", model, "--dataset", "builtin").config
        assert (found.model.model, found.langevin.langevin_steps) == (model, 19)


def test_the_file_of_a_run_may_be_used_with_a_shorter_sequence(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    windows = dict.fromkeys(WINDOWS, 200)
    path.write_text(write_toml(replace(Config(), {"model": "tinygpt", "seq_length": 200, **windows})), encoding="utf-8")
    found = job("--config", str(path), "--seq-length", "100", "--dataset", "builtin").config
    assert found.model.context_local == 100


def test_an_older_run_with_a_setting_of_another_model_resumes(tmp_path: Path) -> None:
    old = replace(Config(), {"model": "tinygpt", "memory_slots": 64, "use_memory": False, "langevin_steps": 19})
    (tmp_path / "config.toml").write_text(write_toml(old), encoding="utf-8")
    assert job("--resume", str(tmp_path), "--lr", "0.5").config == replace(old, {"learning_rate": 0.5})
    with pytest.raises(ConfigError, match="--langevin-steps 20 doesn't work with --model tinygpt"):
        job("--resume", str(tmp_path), "--langevin-steps", "20")


def test_windows_may_be_given_if_they_are_the_whole_sequence() -> None:
    flags = "--model tinygpt --seq-length 32 --context-local 32 --dataset builtin"
    assert job(*flags.split()).config.model.context_medium == 32


def test_torch_is_not_needed_to_know_the_models() -> None:
    code = "import sys, ebmvk.config.checks; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
