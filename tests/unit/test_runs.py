"""The newest run as the default of --checkpoint, and checks that come before torch is imported."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebmvk.cli import parsing
from ebmvk.cli.evaluate import FLAGS, EvaluateCommand
from ebmvk.errors import ConfigError
from ebmvk.runs import layout as runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three runs. The last but one is the newest with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("ended-early", "second", "first")):
        run = tmp_path / "runs" / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.toml").write_text("")
        os.utime(run / "config.toml", (1_000_000 - age, 1_000_000 - age))
        if name != "ended-early":
            (run / "checkpoints" / "step-4").mkdir()
    return tmp_path


def _parsed(*args: str) -> EvaluateCommand:
    return parsing.parse(EvaluateCommand, args, command="evaluate", known=FLAGS)


def test_the_newest_run_with_a_checkpoint_is_the_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _parsed().checkpoint == Path("runs/second")
    assert "runs/second: the newest run" in capsys.readouterr().err  # the choice is printed
    assert _parsed("--checkpoint", "runs/first").checkpoint == Path("runs/first")
    assert runs.newest("--resume") == Path("runs/ended-early")  # --resume also takes a run without a checkpoint


def test_a_folder_named_newest_is_taken_literally(folder: Path) -> None:
    (folder / "newest").mkdir()
    assert _parsed("--checkpoint", "newest").checkpoint == Path("newest")


def test_without_runs_the_error_names_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="--checkpoint: there is no run with a checkpoint in runs/") as caught:
        _parsed()
    assert caught.value.hint == "name one: --checkpoint PATH"


@pytest.mark.parametrize(
    "command",
    [
        "attention",
        "compare_decoding",
        "compose",
        "embed",
        "evaluate",
        "export",
        "generate",
        "harness",
        "memory",
        "neighbors",
    ],
)
def test_every_command_that_opens_a_run_defaults_to_the_newest(command: str) -> None:
    module = importlib.import_module(f"ebmvk.cli.{command}")
    kind = next(value for name, value in vars(module).items() if name.endswith("Command"))
    assert kind.checkpoint == Path(runs.NEWEST)


CHEAP = [
    ("train", "--latent-dim 65 --dataset builtin", "--latent-dim 65 is not a multiple"),
    ("train", "--run-dir runs/first --dataset builtin", "--run-dir runs/first already holds a run"),
    ("train", "--tokenizer none.json --dataset builtin", "--tokenizer none.json: no such file"),
    ("train", "--dataset none.txt", "--dataset none.txt: no such file"),
    ("train", "--stop-after 0", "--stop-after 0 is less than 1"),
    ("evaluate", "--limit 0", "--limit 0 is below 1"),
    ("evaluate", "--test-file a --dataset b", "--test-file a doesn't work with --dataset b"),
    ("evaluate", "--scramble-memory", "--scramble-memory needs a memory"),
    ("evaluate", "--memory both --split train", "--memory both doesn't work with --split train"),
    ("generate", "--max-tokens 0", "--max-tokens 0 is below 1"),
]


@pytest.mark.parametrize(("command", "args", "said"), CHEAP, ids=[f"{c} {a}" for c, a, _ in CHEAP])
def test_cheap_checks_run_before_torch_is_imported(command: str, args: str, said: str, folder: Path) -> None:
    code = (
        f"import sys; from ebmvk import {command} as command; status = command.main({args.split()!r});"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
