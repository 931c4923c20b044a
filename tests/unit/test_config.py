"""Configuration: files are read back as written, misspelt names are refused, size < file <
flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_support import job

from ebmvk.config.checks import check, check_resume
from ebmvk.config.schema import SECTION_OF, Config, flag, items, replace
from ebmvk.config.toml import from_toml, read_toml, write_toml
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
def test_reading_a_written_toml_gives_the_same_configuration(
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


def test_a_key_outside_its_section_is_refused_and_the_section_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('dataset = "a.txt"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'dataset' isn't in its section(.|\n)*a line \[data\]"):
        read_toml(path)


def test_an_unknown_key_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
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


def test_resuming_may_change_only_the_settings_marked_for_it() -> None:
    free = {"learning_rate", "batch_size", "steps", "epochs", "device", "log_every", "eval_every", "save_every"}
    free |= {"dataset", "raw"}  # a digest proves that it is the same text
    fixed = {"latent_dim", "n_layers", "vocab_size", "seq_length", "seed", "lambda_denoise", "dropout"}
    other = {"device": "cpu", "dataset": "other"}
    for name in free | fixed:
        value = {n: v for _, n, v in items(Config())}[name]
        changed = replace(Config(), {name: other[name] if name in other else (value or 0) + 1})
        if name in free:
            check_resume(Config(), changed)
        else:
            with pytest.raises(ConfigError, match=name):
                check_resume(Config(), changed)


def test_a_byte_order_mark_is_skipped_and_patterns_must_be_strings(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("\ufeff[data]\ninclude = ['*.py', 'src/*']\n", encoding="utf-8")
    assert read_toml(path) == {"include": ("*.py", "src/*")}
    path.write_text("[data]\ninclude = ['*.py', 3]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.include .* not an array of strings"):
        read_toml(path)


def test_include_may_be_repeated_and_flags_replace_the_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a.py", "b.c", "c.h"):
        (tmp_path / "data" / name).write_text("some text\n" * 20, encoding="utf-8")
    path = tmp_path / "c.toml"
    path.write_text("[data]\ninclude = ['*.h']\n", encoding="utf-8")
    own = ("--dataset", str(tmp_path / "data"), "--config", str(path))
    assert job(*own).config.data.include == ("*.h",)
    for flags in (("--include", "*.py", "*.c"), ("--include", "*.py", "--include=*.c")):
        assert job(*own, *flags).config.data.include == ("*.py", "*.c")


def test_flags_win_over_the_file_and_the_file_over_the_size(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[training]\nsteps = 7\nbatch_size = 3\n[run]\nsize = 'tiny'\n", encoding="utf-8")
    found = job("--config", str(path), "--batch-size", "5", "--lr", "0.5", "--no-use-geometric")
    config, sources = found.config, found.sources
    assert (config.training.steps, sources["steps"]) == (7, "file")
    assert (config.training.batch_size, sources["batch_size"]) == (5, "flag")
    assert (config.training.learning_rate, sources["learning_rate"]) == (0.5, "flag")
    assert (config.model.use_geometric, sources["use_geometric"]) == (False, "flag")
    assert (config.model.latent_dim, sources["latent_dim"]) == (256, "size")
    assert sources["vocab_size"] == "derived"
    assert config.run.size == "tiny"


def test_steps_cancel_the_epochs_of_a_size() -> None:
    assert job("--size", "base").config.training.epochs is not None
    assert job("--size", "base", "--steps", "5").config.training.epochs is None


def test_the_strongest_level_that_sets_steps_or_epochs_wins(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    preset = ("--model", "minillm", "--preset", "small", "--dataset", "builtin")
    for said, flags, epochs in (
        ("steps = 7", (), None),
        ("epochs = 2", (), 2.0),
        ("steps = 7\nepochs = 2", (), 2.0),  # a run's own file has both
        ("steps = 7", ("--epochs", "3"), 3.0),
        ("epochs = 2", ("--steps", "9"), None),
    ):
        path.write_text(f"[training]\n{said}\n", encoding="utf-8")
        assert job(*preset, "--config", str(path), *flags).config.training.epochs == epochs
    assert job(*preset).config.training.epochs == 30.0


@pytest.mark.parametrize(
    ("said", "ffn_dim", "source"),
    [
        ("--size nano", 256, "size"),
        ("--size nano --latent-dim 96", 384, "derived"),
        ("--size nano --latent-dim 96 --ffn-dim 100", 100, "flag"),
        ("--size nano --ffn-dim 100", 100, "flag"),
        ("--model minillm --config custom --n-embd 384", 1536, "derived"),
        ("--model minillm --preset small", 1152, "preset"),
        ("--model minillm --preset small --n-embd 24", 96, "derived"),
        ("--config both.toml", 50, "file"),
        ("--config both.toml --latent-dim 64", 256, "derived"),
        ("--config width.toml", 128, "derived"),
        ("--config width.toml --ffn-dim 60", 60, "flag"),
        ("--model minillm --preset small --config width.toml", 128, "derived"),
    ],
)
def test_ffn_dim_follows_latent_dim_unless_it_is_set_too(
    said: str, ffn_dim: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ffn_dim is four times latent_dim, unless it is set on the same level or a stronger one."""
    monkeypatch.chdir(tmp_path)
    Path("both.toml").write_text("[model]\nlatent_dim = 32\nffn_dim = 50\nn_heads = 2\n", encoding="utf-8")
    Path("width.toml").write_text("[model]\nlatent_dim = 32\nn_heads = 2\n", encoding="utf-8")
    found = job(*said.split(), "--dataset", "builtin")
    assert (found.config.model.ffn_dim, found.sources["ffn_dim"]) == (ffn_dim, source)


@pytest.mark.parametrize("how", ["", "--size nano", "--preset small", "--config large", "--config custom"])
def test_a_mini_llm_never_reads_across_documents(how: str) -> None:
    found = job("--model", "minillm", *how.split(), "--dataset", "builtin", "--stride", "16")
    data, training, splats = found.config.data, found.config.training, found.config.splats
    assert (data.windows, data.stride, training.patience, splats.enable_soc) == ("document", 16, 5, False)
    assert {found.sources[name] for name in ("windows", "patience", "enable_soc")} <= {"model", "preset"}


def test_files_and_flags_override_the_defaults_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[data]\nwindows = 'stream'\n", encoding="utf-8")
    flags = ("--model", "minillm", "--dataset", "builtin", "--patience", "0", "--enable-soc")
    found = job(*flags, "--config", str(tmp_path / "c.toml"))
    assert (found.config.data.windows, found.sources["windows"]) == ("stream", "file")
    assert (found.config.training.patience, found.config.splats.enable_soc) == (0, True)
    (tmp_path / "c.toml").write_text("[model]\nmodel = 'minillm'\n", encoding="utf-8")
    assert job("--config", str(tmp_path / "c.toml")).config.data.windows == "document"
    for model in ("ebm", "plain"):
        assert job("--model", model).config.splats.enable_soc
    for model in ("tinygpt", "infinito"):
        assert not job("--model", model).config.splats.enable_soc


def test_an_older_run_resumes_with_its_own_settings(tmp_path: Path) -> None:
    old = replace(
        Config(), {"model": "minillm", "latent_dim": 96, "ffn_dim": 1024, "windows": "stream", "enable_soc": True}
    )
    (tmp_path / "config.toml").write_text(write_toml(old), encoding="utf-8")
    found = job("--resume", str(tmp_path), "--lr", "0.5")
    assert found.config == replace(old, {"learning_rate": 0.5})


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("--config small", "use --model minillm --config small, or --preset small"),
        ("--config custom", "--model minillm --config custom"),
        ("--model tinygpt --config large", "--preset large"),
        ("--model minillm --config tiny", "use --config small, medium, large"),
        ("--model minillm --preset nano", "use --preset small, medium, large"),
        ("--model infinito --preset nano", "use --preset small, medium, large"),
        ("--model tinygpt --preset huge", "use --preset nano, small, medium, large"),
        ("--preset small", "--size nano, tiny, small, base; presets belong to --model tinygpt, minillm, infinito"),
    ],
)
def test_an_unknown_preset_is_refused_and_the_known_ones_named(
    said: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said.rpartition("--")[2]) as caught:
        job(*said.split())
    assert caught.value.hint
    assert hint in caught.value.hint
