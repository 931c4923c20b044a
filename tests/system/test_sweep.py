"""Sweeps train each run once, continue stopped ones, run several at once, give verdicts, and
remember their search.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ebmvk.cli import train
from ebmvk.config.schema import SECTION_OF, flag, number
from ebmvk.errors import ConfigError, RunFailed, RunStopped
from ebmvk.runs.folder import read_config
from ebmvk.sweeps import experiments
from ebmvk.sweeps import planned as runs
from ebmvk.sweeps import search as sweep
from ebmvk.sweeps.planned import PlannedRun
from ebmvk.sweeps.search import flags_of

from .conftest import Command
from .conftest import rows as rows_of

pytestmark = pytest.mark.usefixtures("no_pictures")


def row(nats: float, train_ppl: float = 20.0) -> dict[str, Any]:
    long = {"validation_tokens": 10_000}
    return {"nats_per_token": nats, "ppl": 2.0**nats, "train_ppl": train_ppl, "minutes": 1.0, **long}


@pytest.mark.parametrize("name", experiments.TABLES)
def test_experiments_are_valid_training_flags(name: str) -> None:
    for flags in experiments.TABLES[name].values():
        assert {flag for flag in flags.split() if flag.startswith("--")} <= set(train.FLAGS)


def test_verdicts_compare_each_run_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": row(3.0), "b": row(2.9), "c": row(3.004), "d": row(3.2, train_ppl=5.0)}
    monkeypatch.setattr(experiments, "figures", lambda run: found[run.folder.name])
    monkeypatch.setattr(PlannedRun, "finished", lambda self: self.folder.name in found)
    said = {r["experiment"]: r["verdict"] for r in experiments.table({n: PlannedRun(Path(n), (), {}) for n in "abcde"})}
    assert said == {
        "a": "the base",
        "b": "better than the first (−0.100 nats); best",
        "c": "no different than the first (+0.004 nats)",
        "d": "worse than the first (+0.200 nats); overfits: more dropout or fewer epochs",
    }


def test_axes_are_parsed_and_checked() -> None:
    assert sweep.Axis.parse("--learning-rate=1e-4:1e-2") == sweep.Axis("learning_rate", 1e-4, 1e-2)
    for text in ("learning_rate", "learning_rate=1", "learning_rate=2:1", "learning_rate=0:1", "learning_rate=a:b"):
        with pytest.raises(ConfigError, match="NAME=LOW:HIGH"):
            sweep.Axis.parse(text)


def test_only_numbers_are_searched_and_whole_numbers_stay_whole() -> None:
    numbers = {name for name in SECTION_OF if number(name)}
    assert {name for name in numbers if number(name) is int} >= {"batch_size", "n_layers", "stride", "steps"}
    assert {name for name in numbers if number(name) is float} >= {"learning_rate", "dropout", "epochs", "kappa"}
    assert not numbers & {"device", "size", "use_moe", "noise_levels", "data_dir", "optimizer"}
    for name in SECTION_OF:
        if name not in numbers:
            with pytest.raises(ConfigError, match=f"--search {name}: it isn't a number"):
                sweep.Axis.parse(f"{name}=1:2")
        elif number(name) is int:
            assert flags_of({name: sweep.Axis.parse(f"{name}=4:1e6").high}) == (flag(name), "1000000")
            with pytest.raises(ConfigError, match="whole numbers"):
                sweep.Axis.parse(f"{name}=4.5:32")


# ---- searching, with training replaced by a formula ----------------------------------------------


Search = Callable[..., list[dict[str, Any]]]
AXES = ("learning_rate=1e-4:1e-2", "batch_size=4:32")


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """search(trials, name of the folder, how each run ends) -> rows, by trial."""
    pytest.importorskip("optuna", reason="optuna is not installed")

    def figures(run: PlannedRun) -> dict[str, Any]:
        rate, batch = (float(run.arguments[run.arguments.index(f) + 1]) for f in ("--learning-rate", "--batch-size"))
        return row(3 + abs(math.log(rate / 1e-3)) + abs(math.log(batch / 8)))

    monkeypatch.setattr(sweep, "figures", figures)
    monkeypatch.setattr(PlannedRun, "finished", lambda _: True)

    def call(
        trials: int,
        folder: str = "s",
        becomes: Iterable[BaseException | None] = (),
        jobs: int = 1,
        axes: tuple[str, ...] = AXES,
        check: Callable[[Sequence[str]], object] = lambda _: None,
    ) -> Any:
        ends = iter(becomes)

        def train_it(_: PlannedRun, __: int | None) -> None:
            if error := next(ends, None):
                raise error

        monkeypatch.setattr(PlannedRun, "train", train_it)
        parsed = [sweep.Axis.parse(text) for text in axes]
        how = {"trials": trials, "jobs": jobs, "threads": 1, "seed": 42, "say": lambda _: None, "check": check}
        rows = sweep.search(tmp_path / folder, parsed, ("--size", "nano"), **how)
        assert [r["nats_per_token"] for r in rows] == sorted(r["nats_per_token"] for r in rows)
        return sorted(rows, key=lambda r: int(r["experiment"].split()[1]))

    return call


def test_a_search_continues_where_it_stopped(search: Search) -> None:
    """One call and three calls choose the same points, all different, also after the first random
    ones.
    """
    whole = search(14, "whole")
    assert len({r["values"]["learning_rate"] for r in whole}) == 14
    assert all(isinstance(r["values"]["batch_size"], int) and 4 <= r["values"]["batch_size"] <= 32 for r in whole)
    for trials in (1, 2, 3, 12, 14):
        assert search(trials, "parts") == whole[:trials]
    assert search(3, "parts") == whole
    # It learns: what it chooses lies nearer to the best than what is drawn at random.
    nats = [r["nats_per_token"] for r in whole]
    assert min(nats[10:]) < sum(nats[:10]) / 10


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RunStopped("killed", hint="go on")])
def test_a_stopped_trial_is_continued(search: Search, stop: BaseException) -> None:
    whole = search(4, "whole")
    with pytest.raises(type(stop)):
        search(4, becomes=(None, stop))
    assert search(1) == whole[:1]
    assert search(4) == whole


def test_all_stopped_trials_are_continued(search: Search) -> None:
    stop = RunStopped("killed", hint="go on")
    with pytest.raises(RunStopped):
        search(4, becomes=(stop, stop, stop, stop), jobs=2)
    assert [r["experiment"] for r in search(4)] == ["trial 0", "trial 1", "trial 2", "trial 3"]


def test_a_point_that_failed_isnt_tried_again(search: Search) -> None:
    with pytest.raises(RunFailed):
        search(3, becomes=(None, RunFailed("diverged", hint="mend it")))
    assert [r["experiment"] for r in search(3)] == ["trial 0", "trial 2", "trial 3"]


def test_points_that_train_rejects_are_skipped(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(flags: Sequence[str]) -> None:
        if int(flags[flags.index("--batch-size") + 1]) % 4:
            raise ConfigError("not a multiple of 4", hint="give one")

    assert all(r["values"]["batch_size"] % 4 == 0 for r in search(5, check=check))
    monkeypatch.setattr(sweep, "MOST_REFUSED", 20)  # a thousand take long
    with pytest.raises(ConfigError, match="not a multiple of 4"):
        search(1, "never", axes=(AXES[0], "batch_size=9:11"), check=check)


def test_missing_trials_are_reported(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    search(2)
    monkeypatch.setattr(PlannedRun, "finished", lambda run: run.folder.name != "trial-1")
    with pytest.raises(ConfigError, match="trial-1: trial 1 of the search is missing"):
        search(3)


def test_a_folder_holds_one_search_whose_bounds_may_change(search: Search) -> None:
    search(1)
    for other in (AXES[:1], (*AXES, "dropout=0.1:0.3")):
        with pytest.raises(ConfigError, match="holds a search of learning_rate, batch_size"):
            search(2, axes=other)
    narrow = ("learning_rate=1e-3:1.1e-3", "batch_size=8:9")
    assert 1e-3 <= search(2, axes=narrow)[1]["values"]["learning_rate"] <= 1.1e-3


@pytest.mark.parametrize(("status", "kind"), [(-9, RunStopped), (130, RunStopped), (2, RunFailed), (1, RunFailed)])
def test_a_killed_run_counts_as_stopped(
    status: int, kind: type[RunFailed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, status))
    with pytest.raises(RunFailed) as error:
        PlannedRun(tmp_path / "run", (), {}).train(None)
    assert type(error.value) is kind


def test_interrupting_a_table_starts_no_further_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = []

    def interrupted(run: PlannedRun, _: int | None) -> None:
        begun.append(run.folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(PlannedRun, "train", interrupted)
    planned = {name: PlannedRun(tmp_path / name, (), {}) for name in "abcdefgh"}
    with pytest.raises(KeyboardInterrupt):
        experiments.train_all(planned, 1, None, lambda _: None)
    assert begun == ["a"]


# ---- runs that were stopped, tables, and a search from end to end --------------------------------


def test_a_stopped_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    flags = f"--model infinito --dataset {text} --config {tiny} --steps 4 --accumulation-steps 2 --sample-tokens 0"
    monkeypatch.setitem(experiments.TABLES, "infinito", {"1": "--lr 1e-3", "2": "--lr 1e-4 --lambda-phi 0.3"})
    at = ("--folder", tmp_path, "--flags", flags, "--jobs", 2, "--threads", 1)
    said = ebmvk("sweep", *at, "--json")
    assert said.status == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [r["experiment"] for r in rows] == ["1", "2"]
    assert [(r["learning_rate"], r["batch_size"], r["lambda_phi"]) for r in rows] == [(1e-3, 4, 0.1), (1e-4, 4, 0.3)]
    for r in rows:
        assert 0 < r["phi"] < 1
        assert r["phi_loss"] == pytest.approx(r["lambda_phi"] * (1 - r["phi"]))
        run = read_config(tmp_path / "infinito" / r["experiment"])
        positions = 2 * 4 * run.data.seq_length  # of both batches: PHI is of a step
        assert r["phi_chance"] == pytest.approx((min(16, run.model.latent_dim) - 1) / (positions - 1))
        parts = [step["parts"]["phi"] for step in rows_of(tmp_path / "infinito" / r["experiment"], "step")]
        assert r["phi"] == pytest.approx(1 - sum(parts) / len(parts))
    assert all("too short to compare" in r["verdict"] for r in rows)

    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    again = ebmvk("sweep", *at)
    assert again.status == 0
    assert again.err.count("done before") == 2
    head, *lines, legend = again.out.splitlines()
    assert re.split("  +", head) == [
        "exp", "lr", "batch", "λ", "val PPL", "train PPL", "PHI", "by chance", "ΔPHI loss", "minutes", "verdict"
    ]  # fmt: skip
    assert [line.split()[:4] for line in lines] == [["1", "0.001", "4", "0.1"], ["2", "0.0001", "4", "0.3"]]
    assert "λ (1 − PHI)" in legend


@pytest.mark.usefixtures("forked_runs")
def test_a_search_remembers_its_trials(
    ebmvk: Command, text: Path, tiny: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    flags = f"--model plain --dataset {text} --config {tiny} --steps 2 --sample-tokens 0"
    axes = ("--search", "lr=1e-4:1e-2", "--search", "batch-size=2:6")
    at = ("--folder", tmp_path, "--flags", flags, "--threads", 1, *axes, "--json")
    rows = json.loads(ebmvk("sweep", *at, "--trials", 2).out)["rows"]
    assert len(rows) == 2
    assert rows[0]["nats_per_token"] <= rows[1]["nats_per_token"]
    for r in rows:
        assert 1e-4 <= r["values"]["learning_rate"] <= 1e-2
        assert r["values"]["batch_size"] == r["batch_size"] in range(2, 7)
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: pytest.fail("trained again"))
    assert json.loads(ebmvk("sweep", *at, "--trials", 2).out)["rows"] == rows


@pytest.mark.parametrize(
    ("table", "given", "model"),
    [
        ("infinito", ("--flags", "--size nano --steps 2"), ["--model", "infinito", "--size", "nano", "--steps", "2"]),
        ("infinito-ablation", ("--flags", ""), ["--model", "infinito"]),
        ("infinito", (), ["--model", "infinito", "--preset", "small"]),
    ],
)
def test_a_table_trains_its_own_model_whatever_the_flags(
    table: str, given: tuple[str, ...], model: list[str], ebmvk: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    begun: list[PlannedRun] = []
    monkeypatch.setattr(experiments, "train_all", lambda planned, *_: begun.extend(planned.values()))
    monkeypatch.setattr(experiments, "table", lambda _: [])
    if not given:  # its preset names a corpus that isn't on every machine
        monkeypatch.setattr(train, "asked", lambda args: None)
    said = ebmvk("sweep", "--table", table, "--folder", tmp_path, *given)
    assert said.status == 0, said.err
    assert len(begun) == 5
    assert all(list(run.arguments[: len(model)]) == model for run in begun)


def test_bad_flags_are_refused_before_training(ebmvk: Command, tmp_path: Path) -> None:
    for args, said in (
        (("--table", "magic"), "--table magic"),
        (("--flags", "--lrr 3"), "unknown flag --lrr"),
        (("--flags", "--model infinito --lr 1e-3"), "--flags has --learning-rate, which --table infinito sets"),
        (("--flags", "--batch-size=8"), "--flags has --batch-size, which --table infinito sets"),
        (("--flags", "--seed 3"), "--flags has --seed, which the sweep itself sets"),
        (("--flags", "--dry-run"), "--flags has --dry-run"),
        (("--flags", "--outdir x"), "--flags has --run-dir"),
        (("--flags", "--model infinito --dropout 3"), "--dropout 3.0 is above"),
        (("--flags", "--model ebm --dropout .1"), "--lambda-phi 0.1 doesn't work with --model ebm"),
        (("--flags", "--model infinto"), "--model"),
        (("--flags", "--model infinito --corpus /no/such.txt"), "/no/such.txt"),
        (("--flags", "--size 'nano"), "--flags"),
        (("--trials", -1), "--trials -1"),
        (("--search", "learning_rate=1e-4:1e-2"), "needs --trials"),
        (("--trials", 1, "--search", "magic=1:2"), "--search magic"),
        (("--trials", 1, "--search", "device=1:2"), "--search device: it isn't a number"),
        (("--flags", "--model infinito", "--trials", 1, "--search", "dropout=.1:3"), "--dropout 3.0 is above"),
        (("--trials", 1, "--search", "seed=1:3"), "--search has --seed"),
        (("--trials", 1, "--search", "lr=1e-4:1e-2", "learning-rate=1e-3:1"), "learning_rate is given twice"),
        (("--trials", 1, "--flags", "--lr 1"), "--flags has --learning-rate, which --search sets"),
        (("--jobs", 0), "--jobs 0"),
    ):
        found = ebmvk("sweep", "--folder", tmp_path, *args)
        assert found.status == 2
        assert said in found.err
        assert len(found.err.splitlines()) <= 3
    assert not any(tmp_path.iterdir())  # nothing was begun
