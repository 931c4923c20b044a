"""A resumed run equals one that never stopped, bit for bit: after Ctrl-C, a kill or damage."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ebmvk.runs.metrics import read_metrics
from ebmvk.training import passes, trainer

from .conftest import Command, made_up_text, rows
from .damage import edit
from .processes import Process

pytestmark = pytest.mark.usefixtures("no_pictures")

EVALUATE_NEVER = ("--eval-every", 100000, "--sample-tokens", 0)
STEADY = ("--deterministic", "--quiet", "--sample-tokens", 0)


# Checks, growth and creation of splats within eight steps.
SPLATS = (
    "--soc-check-interval", 2, "--curriculum-target-splats", 40, "--n-splats-init", 20, "--max-splats", 60,
    "--soc-history", 400, "--soc-threshold", 0.01,
)  # fmt: skip
MODELS: dict[str, tuple[object, ...]] = {
    "ebm": SPLATS,
    "ebm without splats": ("--no-enable-soc",),
    "plain": ("--model", "plain", *SPLATS),
    "tinygpt": ("--model", "tinygpt"),
    "tinygpt of experts": ("--model", "tinygpt", "--use-moe"),
    "minillm": ("--model", "minillm"),
    "infinito": ("--model", "infinito", "--memory-slots", 8),
}
COVERED = ("ebm without splats", "plain", "tinygpt")  # their states are parts of those of other models
EPOCH = 4  # steps, of SHORT in four windows each; the fourth reads windows of both epochs
SHORT = made_up_text(45)


def _tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Everything a checkpoint holds: weights, optimiser, and splats with their history and
    counters.
    """
    files = sorted((run / "checkpoints" / f"step-{step}").glob("*.safetensors"))
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def _same_bits(one: Path, two: Path, step: int) -> None:
    first, second = _tensors(one, step), _tensors(two, step)
    assert first.keys() == second.keys()
    assert [name for name in first if not first[name].equal(second[name])] == []
    histories = [read_metrics(run / "metrics.jsonl") for run in (one, two)]
    losses = [[(row["step"], row["loss"]) for row in history.steps] for history in histories]
    assert losses[0] == losses[1]


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip reports, which take half the time of so short a run."""
    monkeypatch.setattr("ebmvk.report.run_page.write_report", lambda *_: None)
    monkeypatch.setattr(trainer.Trainer, "_finish", lambda _: None)


class _Interrupting:
    """passes.objective that sends SIGINT `signals` times before its n-th call."""

    def __init__(self, nth: int, signals: int) -> None:
        self.left, self.signals, self.real = nth, signals, passes.objective

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            for _ in range(self.signals):
                os.kill(os.getpid(), signal.SIGINT)
        return self.real(*args, **more)


@pytest.mark.usefixtures("no_reports")
@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=pytest.mark.slow if model in COVERED else ()) for model in MODELS]
)
def test_n_steps_equal_k_steps_and_then_n_minus_k_bit_for_bit(
    model: str, train: Command, ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops within an epoch, at its end, and between two batches of a step, where a second
    Ctrl-C is also tried.
    """
    whole, parts, text = tmp_path / "whole", tmp_path / "parts", tmp_path / "short.txt"
    text.write_text(SHORT, encoding="utf-8")
    flags = ("--dataset", text, "--batch-size", 2, "--accumulation-steps", 2, "--dropout", 0.2, "--eval-every", 6)
    train(whole, *STEADY, *flags, *MODELS[model])
    assert rows(whole, "start")[0]["steps_per_epoch"] == EPOCH
    assert EPOCH * 4 > open_windows(whole) > (EPOCH - 1) * 4

    train(parts, *STEADY, *flags, *MODELS[model], "--stop-after", 3)
    train(parts, "--resume", "--quiet", "--stop-after", EPOCH - 3)
    for signals, saved in ((1, EPOCH + 1), (2, EPOCH + 1)):  # the second one loses step 6, which nothing had saved
        with monkeypatch.context() as patch:
            patch.setattr(passes, "objective", _Interrupting(2, signals))
            assert ebmvk("train", "--resume", "--run-dir", parts, "--quiet").status == 130
        assert (parts / "latest").read_text(encoding="ascii").strip() == f"checkpoints/step-{saved}"
    train(parts, "--resume", "--quiet")
    _same_bits(whole, parts, 8)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """The next training begins with two threads of torch, whatever the tests run with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("no_reports", "two_threads")
def test_a_deterministic_run_keeps_its_number_of_threads(train: Command, tmp_path: Path) -> None:
    """A run that began with two goes on with two in a process that has one, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = (*STEADY, *EVALUATE_NEVER[:2], "--model", "plain", "--no-enable-soc", "--steps", 3)
    train(whole, *flags)
    train(parts, *flags, "--stop-after", 1)
    torch.set_num_threads(1)
    train(parts, "--resume", "--quiet")
    assert torch.get_num_threads() == 2
    _same_bits(whole, parts, 3)


@pytest.mark.usefixtures("no_reports")
def test_every_epoch_ends_with_a_checkpoint_and_milestones_stay(train: Command, tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "short.txt"
    text.write_text(SHORT, encoding="utf-8")
    plain = (*STEADY, "--dataset", text, "--model", "plain", "--no-enable-soc")
    never = ("--eval-every", 1000, "--save-every", 1000, "--keep-last", 1, "--keep-epochs", 2)
    train(run, *plain, *never, "--steps", 18)
    windows = open_windows(run)
    ends = [step for step in range(1, 19) if step * 4 // windows > (step - 1) * 4 // windows]
    assert len(ends) >= 4
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == sorted(f"step-{step}" for step in {*ends[1::2], 18})
    manifest = (run / "checkpoints" / f"step-{ends[1]}" / "state.json").read_text(encoding="utf-8")
    assert json.loads(manifest)["keep"] is True


@pytest.mark.usefixtures("no_reports")
@pytest.mark.parametrize("left", [("config.toml",), ("config.toml", "tokenizer.json", "metrics.jsonl")])
def test_a_run_without_a_checkpoint_starts_over(
    left: tuple[str, ...], train: Command, ebmvk: Command, tmp_path: Path
) -> None:
    """It was killed before its first checkpoint; config.toml has everything that is needed."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, *STEADY, "--model", "plain", "--steps", 3)
    cut.mkdir()
    for name in left:
        shutil.copy(whole / name, cut / name)
    said = ebmvk("train", "--run-dir", cut)
    assert "already holds a run" in said.err
    assert f"--resume --run-dir {cut}" in said.err
    said = train(cut, "--resume")
    assert "begins again" in said.out
    _same_bits(whole, cut, 3)


@pytest.mark.usefixtures("no_reports")
def test_a_resumed_run_may_switch_gradient_checkpointing_on(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, "--model", "plain", "--steps", 2, "--stop-after", 1)
    train(run, "--resume", "--gradient-checkpointing", "--quiet")
    assert (run / "checkpoints" / "step-2").is_dir()


def test_another_seed_gives_another_run(train: Command, tmp_path: Path) -> None:
    """Without this, the bit-for-bit test would mean nothing."""
    for seed in (1, 2):
        train(tmp_path / str(seed), *STEADY, "--steps", 1, "--seed", seed)
    one, two = (_tensors(tmp_path / str(seed), 1)["model.safetensors points"] for seed in (1, 2))
    assert not one.equal(two)


def test_a_resumed_run_reads_on_where_it_stopped_with_another_batch_size(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, "--stop-after", 4)
    train(run, "--resume", "--batch-size", 2, "--lr", 1e-4, "--steps", 10, "--log-every", 1, "--quiet")
    assert rows(run, "end")[0]["progress"]["windows"] == 4 * 4 + 6 * 2
    assert max(row["lr"] for row in rows(run, "step")[4:]) <= 1e-4


def test_epochs_count_the_text_that_was_read_at_any_batch_size(train: Command, tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "short.txt"
    text.write_text(SHORT, encoding="utf-8")
    flags = ("--dataset", text, "--eval-every", 1000)
    train(run, *STEADY, *flags, "--epochs", 3, "--batch-size", 4, "--stop-after", EPOCH + 1)
    train(run, "--resume", "--batch-size", 2, "--quiet")
    per_epoch = open_windows(run)
    assert 0 <= rows(run, "end")[0]["progress"]["windows"] - 3 * per_epoch < 2  # the last batch may go beyond


def open_windows(run: Path) -> int:
    """The number of windows in an epoch of the run's training text, from its metrics."""
    start = rows(run, "start")[0]
    return (start["text"]["train"]["tokens"] + 1) // 16


def test_fewer_steps_than_are_done_are_refused(train: Command, ebmvk: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, "--stop-after", 4)
    before = (run / "config.toml").read_bytes()
    said = ebmvk("train", "--resume", "--run-dir", run, "--steps", 3)
    assert said.status == 2
    assert "--steps 3 is less than the 4 steps of" in said.err
    assert (run / "config.toml").read_bytes() == before


def test_another_part_of_validation_starts_a_new_best(train: Command, tmp_path: Path) -> None:
    """A lower loss on other tokens is not a better model."""
    run = tmp_path / "run"
    train(run, *STEADY, "--stop-after", 4)
    weights = tmp_path / "run" / "checkpoints" / "step-4" / "state.json"
    manifest = json.loads(weights.read_text(encoding="utf-8"))
    del manifest["sha256"]
    manifest["state"]["progress"]["best_nats"] = 0.001  # of the old part: nothing will beat it
    weights.write_text(json.dumps(manifest), encoding="utf-8")
    train(run, "--resume", "--eval-tokens", 100, "--quiet")
    assert (run / "best").read_text(encoding="ascii").strip() == "checkpoints/step-8"


@pytest.mark.parametrize(
    ("flag", "value", "was"),
    [("--latent-dim", 64, "32"), ("--vocab-size", 400, "300"), ("--seq-length", 8, "16"), ("--seed", 1, "42")],
)
def test_changing_model_or_data_is_refused(
    train: Command, ebmvk: Command, tmp_path: Path, flag: str, value: int, was: str
) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, "--stop-after", 1)
    said = ebmvk("train", "--resume", "--run-dir", run, flag, value)
    assert said.status == 2
    assert f"{flag[2:].replace('-', '_')} is {value} now but was {was}" in said.err


def test_changing_the_text_is_refused(ebmvk: Command, tmp_path: Path, tiny: Path, device: str) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(made_up_text(), encoding="utf-8")
    said = ebmvk("train", "--run-dir", run, "--dataset", text, "--config", tiny, "--device", device, "--stop-after", 1)
    assert said.status == 0, said.err
    text.write_text(made_up_text(seed=8), encoding="utf-8")
    said = ebmvk("train", "--resume", "--run-dir", run)
    assert said.status == 2
    assert f"--dataset {text} is not the text this run was trained on" in said.err


def test_resuming_an_older_checkpoint_sets_the_later_ones_aside(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STEADY)
    said = train(run, "--resume", run / "checkpoints" / "step-4", "--stop-after", 1)
    assert "step-8" in said.out
    assert (run / "checkpoints" / "step-8.superseded").is_dir()
    assert (run / "latest").read_text(encoding="ascii").strip() == "checkpoints/step-5"
    assert (run / (run / "best").read_text(encoding="ascii").strip()).is_dir()


def test_resume_skips_a_corrupt_newest_checkpoint_and_says_so(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STEADY)
    weights = run / "checkpoints" / "step-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said = train(run, "--resume", "--steps", 9)
    assert "skipped step-8" in said.out
    assert "truncated" in said.out
    assert "continuing from step-4" in said.out
    assert [row["step"] for row in rows(run, "resume")] == [4]
    assert (run / "checkpoints" / "step-9").is_dir()


def _with_masks(run: Path, version: int | None) -> None:
    """Let the checkpoints look as if a version with other dropout masks had written them."""
    for folder in (run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))["state"]
        state.pop("masks", None)
        edit(folder, state=state if version is None else {**state, "masks": version})


@pytest.mark.usefixtures("no_reports")
@pytest.mark.parametrize("rate", [0.2, 0.0])
def test_resuming_a_run_says_so_if_dropout_draws_other_masks(
    rate: float, train: Command, ebmvk: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, "--dropout", rate, "--stop-after", 1)
    said = train(run, "--resume", "--stop-after", 1)
    assert "dropout     " not in said.out
    _with_masks(run, None)
    said = train(run, "--resume", "--stop-after", 1)
    assert ("an earlier version drew the masks up to step 2" in said.out) == (rate > 0)
    _with_masks(run, 99)
    refused = ebmvk("train", "--resume", "--run-dir", run)
    assert refused.status == 2
    assert "masks of version 99" in refused.err


def test_a_new_run_refuses_the_folder_of_an_old_one(trained: Path, ebmvk: Command) -> None:
    said = ebmvk("train", "--run-dir", trained)
    assert said.status == 2
    assert "already holds a run" in said.err
    assert f"--resume --run-dir {trained}" in said.err


def _start(run: Path, text: Path, tiny: Path, device: str, *settings: object) -> Process:
    """Start training in a process of its own, and return once it has reached its third step."""
    command = ("train", "--run-dir", run, "--dataset", text, "--config", tiny, "--device", device)
    process = Process(*command, "--steps", 100000, "--save-every", 2, *(settings or EVALUATE_NEVER))
    deadline = time.monotonic() + 200
    while not ((run / "metrics.jsonl").is_file() and len(rows_so_far(run)) >= 4):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_skips_an_evaluation_and_the_resumed_run_does_it(
    tmp_path: Path, text: Path, tiny: Path, device: str, train: Command
) -> None:
    run = tmp_path / "run"
    endless = ("--eval-every", 3, "--sample-tokens", 1_000_000)  # hours of chains at the first evaluation
    process = _start(run, text, tiny, device, *endless)
    time.sleep(1)  # into the evaluation
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "saved       step 3 of 100000" in out
    assert rows(run, "eval") == []
    train(run, "--resume", "--sample-tokens", 0, "--stop-after", 1, "--quiet")
    assert [row["step"] for row in rows(run, "eval")] == [3]
    assert (run / "best").read_text(encoding="ascii").strip() == "checkpoints/step-3"


def rows_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_ctrl_c_saves_and_prints_the_command_that_continues(
    tmp_path: Path, text: Path, tiny: Path, device: str, train: Command
) -> None:
    run = tmp_path / "a run"
    process = _start(run, text, tiny, device)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert err == ""
    step = int((run / "latest").read_text(encoding="ascii").strip().removeprefix("checkpoints/step-"))
    assert f"saved       step {step} of 100000" in out
    assert re.search(
        rf"^continue    \S+( -m ebmvk)? train --resume --run-dir '{re.escape(str(run))}'$", out, re.MULTILINE
    )
    train(run, "--resume", "--stop-after", 1, "--quiet")
    assert (run / "latest").read_text(encoding="ascii").strip() == f"checkpoints/step-{step + 1}"


def test_a_kill_loses_at_most_the_steps_since_the_last_save(
    tmp_path: Path, text: Path, tiny: Path, device: str, train: Command
) -> None:
    run = tmp_path / "run"
    process = _start(run, text, tiny, device)
    process.kill()
    process.communicate(timeout=100)
    done = len(rows(run, "step"))
    train(run, "--resume", "--stop-after", 1, "--quiet")
    resumed = rows(run, "resume")[0]["step"]
    assert done - resumed <= 2 + 1  # --save-every 2, and the step whose save the kill may have cut
