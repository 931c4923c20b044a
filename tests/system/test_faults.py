"""Bad input and failing machines: a typed error, exit status 2, three lines, and nothing lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ebmvk.engine.api import LangevinResult
from ebmvk.engine.reference import Reference
from ebmvk.errors import CheckpointError, ConfigError, EbmvkError, NonFinite, StorageError
from ebmvk.monitoring.monitor import Monitor
from ebmvk.objective.losses import Losses
from ebmvk.ranks import Share
from ebmvk.runs import atomic, checkpoint, steps
from ebmvk.runs.layout import refuse_existing
from ebmvk.runs.manifest import MANIFEST, MODEL
from ebmvk.runs.metrics import read_metrics
from ebmvk.training import passes

from .conftest import Command, Said, rows
from .damage import edit

pytestmark = pytest.mark.usefixtures("no_pictures")


def _is_typed(said: Said, *words: str) -> None:
    """Exit status 2; what happened and what to try, in at most three lines; no traceback."""
    assert said.status == 2, said.err
    lines = said.err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("  try: ")
    assert len(lines) <= 3
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("train", ["--stesp", "3"], ["unknown flag --stesp", "did you mean --steps?"]),
        ("train", ["--qqqqqqq"], ["unknown flag --qqqqqqq", "--help"]),
        ("train", ["-x"], ["unknown flag -x", "--help"]),
        ("train", ["--separator", "x"], ["unknown flag --separator", "see `ebmvk train --help`"]),
        ("train", ["--dataset", "-x y"], ["unknown flag -x y", "write --dataset='-x y'"]),
        ("train", ["--quiet", "-x"], ["unknown flag -x", "--help"]),
        ("train", ["--seed", "3", "--stesp", "4"], ["did you mean --steps?"]),
        ("prepare-corpus", ["--output", "x"], ["--input is missing"]),
        ("init-tokenizer", ["--out", "x"], ["--files is missing"]),
        ("train", ["--steps", "3", "--steps", "4"], ["--steps is given twice"]),
        ("train", ["--lr", "1", "--learning-rate", "1"], ["--learning-rate is given twice"]),
        ("train", ["--steps", "many"], ["--steps", "'many'"]),
        ("train", ["--steps"], ["--steps", "has no value"]),
        ("train", ["--steps", "0"], ["--steps 0 is below 1"]),
        ("train", ["--lr", "nan"], ["--learning-rate nan is not finite"]),
        ("train", ["--steps", "5", "--epochs", "1"], ["--steps and --epochs"]),
        ("train", ["--size", "tinny"], ["--size tinny", "did you mean tiny?"]),
        ("train", ["--model", "gpt"], ["--model", "'gpt'"]),
        ("train", ["stray"], ["stray"]),
        ("train", ["--stop-after", "0"], ["--stop-after 0"]),
        ("train", ["--latent-dim", "30", "--n-heads", "4"], ["--latent-dim 30", "--n-heads 4", "--latent-dim 32"]),
        ("train", ["--moe-active", "9"], ["--moe-active 9", "--moe-experts 4"]),
        ("train", ["--context-local", "99"], ["--context-local 99", "--context-medium"]),
        ("train", ["--langevin-levels", "300"], ["--langevin-levels 300", "--langevin-steps 200"]),
        ("train", ["--langevin-scheme", "verlet"], ["--langevin-scheme", "'verlet'"]),
        (
            "train",
            ["--langevin-scheme", "ghmc", "--langevin-steps", "20"],
            ["--langevin-scheme ghmc", "--langevin-levels 10", "--langevin-steps 40 or more"],
        ),
        ("train", ["--device", "gpu"], ["--device", "gpu"]),
        ("train", ["--dataset", "/no/such/file.txt"], ["--dataset /no/such/file.txt"]),
        ("train", ["--dataset", "wikitext-9"], ["--dataset wikitext-9", "wikitext-"]),
        ("train", ["--data-dir", "/no/such/folder", "--dataset", "wikitext-2"], ["/no/such/folder"]),
        ("train", ["--config", "/no/such.toml"], ["--config /no/such.toml"]),
        ("train", ["--resume", "/no/such/run"], ["--resume", "/no/such/run"]),
        ("train", ["--resume", ""], ["--resume", "it holds no checkpoint"]),  # an empty variable is not a new run
        ("evaluate", [], ["--checkpoint"]),
        ("evaluate", ["--checkpoint", "/no/such/run"], ["--checkpoint", "/no/such/run", "no such folder"]),
        ("evaluate", ["--checkpiont", "x"], ["unknown flag --checkpiont", "did you mean --checkpoint?"]),
        ("generate", ["--checkpoint", "/no/such/run", "--temperature", "0"], ["--temperature 0"]),
        ("generate", ["--checkpoint", "/no/such/run", "--sampler", "magic"], ["--sampler", "'magic'"]),
        ("generate", ["--checkpoint", "/no/such/run", "--max-tokens", "0"], ["--max-tokens 0"]),
        ("generate", ["--checkpoint", "/no/such/run", "--seed", "-1"], ["--seed -1"]),
        ("generate", ["--checkpoint", "/no/such/run", "--strategy", "best"], ["--strategy 'best'", "nucleus 0.9"]),
        ("generate", ["--checkpoint", "x", "--greedy", "--top-k", "5"], ["--greedy doesn't work with --top-k 5"]),
        (
            "generate",
            ["--checkpoint", "x", "--greedy", "--strategy", "combined"],
            ["--greedy doesn't work with --strategy combined"],
        ),
        ("train", ["--dataset", "builtin:1"], ["--dataset builtin:1", "3 splits"]),
    ],
)
def test_bad_flags_are_refused(
    ebmvk: Command, command: str, args: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no runs/ here, whose newest run would be taken
    _is_typed(ebmvk(command, *args), *words)


def test_an_unknown_command_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    from ebmvk.cli import app

    status = app.main(["trian"])
    said = capsys.readouterr()
    _is_typed(Said(status, said.out, said.err), "ebmvk trian", "did you mean 'ebmvk train'?")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\x00\x01\x02\xff" * 500, ["binary"]),
        ("Años y días, siglos y más siglos.\n".encode("latin-1") * 50, ["UTF-8"]),
        (b"Too short.\n\nFor one window.\n", ["tokens"]),
    ],
)
def test_bad_corpora_are_refused(
    ebmvk: Command, tmp_path: Path, tiny: Path, device: str, content: bytes, words: list[str]
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_bytes(content)
    said = ebmvk("train", "--dataset", text, "--config", tiny, "--seq-length", 64, "--device", device, "--run-dir", run)
    _is_typed(said, *words)
    assert not run.exists()


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[training]\nstesp = 3\n", ["training.stesp", "training.steps"]),
        ("[trianing]\nsteps = 3\n", ["trianing", "training"]),
        ("[training]\nsteps = 3.5\n", ["training.steps", "3.5", "whole number"]),
        ("[training]\nsteps = true\n", ["training.steps", "True", "whole number"]),
        ("[model]\nmodel = 'gpt'\n", ["model.model", "'gpt'", "ebm"]),
        ("steps = 3\n", ["steps"]),
        ("[training\n", ["TOML"]),
    ],
)
def test_bad_config_files_are_refused(ebmvk: Command, tmp_path: Path, toml: str, words: list[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(toml, encoding="utf-8")
    _is_typed(ebmvk("train", "--config", path), str(path), *words)


def test_evaluate_names_a_stride_beyond_the_context(ebmvk: Command, trained: Path) -> None:
    _is_typed(ebmvk("evaluate", "--checkpoint", trained, "--stride", 17), "--stride 17", "16")
    _is_typed(ebmvk("evaluate", "--checkpoint", trained, "--split", "test"), "--split test")


def test_vulkan_without_a_usable_device_fails_and_says_why(tiny: Path, text: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none.json")
    environment = {**os.environ, "VK_DRIVER_FILES": nowhere, "VK_ICD_FILENAMES": nowhere}
    command = [sys.executable, "-m", "ebmvk.train", "--device", "vulkan", "--config", tiny, "--dataset", text]
    found = subprocess.run(
        [str(part) for part in (*command, "--run-dir", tmp_path / "run")],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    _is_typed(Said(found.returncode, found.stdout, found.stderr), "ulkan")
    assert not (tmp_path / "run").exists()


# ---- checkpoints ---------------------------------------------------------------------------------


def test_evaluate_refuses_a_checkpoint_of_another_configuration(ebmvk: Command, train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "--steps", 1, "--quiet", "--sample-tokens", 0)
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config.replace("hidden_dim = 32", "hidden_dim = 64"), encoding="utf-8")
    _is_typed(ebmvk("evaluate", "--checkpoint", run), "model.hidden_dim was 32", "64")


def test_another_tokenizer_of_the_same_size_is_refused(ebmvk: Command, train: Command, tmp_path: Path) -> None:
    """Its figures would be wrong without any sign of it."""
    run = tmp_path / "run"
    train(run, "--steps", 1, "--quiet", "--sample-tokens", 0)
    found = json.loads((run / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = found["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (run / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")
    _is_typed(ebmvk("evaluate", "--checkpoint", run), "model.tokenizer", "tokenizer.json")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.toml", b"[training\n", ["config.toml", "TOML"]),
        ("config.toml", b"[data]\nseq_length = -3\n", ["--seq-length -3"]),
        ("config.toml", None, ["config.toml is missing"]),
        ("tokenizer.json", b"{", ["tokenizer.json"]),
        (
            "tokenizer.json",
            b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
            ["tokenizer.json"],
        ),
        ("tokenizer.json", b"\xff\xfe", ["tokenizer.json"]),
        ("tokenizer.json", None, ["tokenizer.json"]),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "generate", "train"])
def test_a_damaged_file_of_the_run_folder_is_named(
    ebmvk: Command, trained: Path, tmp_path: Path, command: str, file: str, content: bytes | None, words: list[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (run / file).unlink()
    if content is not None:
        (run / file).write_bytes(content)
    args = ("--resume", run) if command == "train" else ("--checkpoint", run)
    said = ebmvk(command, *args)
    _is_typed(said, *words)
    assert "--config" not in said.err


@pytest.mark.parametrize(
    "progress",
    [None, {}, {"step": "x"}, {"step": 7}, {"step": 8, "tokens": -1}, {"step": 8, "best_step": "8"}, {"other": 1}],
)
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_checkpoint_without_a_runs_progress_is_refused(
    ebmvk: Command, trained: Path, tmp_path: Path, command: str, progress: object
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / "checkpoints" / "step-8"
    state = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["state"]
    edit(path, state=state | {"progress": progress})
    args = ("--resume", path) if command == "train" else ("--checkpoint", path)
    _is_typed(ebmvk(command, *args), "step-8", "progress")


def test_a_command_that_is_suggested_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my run; now"
    run.mkdir()
    (run / "config.toml").touch()
    with pytest.raises(ConfigError) as error:
        refuse_existing(run)
    assert f"--run-dir '{run}'," in error.value.hint


def test_a_file_where_the_run_folder_should_be_is_refused(ebmvk: Command, tiny: Path, text: Path, device: str) -> None:
    args = ("--config", tiny, "--dataset", text, "--device", device)
    _is_typed(ebmvk("train", *args, "--run-dir", text), str(text), "could not be written")
    assert text.read_text(encoding="utf-8").strip()


def test_a_full_disk_while_training_ends_with_a_typed_error(
    train: Command, ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(run, "--quiet", "--sample-tokens", 0, "--stop-after", 2)
    write_file = atomic.write_file

    def full(path: Path, content: bytes) -> None:
        if path.name == MODEL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_file(path, content)

    monkeypatch.setattr(checkpoint, "write_file", full)
    _is_typed(ebmvk("train", "--resume", "--run-dir", run), "No space left on device", "--resume")
    monkeypatch.undo()
    train(run, "--resume", "--quiet")
    assert len(rows(run, "end")) == 1


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.txt", "report.html"])
def test_a_full_disk_under_any_file_of_the_run_is_a_typed_error(
    ebmvk: Command, train: Command, tmp_path: Path, file: str
) -> None:
    run = tmp_path / "run"
    train(run, "--quiet", "--sample-tokens", 0, "--stop-after", 2)
    content = (run / file).read_bytes() if file == "metrics.jsonl" else b""
    (run / file).unlink(missing_ok=True)
    (run / file).symlink_to("/dev/full")
    _is_typed(ebmvk("train", "--resume", "--run-dir", run, "--sample-tokens", 1), "No space left on device", file)
    (run / file).unlink()
    (run / file).write_bytes(content)
    train(run, "--resume", "--quiet")
    assert rows(run, "end")[-1]["step"] == 8


def test_a_broken_line_of_metrics_costs_no_other_line(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "--quiet", "--sample-tokens", 0, "--stop-after", 2)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')
    train(run, "--resume", "--quiet")
    history = read_metrics(run / "metrics.jsonl")
    assert (history.restarts, history.broken_lines) == (1, 1)
    assert [row["step"] for row in history.steps] == list(range(1, 9))


# ---- numbers that go wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "words"), [("loss", "loss part 'denoise'"), ("gradient", "the gradient of 'trunk."), ("total", "the loss")]
)
def test_non_finite_numbers_never_reach_the_weights(
    train: Command, ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, words: str
) -> None:
    run, real = tmp_path / "run", passes.objective
    train(run, "--quiet", "--sample-tokens", 0, "--stop-after", 2)

    def bad(model: nn.Module, *args: Any, **how: Any) -> Losses:
        losses = real(model, *args, **how)  # type: ignore[arg-type]
        if part == "loss":
            return dataclasses.replace(losses, parts=losses.parts | {"denoise": torch.tensor(float("nan"))})
        if part == "total":
            return dataclasses.replace(losses, total=losses.total * float("inf"))
        weight = next(p for name, p in model.named_parameters() if name.startswith("trunk."))
        weight.register_hook(lambda grad: grad * float("nan"))
        return losses

    monkeypatch.setattr(passes, "objective", bad)
    said = ebmvk("train", "--resume", "--run-dir", run)
    _is_typed(said, "step 3", words, "after step 2", "--lr")
    monkeypatch.undo()
    assert [path.name for path in steps.step_folders(run)] == ["step-2"]
    train(run, "--resume", "--quiet")


def test_chains_that_diverge_end_the_evaluation_and_cost_no_step(
    ebmvk: Command, train: Command, tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(self: Reference, x: torch.Tensor, *args: Any, **kwargs: Any) -> LangevinResult:
        result = langevin(self, x, *args, **kwargs)
        return dataclasses.replace(result, x=torch.full_like(x, math.nan))

    langevin = Reference.langevin
    monkeypatch.setattr(Reference, "langevin", diverged)
    run = tmp_path / "run"
    args = ("--dataset", text, "--config", tiny, "--run-dir", run, "--device", "reference")
    _is_typed(ebmvk("train", *args), "chains are no longer finite", "--langevin-T")
    assert [path.name for path in steps.step_folders(run)] == ["step-4"]
    monkeypatch.undo()
    train(run, "--resume", "--quiet")
    assert [row["step"] for row in rows(run, "eval")] == [4, 8]


def test_a_value_that_json_cannot_express_is_named(tmp_path: Path) -> None:
    with Monitor(tmp_path, quiet=True, log_every=1, total=1, done=0) as monitor:
        with pytest.raises(NonFinite, match=r"step 3: levels\.1\.loss of this eval is nan"):
            monitor.record("eval", 3, {"levels": [{"loss": 1.0}, {"loss": math.nan}]})
        monitor.record("eval", 3, {"levels": [{"loss": 1.0}]})
    assert [row["step"] for row in rows(tmp_path, "eval")] == [3]


def test_all_errors_have_one_base_class() -> None:
    for kind in (CheckpointError, StorageError, NonFinite):
        assert issubclass(kind, EbmvkError)
        assert kind.exit_status == 2


def test_the_error_of_too_large_a_batch_names_one_that_fits(
    train: Command, ebmvk: Command, tmp_path: Path, monkeypatch: Any
) -> None:
    """From the third step on, there is memory for three windows at most. The run tries what fits,
    and goes on with it."""
    objective, calls = passes.objective, iter(range(1000))

    def hungry(model: Any, tokens: Any, *args: Any, share: Share, **more: Any) -> Any:
        if len(tokens[share.rows(len(tokens))]) > 3 and next(calls) >= 2:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return objective(model, tokens, *args, share=share, **more)

    monkeypatch.setattr(passes, "objective", hungry)
    run = tmp_path / "run"
    with pytest.raises(
        AssertionError, match=r"step 3: out of memory with --batch-size 8(.|\n)*--batch-size 2 --accumulation-steps 4"
    ):
        train(run, "--batch-size", 8)
    train(run, "--resume", "--batch-size", 2, "--accumulation-steps", 4)
    assert [row["step"] for row in rows(run, "step")] == list(range(1, 9))
