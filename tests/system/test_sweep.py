"""Sweeps: each run once, what was stopped goes on, several at once, verdicts, and a search that remembers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ebmvk import train
from ebmvk.errors import ConfigError, RunFailed
from ebmvk.training import runs, sweep
from ebmvk.training.runs import PlannedRun

from .conftest import Command


def row(nats: float, train_ppl: float = 20.0) -> dict[str, Any]:
    return {"nats_per_token": nats, "ppl": 2.0**nats, "train_ppl": train_ppl, "minutes": 1.0}


@pytest.mark.parametrize("name", sweep.TABLES)
def test_experiments_are_valid_training_flags(name: str) -> None:
    for flags in sweep.TABLES[name].values():
        assert {flag for flag in flags.split() if flag.startswith("--")} <= set(train.FLAGS)


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": row(3.0), "b": row(2.9), "c": row(3.004), "d": row(3.2, train_ppl=5.0)}
    monkeypatch.setattr(sweep, "figures", lambda run: found[run.folder.name])
    monkeypatch.setattr(PlannedRun, "finished", lambda self: self.folder.name in found)
    said = {r["experiment"]: r["verdict"] for r in sweep.table({n: PlannedRun(Path(n), (), {}) for n in "abcde"})}
    assert said == {
        "a": "the base",
        "b": "better than the first (-0.100 nats); best",
        "c": "no different than the first (+0.004 nats)",
        "d": "worse than the first (+0.200 nats); overfits: more dropout or fewer epochs",
    }


def test_axes() -> None:
    assert sweep.Axis.parse("--learning-rate=1e-4:1e-2") == sweep.Axis("learning_rate", 1e-4, 1e-2)
    for text in ("learning_rate", "learning_rate=1", "learning_rate=2:1", "learning_rate=0:1", "learning_rate=a:b"):
        with pytest.raises(ConfigError, match="NAME=LOW:HIGH"):
            sweep.Axis.parse(text)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fails(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(runs.subprocess, "run", fails)
    run = PlannedRun(tmp_path / "plain-1", ("--size", "nano"), {"commit": "of today"})
    for resumed in (False, False, True):  # without a checkpoint there is nothing to go on from
        with pytest.raises(RunFailed, match="status 1"):
            run.train(None)
        assert ("--resume" in commands[-1], "nano" in commands[-1]) == (resumed, not resumed)
        (run.folder / "checkpoints" / ("step-3" if len(commands) == 2 else "")).mkdir(parents=True, exist_ok=True)
    assert run.started_with() == {"arguments": ["--size", "nano"], "commit": "of today"}
    with pytest.raises(ConfigError, match="was trained with --size nano"):
        PlannedRun(run.folder, ("--size", "tiny"), {}).finished()
    (tmp_path / "other-1").mkdir()
    with pytest.raises(ConfigError, match="not made by this command"):
        PlannedRun(tmp_path / "other-1", (), {}).finished()


def test_a_table_is_trained_once(ebmvk: Command, text: Path, tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    flags = f"--model infinito --dataset {text} --config {tiny} --steps 4 --sample-tokens 0"
    monkeypatch.setitem(sweep.TABLES, "infinito", {"1": "--lr 1e-3", "2": "--lr 1e-4 --lambda-phi 0.3"})
    at = ("--folder", tmp_path, "--flags", flags, "--jobs", 2, "--threads", 1)
    said = ebmvk("sweep", *at, "--json")
    assert said.status == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [r["experiment"] for r in rows] == ["1", "2"]
    assert all(0 < r["phi"] < 1 for r in rows)
    assert sum("best" in r["verdict"] for r in rows) == 1

    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    again = ebmvk("sweep", *at)
    assert again.status == 0
    assert again.err.count("done before") == 2
    assert again.out.splitlines()[0].split()[:3] == ["experiment", "val", "ppl"]


def test_a_search_remembers_its_trials(
    ebmvk: Command, text: Path, tiny: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    flags = f"--model plain --dataset {text} --config {tiny} --steps 2 --sample-tokens 0"
    at = ("--folder", tmp_path, "--flags", flags, "--threads", 1, "--search", "learning_rate=1e-4:1e-2", "--json")
    rows = json.loads(ebmvk("sweep", *at, "--trials", 2).out)["rows"]
    assert len(rows) == 2
    assert rows[0]["nats_per_token"] <= rows[1]["nats_per_token"]
    assert all(1e-4 <= r["values"]["learning_rate"] <= 1e-2 for r in rows)
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    assert json.loads(ebmvk("sweep", *at, "--trials", 2).out)["rows"] == rows


def test_refusals(ebmvk: Command, tmp_path: Path) -> None:
    for args, said in (
        (("--table", "magic"), "--table magic"),
        (("--flags", "--lrr 3"), "unknown flag --lrr"),
        (("--trials", 1, "--search", "magic=1:2"), "--search magic"),
        (("--jobs", 0), "--jobs 0"),
    ):
        found = ebmvk("sweep", "--folder", tmp_path, *args)
        assert found.status == 2
        assert said in found.err
