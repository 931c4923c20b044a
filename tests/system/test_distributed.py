"""Several processes train like one, stop together, and resume in any number.

The processes are forks of this one with torchrun's environment. In the test that kills one,
torchrun starts them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench import scaling
from ebmvk.cli import pretrain
from ebmvk.cli import train as training
from ebmvk.errors import INTERRUPTED
from ebmvk.ranks import Ranks
from ebmvk.runs.folder import read_config
from ebmvk.training import follower, passes

from .conftest import Command, launched, rows
from .test_resume import SPLATS

pytestmark = pytest.mark.usefixtures("no_pictures")

FLAGS = ("--precision", "float32", "--dropout", 0, "--sample-tokens", 0, "--quiet", "--deterministic")
# Sums in another order differ in the last bits of float32; eight steps of rate 4e-3 make at most
# this of it. Rows of tokens whose gradients nearly cancel are moved by AdamW as far as others.
WEIGHTS, NATS = 2e-5, 2e-6
MODELS: dict[str, tuple[object, ...]] = {"ebm": (*SPLATS, "--num-workers", 2), "tinygpt": ("--model", "tinygpt")}
OTHERS: dict[str, tuple[object, ...]] = {
    "ebm by parts": ("--accumulation-steps", 2, "--windows", "document", "--denoise-form", "score", *SPLATS),
    "ebm with a transformer": ("--decoder", "transformer", "--gradient-checkpointing"),
    "plain": ("--model", "plain", *SPLATS),
    "minillm of experts": ("--model", "minillm", "--use-moe", "--accumulation-steps", 2),
    # PHI has the gradient of its weakest cut, which jumps if two cuts are about equally weak. Even
    # in one process, weights that begin 1e-7 apart are as far apart after a few steps. Another test
    # shows that the gradient is exact.
    "infinito": ("--model", "infinito", "--memory-slots", 8, "--lambda-phi", 0),
}


@pytest.fixture
def begun(tiny: Path, text: Path) -> tuple[object, ...]:
    """Flags of a new run."""
    return ("--config", tiny, "--dataset", text, "--device", "cpu", *FLAGS)


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmvk.report.run_page.write_report", lambda *_: None)


def command(run: Path, *args: object) -> Callable[[], int]:
    return lambda: training.main([str(arg) for arg in ("--run-dir", run, *args)])


def _ended_alike(one: Path, two: Path) -> None:
    first, second = (load_file(run / "checkpoints" / "step-8" / "model.safetensors") for run in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(
            second[name], value, rtol=0, atol=WEIGHTS, msg=lambda said, name=name: f"{name}: {said}"
        )
    nats = [[row["validation"]["nats_per_token"] for row in rows(run, "eval")] for run in (one, two)]
    assert nats[1] == pytest.approx(nats[0], abs=NATS)
    steps = [
        [(row["loss"], *row["parts"].values(), row["grad_norm"]) for row in rows(run, "step")] for run in (one, two)
    ]
    for own, others in zip(*steps, strict=True):
        assert others == pytest.approx(own, rel=1e-4)


def _same_as_one(tmp_path: Path, begun: tuple[object, ...], flags: tuple[object, ...]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert command(one, *begun, *flags)() == 0
    found = launched(2, command(two, *begun, *flags), tmp_path)
    assert [(said.status, said.err) for said in found] == [(0, "")] * 2
    assert found[1].out == ""  # the first one alone prints
    _ended_alike(one, two)
    checks = [rows(run, "soc") for run in (one, two)]
    assert [row["states"] for row in checks[0]] == [row["states"] for row in checks[1]]
    for own, others in zip(*checks, strict=True):
        assert others["phi"] == pytest.approx(own["phi"], abs=1e-3)
        assert (others["created"], others["merged"]) == (own["created"], own["merged"])


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_match_one(model: str, tmp_path: Path, begun: tuple[object, ...], no_reports: None) -> None:
    _same_as_one(tmp_path, begun, MODELS[model])


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
def test_two_processes_match_one_for_every_model(
    model: str, tmp_path: Path, begun: tuple[object, ...], no_reports: None
) -> None:
    _same_as_one(tmp_path, begun, OTHERS[model])


def test_a_run_resumes_with_another_number_of_processes(
    tmp_path: Path, begun: tuple[object, ...], no_reports: None
) -> None:
    """Two steps with one process, two with four and four with two match eight with one."""
    one, other = tmp_path / "one", tmp_path / "other"
    assert command(one, *begun)() == 0
    assert command(other, *begun, "--stop-after", 2)() == 0
    for number, more in ((4, ("--stop-after", 2)), (2, ())):
        found = launched(number, command(other, "--resume", "--quiet", *more), tmp_path)
        assert [said.status for said in found] == [0] * number, found[0].err
    assert [row["ranks"] for event in ("start", "resume") for row in rows(other, event)] == [1, 4, 2]
    _ended_alike(one, other)


@pytest.mark.parametrize("model", [("minillm", "--use-moe"), ("ebm", "--windows", "document")], ids=str)
def test_any_division_of_a_step_gives_the_same_result(
    model: tuple[str, ...], tmp_path: Path, begun: tuple[object, ...], no_reports: None
) -> None:
    """Short documents lie beside long ones. One batch of four windows, four batches of one, and two
    ranks with two batches give the same."""
    words = ["sun", "moon", "tree", "house", "river", "stone", "bird", "fish", "road", "cloud"]
    random = Random(0)
    documents = [" ".join(random.choices(words, k=2 if i % 3 else 60)) for i in range(120)]
    text = tmp_path / "documents.txt"
    text.write_text("\n\n".join(documents), encoding="utf-8")
    begun = tuple(text if str(flag).endswith("made-up.txt") else flag for flag in begun)
    flags = (*begun, "--model", *model, "--optimizer", "adamw", "--steps", 4, "--no-enable-soc")
    runs = [tmp_path / name for name in ("one", "parts", "ranks")]
    assert command(runs[0], *flags)() == 0
    assert command(runs[1], *flags, "--batch-size", 1, "--accumulation-steps", 4)() == 0
    found = launched(2, command(runs[2], *flags, "--batch-size", 2, "--accumulation-steps", 2), tmp_path)
    assert [(said.status, said.err) for said in found] == [(0, "")] * 2
    one, *others = (
        [(row["loss"], *row["parts"].values(), row["grad_norm"]) for row in rows(run, "step")] for run in runs
    )
    for other in others:
        for own, true in zip(other, one, strict=True):
            assert own == pytest.approx(true, rel=2e-4)


def test_pretraining_works_with_several_processes(tmp_path: Path, begun: tuple[object, ...], no_reports: None) -> None:
    args = [str(arg) for arg in ("--run-dir", tmp_path / "run", *begun, "--steps", 2, "--no-enable-soc")]
    found = launched(2, lambda: pretrain.main(args), tmp_path)
    assert [(said.status, said.err) for said in found] == [(0, "")] * 2
    assert [row["ranks"] for row in rows(tmp_path / "run", "start")] == [2]


def test_a_step_sends_as_many_bytes_as_predicted(
    tmp_path: Path, begun: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, no_reports: None
) -> None:
    """It sends the gradients, the sample of states, and less than 2 kB of losses and expert
    counts."""
    run, real = tmp_path / "run", Ranks.all_reduce

    def counted(ranks: Ranks, tensor: torch.Tensor) -> torch.Tensor:
        with (tmp_path / f"sent-{ranks.rank}").open("a") as file:
            print(tensor.nbytes, file=file)
        return real(ranks, tensor)

    monkeypatch.setattr(Ranks, "all_reduce", counted)
    launched(2, command(run, *begun, *SPLATS, "--steps", 1), tmp_path)
    load = scaling.Load.of(read_config(run))
    for rank in range(2):
        sent = sum(map(int, (tmp_path / f"sent-{rank}").read_text().split()))
        # The prediction allows for more states than there are: consolidation sees all of so small a
        # batch.
        fewer = load.sample - 4 * (4 * 16) * (32 + 1)
        assert 0 < sent - (load.gradients + load.sample - fewer) < 2000


def test_settings_for_one_process_only_are_refused_once(tmp_path: Path, begun: tuple[object, ...]) -> None:
    for number, flags, told in (
        (3, (), "error: --batch-size 4 is not a multiple of the 3 processes\n"),
        (2, ("--dry-run",), "error: --dry-run with 2 processes: it measures one process only\n"),
        (2, ("--lr", "fast"), "error: "),
    ):
        found = launched(number, command(tmp_path / "run", *begun, *flags), tmp_path)
        assert [said.status for said in found] == [2] * number
        assert found[0].err.startswith(told)
        assert found[0].err.count("error:") == 1
        assert [said.err for said in found[1:]] == [""] * (number - 1)
        assert not (tmp_path / "run").exists()


def test_commands_for_one_process_only_are_refused(
    tmp_path: Path, ebmvk: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, told in (("2", "only train, pretrain, evaluate divide"), ("two", "WORLD_SIZE=two is not a number")):
        monkeypatch.setenv("WORLD_SIZE", size)
        said = ebmvk("memory", "--checkpoint", tmp_path)
        assert said.status == 2
        assert told in said.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    said = ebmvk("evaluate", "--checkpoint", tmp_path)
    assert said.status == 2
    assert said.err.startswith("error: WORLD_SIZE=2: the processes of this run did not meet\n")


@pytest.mark.parametrize("fault", ["not finite", "no memory", "a bug"])
def test_the_error_of_one_rank_ends_all(
    fault: str, tmp_path: Path, begun: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, no_reports: None
) -> None:
    real = passes.objective

    def failing(model: nn.Module, *args: Any, step: int, **more: Any) -> Any:
        losses = real(model, *args, step=step, **more)
        if step < 5 or os.environ.get("RANK") != "1":
            return losses
        if fault == "not finite":
            return dataclasses.replace(losses, total=losses.total * math.nan)
        raise MemoryError if fault == "no memory" else RuntimeError("unheard of")

    monkeypatch.setattr(passes, "objective", failing)
    run = tmp_path / "run"
    one, two = launched(2, command(run, *begun), tmp_path)
    if fault == "not finite":
        assert (one.status, two.status, two.err) == (2, 2, "")
        assert one.err.startswith("error: step 6: the loss is not finite; the weights are as they were after step 5\n")
    elif fault == "no memory":
        assert (one.status, two.status, one.err) == (2, 2, "")
        assert two.err.startswith("error: rank 1: step 6: rank 1 ran out of memory with its share of --batch-size 4\n")
    else:
        assert (one.status, two.status, one.err) == (1, 1, "")
        assert "RuntimeError: unheard of" in two.err
    monkeypatch.setattr(passes, "objective", real)
    assert command(run, "--resume", "--quiet")() == 0
    assert rows(run, "resume")[0]["step"] == (5 if fault == "no memory" else 4)


def test_interrupting_any_rank_saves_the_run(
    tmp_path: Path, begun: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, no_reports: None
) -> None:
    real = passes.objective

    def interrupted(*args: Any, step: int, **more: Any) -> Any:
        if step == 2 and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, step=step, **more)

    monkeypatch.setattr(passes, "objective", interrupted)
    found = launched(2, command(tmp_path / "run", *begun), tmp_path)
    assert [(said.status, said.err) for said in found] == [(INTERRUPTED, "")] * 2
    assert "saved       step 3 of 8" in found[0].out


def test_a_rank_that_dies_before_a_save_loses_no_step(
    tmp_path: Path, begun: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, no_reports: None
) -> None:
    monkeypatch.setattr(follower.Follower, "compare", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    run = tmp_path / "run"
    one, two = launched(2, command(run, *begun), tmp_path)
    assert (one.status, two.status) == (2, -signal.SIGKILL)
    assert one.err.startswith("error: rank 1 of 2 stopped answering; the run is saved as it was after step 4\n")
    assert command(run, "--resume", "--quiet", "--stop-after", 1)() == 0
    assert rows(run, "resume")[0]["step"] == 4


def _children(process: int) -> list[int]:
    """The processes that a process has started; empty if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()]
    except FileNotFoundError:
        return []


def test_torchrun_ends_when_a_rank_is_killed_and_the_run_can_resume(
    tmp_path: Path, begun: tuple[object, ...], no_reports: None
) -> None:
    run = tmp_path / "run"
    args = ("--run-dir", run, *begun, "--steps", 100000, "--save-every", 2, "--eval-every", 100000, "--no-enable-soc")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = subprocess.Popen(
        [*torchrun, "-m", "ebmvk.train", *map(str, args)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while not (run / "latest").exists() and process.poll() is None:
            time.sleep(0.2)
        ranks = {
            rank[1]: child
            for child in _children(process.pid)
            if (rank := re.search(rb"\0RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes()))
        }
        os.kill(ranks[b"1"], signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
    finally:
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(child, signal.SIGKILL)
        process.kill()
    assert process.returncode == 1
    told = re.search(r"error: rank 1 of 2 stopped answering; the run is saved as it was after step (\d+)", out)
    assert told, out
    assert f"try: continue with --resume --run-dir {run}, with any number of processes" in out
    assert (run / "latest").read_text(encoding="ascii") == f"checkpoints/step-{told[1]}\n"
    assert command(run, "--resume", "--stop-after", 1, "--quiet")() == 0
    assert rows(run, "resume")[0]["step"] == int(told[1])
