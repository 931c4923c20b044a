"""Configuration: what is written comes back, what is misspelt is refused, precedence is size < file < flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk import train
from ebmvk.config import (
    SECTION_OF,
    Config,
    check,
    check_resume,
    flag,
    from_toml,
    items,
    read_toml,
    replace,
    write_toml,
)
from ebmvk.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def test_field_names_are_unique_over_all_sections() -> None:
    """Flags are flat, so two sections can't share a name."""
    names = [name for _, name, _ in items(Config())]
    assert len(names) == len(set(names)) == len(SECTION_OF)


@given(
    dataset=TEXT,
    folder=st.none() | TEXT.map(Path),
    rate=st.floats(1e-12, 1e6),
    steps=st.integers(1, 2**62),
    switch=st.booleans(),
    kappa=st.none() | st.floats(1e-6, 1e6),
)
def test_toml_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    dataset: str,
    folder: Path | None,
    rate: float,
    steps: int,
    switch: bool,
    kappa: float | None,
) -> None:
    values = {"dataset": dataset, "data_dir": folder, "learning_rate": rate, "steps": steps, "kappa": kappa}
    config = replace(Config(), {**values, "deterministic": switch})
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(write_toml(config, {"steps": "flag"}), encoding="utf-8", newline="")
    assert from_toml(path) == config


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[model]\nlatent_dimm = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key 'model.latent_dimm'(.|\n)*write 'model.latent_dim'"):
        read_toml(path)


def test_every_bound_is_enforced_and_names_its_flag() -> None:
    tried = 0
    for section in dataclasses.fields(Config):
        for entry in dataclasses.fields(getattr(Config(), section.name)):
            for bound, beyond in (("low", -1), ("high", 1)):
                limit = entry.metadata.get(bound)
                if limit is not None:
                    tried += 1
                    with pytest.raises(ConfigError, match=flag(entry.name)):
                        check(replace(Config(), {entry.name: limit + beyond}))
    assert tried > 30


def test_resuming_may_change_exactly_what_was_promised() -> None:
    free = {"learning_rate", "batch_size", "steps", "epochs", "device", "log_every", "eval_every", "save_every"}
    fixed = {"latent_dim", "n_layers", "vocab_size", "dataset", "seq_length", "seed", "lambda_denoise", "dropout"}
    other = {"device": "cpu", "dataset": "other"}
    for name in free | fixed:
        value = {n: v for _, n, v in items(Config())}[name]
        changed = replace(Config(), {name: other[name] if name in other else (value or 0) + 1})
        if name in free:
            check_resume(Config(), changed)
        else:
            with pytest.raises(ConfigError, match=name):
                check_resume(Config(), changed)


def _job(*args: str) -> object:
    """What `ebmvk train` would do with these flags."""
    base, file = train._defaults(list(args))
    settings = train.cli.parse(
        train.TrainCommand, args, command="train", known=train.FLAGS, default=train.TrainCommand(**vars(base))
    )
    return train._new(settings, file, train._given(args, settings.settings))


def test_flags_win_over_the_file_and_the_file_over_the_size(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[training]\nsteps = 7\nbatch_size = 3\n[run]\nsize = 'tiny'\n", encoding="utf-8")
    job = _job("--config", str(path), "--batch-size", "5", "--lr", "0.5", "--no-use-geometric")
    config, sources = job.config, job.sources  # type: ignore[attr-defined]
    assert (config.training.steps, sources["steps"]) == (7, "file")
    assert (config.training.batch_size, sources["batch_size"]) == (5, "flag")
    assert (config.training.learning_rate, sources["learning_rate"]) == (0.5, "flag")
    assert (config.model.use_geometric, sources["use_geometric"]) == (False, "flag")
    assert (config.model.latent_dim, sources["latent_dim"]) == (256, "size")
    assert sources["vocab_size"] == "derived"
    assert config.run.size == "tiny"


def test_steps_take_back_the_epochs_of_a_size() -> None:
    assert _job("--size", "base").config.training.epochs is not None  # type: ignore[attr-defined]
    assert _job("--size", "base", "--steps", "5").config.training.epochs is None  # type: ignore[attr-defined]
