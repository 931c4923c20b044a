"""What every model has to do: mixed precision, batches in parts, blocks computed twice, an early
stop, too little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ebmvk.config.models import MODELS
from ebmvk.ranks import Share
from ebmvk.report import run_page as html
from ebmvk.runs.steps import step_folders
from ebmvk.training import evaluations, passes

from .conftest import Command, rows

pytestmark = pytest.mark.usefixtures("no_pictures")

# By default Mini-LLM stands for the other two models off the sphere.
EACH = [pytest.param(model, marks=pytest.mark.slow if model in ("plain", "tinygpt") else ()) for model in MODELS]
BARE = ("--no-enable-soc", "--sample-tokens", 0, "--quiet")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here reads the report, and it takes as long as the steps."""
    monkeypatch.setattr(html, "write_report", lambda _, target: target)


@pytest.mark.parametrize("model", EACH)
def test_every_model_trains_with_all_options_at_once(model: str, train: Command, tmp_path: Path) -> None:
    """bfloat16, two batches of two, blocks computed twice, and an early stop because nothing is
    learned."""
    run = tmp_path / "run"
    flags = ("--precision", "bfloat16", "--batch-size", 2, "--accumulation-steps", 2, "--gradient-checkpointing")
    train(run, *BARE, "--model", model, *flags, "--patience", 1, "--eval-every", 1, "--lr", 1e-12)
    (end,) = rows(run, "end")
    assert end["step"] == 2
    assert end["progress"]["windows"] == 2 * 4
    train(run, "--resume", "--quiet", "--lr", 0.01, "--patience", 0)
    steps = rows(run, "step")
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert steps[-1]["parts"]["ce"] < steps[0]["parts"]["ce"]


@pytest.mark.parametrize("model", EACH)
def test_out_of_memory_names_a_batch_that_fits(
    model: str, train: Command, ebmvk: Command, tiny: Path, text: Path, device: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """There is memory for three windows. At the first step nothing is saved yet; later the run goes
    on. A batch is tried whole, not in the parts that are computed one after another."""
    objective, most = passes.objective, [3]

    def hungry(model: Any, tokens: Any, *args: Any, share: Share, **more: Any) -> Any:
        if len(tokens[share.rows(len(tokens))]) > most[0]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return objective(model, tokens, *args, share=share, **more)

    monkeypatch.setattr(passes, "objective", hungry)
    run, batch = tmp_path / "run", ("--batch-size", 4, "--accumulation-steps", 2)
    start = ("--dataset", text, "--config", tiny, "--device", device, "--model", model, *BARE, "--steps", 2)
    said = ebmvk("train", "--run-dir", run, *start, *batch)
    assert said.status == 2
    assert "in another --run-dir with --batch-size 2 --accumulation-steps 4" in said.err
    assert step_folders(run) == []
    other = tmp_path / "other"
    train(other, "--model", model, *BARE, "--steps", 2, "--stop-after", 1, "--batch-size", 3)
    most[0] = 1
    said = ebmvk("train", "--resume", "--run-dir", other)
    assert f"--resume --run-dir {other} --batch-size 1 --accumulation-steps 3" in said.err
    train(other, "--resume", "--batch-size", 1, "--accumulation-steps", 3, "--quiet")
    assert len(rows(other, "end")) == 1


@pytest.mark.parametrize("on", [False, True])
def test_if_no_batch_fits_the_hint_is_checkpointing_or_shorter_windows(
    on: bool, ebmvk: Command, tiny: Path, text: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(passes, "objective", starved)
    flags = ("--gradient-checkpointing",) if on else ()
    start = ("--dataset", text, "--config", tiny, "--device", device, "--run-dir", tmp_path / "run")
    said = ebmvk("train", *start, *BARE, *flags)
    assert said.status == 2
    assert ("--gradient-checkpointing" in said.err) is not on
    assert "--seq-length 8" in said.err


def test_out_of_memory_between_steps_is_a_typed_error(
    train: Command, ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nmore")

    run = tmp_path / "run"
    train(run, *BARE, "--stop-after", 2)
    monkeypatch.setattr(evaluations, "likelihood", starved)
    said = ebmvk("train", "--resume", "--run-dir", run)
    assert said.status == 2
    first = said.err.splitlines()[0]
    assert first == "error: out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    assert f"--resume --run-dir {run}" in said.err
