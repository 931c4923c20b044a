"""Settings that commands show: the defaults of a run, where values came from, and which differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ebmvk.cli.train import _defaults, _of_text, asked
from ebmvk.config.schema import items
from ebmvk.config.toml import sources_in

from .conftest import Command, rows

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--size", "nano"),
        ("--model", "tinygpt", "--size", "small"),
        ("--config", "own.toml"),
        ("--dataset", "code", "--include", "*.c", "*.py"),
        ("--dataset", "rows.txt", "--raw"),
    ],
    ids=str,
)
def test_help_shows_the_defaults_that_a_run_has(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ebmvk: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("[data]\nseq_length = 99\n", encoding="utf-8")
    Path("code").mkdir()
    Path("code/a.c").write_text("int a;\n" * 1000, encoding="utf-8")
    Path("code/b.py").write_text("a = 1\n" * 1000, encoding="utf-8")
    Path("rows.txt").write_text('{"text": "a b"}\n' * 1000, encoding="utf-8")
    base, levels = _defaults(flags)
    shown = {name: value for _, name, value in items(_of_text(base, levels, flags))}
    taken = {name: value for _, name, value in items(asked(flags)[1].config)}
    # The processor decides on the precision, which --help does not ask; warm-up is cut when a run
    # begins.
    given = {"model", "dataset", "include", "raw"}
    differ = {name for name, value in taken.items() if shown[name] != value} - {"precision", "warmup_steps", *given}
    assert differ == set()
    told = " ".join(ebmvk("train", *flags, "--help-all").out.split())
    for name in ("steps", "dropout"):
        assert re.search(rf" --{name} .*?\(default: (.*?)\)", told)[1] == str(taken[name])  # type: ignore[index]
    assert "(default: what this processor is faster in)" in told


def test_a_resumed_run_remembers_where_its_values_came_from(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "--lr", 0.003, "--stop-after", 1, "--quiet", "--sample-tokens", 0)
    before = sources_in(run / "config.toml")
    assert (before["learning_rate"], before["steps"], before["grad_clip"]) == ("flag", "file", "size")
    assert before["keep_last"] == "default"
    train(run, "--resume", "--steps", 9, "--stop-after", 1, "--quiet")
    assert sources_in(run / "config.toml") == before | {"steps": "flag"}


@pytest.mark.parametrize("model", ["ebm", "minillm", pytest.param("plain", marks=pytest.mark.slow)])
def test_verbose_lists_the_settings_that_are_not_the_sizes_own(model: str, train: Command, tmp_path: Path) -> None:
    flags: tuple[Any, ...] = ("--model", model, "--lr", 0.003, "--stop-after", 1, "--no-enable-soc")
    assert "settings    --model" not in train(tmp_path / "short", *flags).out
    out = train(tmp_path / "run", *flags, "--verbose").out
    lines = out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("settings "))
    assert lines[first] == f"settings    --model {model} --size tiny"
    said = [line for line in lines[first + 1 :] if line.startswith("  ")][:3]
    assert len(said) == 3
    assert said[0].split() == ["by", "flags", "learning_rate", "0.003,", "enable_soc", "False"]
    assert "grad_clip" not in out
    assert "memory_slots" not in out
    assert ("langevin_steps 8" in out, "hidden_dim 32" in out, "context_local 4" in out) == (
        (model == "ebm"), (model == "ebm"), (model != "minillm")
    )  # fmt: skip


@pytest.mark.parametrize("model", ["ebm", pytest.param("plain", marks=pytest.mark.slow)])
def test_a_learning_rate_that_makes_the_run_diverge_is_named(
    model: str, ebmvk: Command, tiny: Path, text: Path, tmp_path: Path
) -> None:
    """In an alert and in the report. The engine's refusal of the values comes after the cause."""
    run = tmp_path / "run"
    flags = ("--model", model, "--lr", 1e3, "--steps", 30, "--soc-check-interval", 10, "--precision", "float32")
    said = ebmvk("train", "--run-dir", run, "--config", tiny, "--dataset", text, "--device", "cpu", *flags)
    assert "--lr 1000 is 2.5e+05 times that of --size tiny" in said.out + said.err
    assert "--lr 0.004" in said.out + said.err
    assert "find what made" not in said.err
    assert rows(run, "alert")
    assert said.status == 0 or "training diverged (" in said.err or "is not finite" in said.err


def test_advice_of_a_run_is_in_its_report(train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmvk.monitoring.advice.HIGH_PERPLEXITY", 1.0)
    run = tmp_path / "run"
    out = train(run, "--steps", 2, "--sample-tokens", 0, "--no-enable-soc").out
    lines = [line.removeprefix("advice      ") for line in out.splitlines() if line.startswith("advice ")]
    assert lines[0].startswith("perplexity ")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "What to do next" in page
    text = re.sub("<[^>]*>", "", page)  # terms are links
    assert all(line in text for line in lines)
