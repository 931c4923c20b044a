"""What a run shows and records while it trains, and alerts that are provoked for real."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from ebmvk.data import windows
from ebmvk.data.corpus import Corpus
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.errors import ConfigError
from ebmvk.host.resources import amount
from ebmvk.memory import fit as memory
from ebmvk.memory.law import SHARE
from ebmvk.memory.static import START
from ebmvk.monitoring import alerts, tensorboard
from ebmvk.monitoring.display import Display, fitted
from ebmvk.monitoring.monitor import Monitor, time_left
from ebmvk.objective.losses import Losses
from ebmvk.report.tables import duration
from ebmvk.training import passes

from .conftest import Command, Page, rows

pytestmark = pytest.mark.usefixtures("no_pictures")
BARE = ("--sample-tokens", 0, "--eval-every", 1000)
FAST = ("--no-enable-soc", "--model", "plain", "--batch-size", 2)
SPLATS = (
    "--soc-check-interval", 2, "--no-enable-curriculum-learning", "--n-splats-init", 60, "--soc-history", 400,
    "--soc-threshold", 0.01,
)  # fmt: skip


def signs(run: Path) -> list[str]:
    return [row["sign"] for row in rows(run, "alert")]


def test_rows_have_memory_trend_and_time_left(trained: Path) -> None:
    steps = rows(trained, "step")
    told = [row for row in steps if "memory" in row]
    assert [row["step"] for row in told] == [2, 4, 6, 8]  # --log-every 2
    for row in told:
        assert 0 < row["memory"].get("resident", 1) <= row["memory"]["peak"]
    # Five steps after the first one tell how long a step takes.
    assert ["left" in row for row in told] == [False, False, True, True]
    assert told[-2]["left"] > told[-1]["left"] == 0
    energies = [row["parts"]["ce"] for row in steps]
    slope = sum((2 * i - 7) * energy for i, energy in enumerate(energies)) / 84  # least squares over eight steps
    assert told[-1]["energy_trend"] == pytest.approx(100 * slope)
    assert all(sum(load) == pytest.approx(1) for row in rows(trained, "eval") for load in row["gates"].values())
    assert signs(trained) == []
    assert "<h2>Alerts</h2>" not in (trained / "report.html").read_text(encoding="utf-8")


# ---- alerts, provoked ----------------------------------------------------------------------------


def test_an_absurd_learning_rate_gives_alerts(train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(alerts, "BLOCK", 5)
    said = train(run, *BARE, *FAST, "--steps", 30, "--lr", 0.5, "--warmup-steps", 25)
    assert signs(run) == ["training diverges", "energy rising"]
    assert all("--lr 0.004" in row["advice"] for row in rows(run, "alert"))
    assert said.out.count("alert       energy rising: ") == 1
    page = Page.of(run / "report.html")
    assert "<h2>Alerts</h2>" in page.source
    assert all(row["reason"] in page.text for row in rows(run, "alert"))


def test_a_learning_rate_too_small_to_learn_gives_an_alert(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(alerts, "SETTLED", 20)
    train(run, *BARE, *FAST, "--steps", 30, "--lr", 1e-9, "--quiet")
    assert signs(run) == ["poor convergence"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("weight", "the weight 'points' is not finite"),
        ("output", "the output of 'trunk."),
        ("gradient", "of 'points'"),
    ],
)
def test_a_poisoned_tensor_is_named_and_reported(
    where: str, words: str, train: Command, ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", passes.objective
    train(run, *BARE, "--stop-after", 2, "--quiet")

    def poisoned(model: nn.Module, *args: Any, **how: Any) -> Losses:
        if where == "weight":
            model.points.data[3, 1] = float("nan")  # type: ignore[union-attr,index]
        elif where == "output":
            part = next(
                m for name, m in model.named_modules() if name.startswith("trunk.") and isinstance(m, nn.Linear)
            )
            part.register_forward_hook(lambda _module, _args, out: out * float("nan"))
        else:
            model.points.register_hook(lambda grad: grad / 0)  # type: ignore[union-attr,operator]
        return real(model, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(passes, "objective", poisoned)
    said = ebmvk("train", "--resume", "--run-dir", run)
    assert said.status == 2
    assert words in said.err
    (row,) = rows(run, "alert")
    assert row["sign"] == "non-finite values"
    assert words in row["reason"]
    assert "--lr" in row["advice"]
    assert (run / "latest").read_text(encoding="ascii") == "checkpoints/step-2\n"
    assert "non-finite values" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("done", [0, 4, 5])
def test_the_error_of_a_non_finite_number_names_a_checkpoint_from_which_another_rate_helps(
    done: int, ebmvk: Command, train: Command, tiny: Path, text: Path, tmp_path: Path, device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, calls, run = passes.objective, iter(range(100)), tmp_path / "run"

    def poisoned(*args: Any, **how: Any) -> Losses:
        losses = real(*args, **how)
        return dataclasses.replace(losses, total=losses.total * (1 if next(calls) < done else float("nan")))

    monkeypatch.setattr(passes, "objective", poisoned)
    said = ebmvk("train", "--dataset", text, "--config", tiny, "--run-dir", run, "--device", device, *BARE, "--quiet")
    assert said.status == 2
    assert f"step {done + 1}: the loss is not finite" in said.err
    assert signs(run) == ["non-finite values"]
    monkeypatch.undo()
    if done > 4:  # the step after a checkpoint's weights would go wrong again, whatever the rate
        assert f"--resume {run}/checkpoints/step-4 --lr 0.002" in said.err
        train(run, f"--resume={run}/checkpoints/step-4", "--quiet", "--lr", 0.002)
        assert [row["step"] for row in rows(run, "step")] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    else:
        assert "in another --run-dir with --lr" in said.err


def _moved(monkeypatch: pytest.MonkeyPatch, at: Any) -> None:
    """Consolidation sees the states that at(call, states) gives instead of the model's."""
    real, calls = passes.objective, iter(range(10_000))

    def moved(*args: Any, **how: Any) -> Losses:
        losses = real(*args, **how)
        states = at(next(calls), losses.states)
        return dataclasses.replace(losses, states=nn.functional.normalize(states, dim=1))

    monkeypatch.setattr(passes, "objective", moved)


def test_splats_on_top_of_one_another_give_an_alert(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    _moved(monkeypatch, lambda _, states: torch.ones_like(states) + 1e-4 * states)
    train(run, *BARE, *SPLATS, "--steps", 2, "--batch-size", 16, "--quiet")
    assert signs(run) == ["splats collapsed"]


def test_splats_that_nothing_recalls_give_an_alert(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After four steps the states are opposite ones; the statistics of the first are kept for
    ever."""
    run = tmp_path / "run"
    _moved(monkeypatch, lambda call, states: states + (3 if call < 4 else -3) * torch.eye(states.shape[1])[0])
    train(run, *BARE, *SPLATS, "--steps", 16, "--soc-keep", 1, "--batch-size", 16, "--quiet")
    assert "dead splats" in signs(run)


def test_splats_that_are_removed_at_every_check_give_an_alert(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *BARE, *SPLATS, "--steps", 12, "--soc-keep", 0.001, "--quiet")
    assert signs(run) == ["consolidation too fast"]
    assert "--soc-check-interval 4 --soc-keep 0.5" in rows(run, "alert")[0]["advice"]


@pytest.mark.parametrize("held", [False, True])
def test_a_memory_fitted_on_a_text_in_its_own_splats_gives_an_alert(
    held: bool, ebmvk: Command, tiny: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words at random, as frequent as Zipf says, so that much of a new text has not been seen."""
    chance, text, run = random.Random(3), tmp_path / "text.txt", tmp_path / "run"
    words = ["".join(chance.choices("abcdefghijklmno", k=4)) for _ in range(900)]
    often = [1 / rank for rank in range(1, 901)]
    documents = (" ".join(chance.choices(words, often, k=60)) for _ in range(90))
    text.write_text("\n\n".join(documents), encoding="utf-8")
    start = ("--dataset", text, "--config", tiny, "--run-dir", run, "--device", device, "--vocab-size", 900)
    said = ebmvk("train", *start, *BARE, "--no-enable-soc", "--quiet")
    assert said.status == 0, said.err
    monkeypatch.setattr(memory, "KAPPAS", (START,))  # little to search among
    monkeypatch.setattr(memory, "SHARES", (SHARE,))
    monkeypatch.setattr(memory, "SCANNED_SHARES", (SHARE,))
    if held:
        monkeypatch.setattr(windows, "encode_split", _of_training)
    said = ebmvk("memory", "--checkpoint", run, "--splats", 300, "--device", device)
    assert said.status == 0, said.err
    assert ("memory holds its own text" in signs(run)) is held
    assert ("alert       memory holds its own text" in said.out) is held
    assert ("memory holds its own text" in (run / "report.html").read_text(encoding="utf-8")) is held


def _of_training(corpus: Corpus, split: str, *rest: Any, **how: Any) -> TokenStream:
    """The splits of a corpus whose validation text was copied from its training text."""
    found = encode_split(corpus, "train", *rest, **how)
    return found if split == "train" else found.take(2000)


# ---- where it is shown ---------------------------------------------------------------------------


def _shown(run: Path, *, terminal: bool = False, quiet: bool = False, verbose: bool = False) -> str:
    """A run's rows as a display shows them."""
    console = Console(record=True, force_terminal=terminal, width=160, file=io.StringIO(), highlight=False)
    display = Display(quiet=quiet, verbose=verbose, log_every=2, total=8, done=0, console=console)
    display.start()
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        display.show(json.loads(line))
    display.stop()
    return console.export_text()


FIGURES = (
    "loss ", "denoise ", "energy ", "in 100 steps", "tokens/s", "left ", "score matching", "κ ", "active of",
    "recalled ", "epochs old", "kappa ", "rad apart",
)  # fmt: skip


@pytest.fixture(scope="module")
def consolidated(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path, device: str) -> Path:
    """A finished run with splats, for the display."""
    from ebmvk.cli.train import main

    folder = tmp_path_factory.mktemp("shown") / "run"
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", device, "--quiet", *SPLATS]
    assert main([str(arg) for arg in [*args, "--tensorboard"]]) == 0
    return folder


def test_a_file_gets_a_line_now_and_then_and_every_figure_with_verbose(consolidated: Path) -> None:
    lines = _shown(consolidated).splitlines()
    assert [re.match(r"step \d/8  loss \d\.\d{3}  (validation \d\.\d{3}  )?[\d,]+ tokens/s(  .* left)?$", line)
            is not None for line in lines] == [True] * 4  # fmt: skip
    assert ["left" in line for line in lines] == [False, False, True, True]
    assert [line.split()[1] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
    assert ["validation" in line for line in lines] == [False, False, True, True]
    verbose = _shown(consolidated, verbose=True)
    assert [words for words in FIGURES if words not in verbose] == []
    assert verbose.count("step 4/8") == 1
    assert "step 3/8" not in verbose
    assert _shown(consolidated, terminal=True, quiet=True) == ""


def test_a_narrow_terminal_loses_the_least_important_figures_first() -> None:
    figures = {
        "step": "step 1,200/90,000", "loss": "loss 4.507", "validation": "validation 3.987",
        "speed": "13,283 tokens/s", "left": "1 h 20 min left",
    }  # fmt: skip
    whole = "step 1,200/90,000  loss 4.507  validation 3.987  13,283 tokens/s  1 h 20 min left"
    assert fitted(figures) == fitted(figures, 81) == whole
    assert fitted(figures, 80) == "step 1,200/90,000  loss 4.507  validation 3.987  1 h 20 min left"
    assert fitted(figures, 50) == "step 1,200/90,000  loss 4.507  1 h 20 min left"
    assert fitted(figures, 39) == "step 1,200/90,000  loss 4.507"
    assert fitted(figures, 20) == "step 1,200/90,000"


def test_amounts_and_durations_are_readable() -> None:
    assert [amount(size) for size in (7, 1500, 3_200_000, 14e9)] == ["7 bytes", "1.5 kB", "3.2 MB", "14.0 GB"]
    told = [duration(seconds) for seconds in (0.2, 61, 3600, 3723, 59.7, 3599.8, 18_600, 180_000)]
    assert told == ["0 s", "1 min 1 s", "1 h", "1 h 2 min", "1 min", "1 h", "5 h 10 min", "2 days 2 h"]
    assert [duration(wrong) for wrong in (float("nan"), float("inf"), -1.0)] == ["–"] * 3


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.01, "about 10 s for the next 994 steps, plus evaluations"),
        (
            2.0,
            "about 33 min 8 s for the next 994 steps, plus evaluations; Ctrl-C saves. --steps 300 or --size nano would",
        ),
    ],
)
def test_the_time_of_a_run_is_printed_once_after_its_first_steps(seconds: float, told: str, tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    display = Display(quiet=False, log_every=1000, total=1000, done=0, console=console)
    with Monitor(
        tmp_path, quiet=False, log_every=1000, total=1000, done=0, display=display, smaller="--size nano"
    ) as m:
        for step in range(1, 20):
            own = {"loss": 1.0, "lr": 0.1, "seconds": 90.0 if step == 1 else seconds, "tokens_per_second": 1.0}
            m.step(step, own | {"parts": {"ce": 1.0}})
    said = console.export_text()
    assert said.count("time  ") == 1
    assert told in said  # the first step warms up and doesn't count


@pytest.mark.parametrize(("seconds", "known_at"), [(1.0, 6), (30.0, 2)])
def test_the_first_estimate_does_not_count_set_up_and_first_step(
    seconds: float, known_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting up takes 1,000 s and the first step 100 s; every other one takes `seconds`."""
    clock = [0.0]
    monkeypatch.setattr("ebmvk.monitoring.monitor.time.perf_counter", lambda: clock[0])
    console = Console(record=True, width=200, file=io.StringIO())
    display = Display(quiet=False, log_every=1, total=11, done=0, console=console)
    with Monitor(tmp_path, quiet=False, log_every=1, total=11, done=0, display=display) as monitor:
        clock[0] += 1000
        for step in range(1, 12):
            own = {"loss": 1.0, "lr": 0.1, "seconds": 100.0 if step == 1 else seconds, "tokens_per_second": 1.0}
            clock[0] += own["seconds"]
            monitor.step(step, own | {"parts": {"ce": 1.0}})
    told = {row["step"]: row.get("left") for row in rows(tmp_path, "step")}
    assert told == {step: seconds * (11 - step) if step >= known_at else None for step in range(1, 12)}
    lines = [line for line in console.export_text().splitlines() if line.startswith("step ")]
    assert sum("estimating time left" in line for line in lines) == known_at - 1


def test_the_time_is_printed_early_if_steps_are_slow() -> None:
    """At 10 s per step, two steps are enough. Only runs of more than ten minutes name flags for a
    shorter one."""
    assert time_left(0.1, 6, 1000, 99.4, None) == "about 1 min 39 s for the next 994 steps, plus evaluations"
    assert "--steps 60 would" in time_left(10.0, 3, 2000, 19_970.0, None)
    assert "--steps 4 would" in time_left(1e4, 3, 2000, 2e7, None)  # not fewer than are done


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield from tensorboard.scalars({k: v for k, v in row.items() if k not in tensorboard.APART}, row["event"])


def test_tensorboard_has_the_numbers_of_the_metrics(consolidated: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(consolidated / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    for event in ("step", "eval", "soc", "end"):
        for row in rows(consolidated, event):
            wanted = dict(_numbers(row))
            assert wanted
            for name, value in wanted.items():
                at = [scalar for scalar in found.Scalars(name) if scalar.step == row["step"]]
                assert [scalar.value for scalar in at] == [pytest.approx(value, rel=1e-6)]
    assert "step/parts/ce" in found.Tags()["scalars"]
    assert "eval/score_matching/0/loss" in found.Tags()["scalars"]


def test_a_missing_tensorboard_is_reported_before_a_run_folder_is_made(
    ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError):
        tensorboard.check_installed()
    said = ebmvk("train", "--size", "nano", "--run-dir", tmp_path / "run", "--tensorboard")
    assert said.status == 2
    assert "./run setup --extra tensorboard" in said.err
    assert not (tmp_path / "run").exists()
