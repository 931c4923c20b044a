"""`train --dry-run` prints what a run would take, and refuses a run that would not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ebmvk.host import resources
from ebmvk.ranks import Share
from ebmvk.runs.folder import open_run
from ebmvk.training import passes, rehearsal, trainer

from .conftest import Command, rows

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def dry(ebmvk: Command, tiny: Path, text: Path, tmp_path: Path, device: str) -> Command:
    def call(*args: Any) -> Any:
        own = ("--dataset", text, "--config", tiny, "--run-dir", tmp_path / "runs" / "run", "--device", device)
        return ebmvk("train", *own, "--dry-run", *args)

    return call


@pytest.mark.parametrize("model", ["ebm", "infinito"])
def test_a_dry_run_prints_what_the_run_would_take_and_leaves_nothing(
    model: str, dry: Command, tmp_path: Path, trained: Path
) -> None:
    said = dry("--model", model, "--quiet")
    assert said.status == 0, said.err
    told = {line.split()[0]: line for line in said.out.splitlines()}
    assert list(told) == ["parameters", "speed", "memory", "disk", "time"]
    assert "tokens/s: 64 tokens in" in told["speed"]
    assert "--batch-size 8" in told["memory"]
    assert "for 5 checkpoints" in told["disk"]
    assert "for 15 checkpoints" in dry("--quiet", "--epochs", 10, "--keep-epochs", 1).out
    assert "for 8 steps" in told["time"]
    assert "2 evaluations and the last one" in told["time"]
    if model == "ebm":
        parameters = rehearsal.parameters(open_run(trained, "", print).model)
        assert sum(parameters.values()) == rows(trained, "start")[0]["parameters"]
        for part, count in parameters.items():
            assert f"{part} {count:,}" in told["parameters"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_resumed_run_counts_the_steps_left_and_changes_nothing(
    train: Command, ebmvk: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, "--quiet", "--stop-after", 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = ebmvk("train", "--resume", "--run-dir", run, "--dry-run", "--quiet")
    assert said.status == 0, said.err
    assert "for 6 steps" in said.out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} | {run: 0, tmp_path: 0} == before | {
        run: 0,
        tmp_path: 0,
    }


def test_a_model_that_does_not_fit_is_refused_before_it_is_tried(
    dry: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "obtainable", lambda _: 100_000)
    monkeypatch.setattr(trainer.Trainer, "step", lambda _: pytest.fail("tried"))
    said = dry()
    assert said.status == 2
    assert "100.0 kB are available" in said.err
    assert "--latent-dim 16" in said.err
    assert "--latent-dim 12" in dry("--latent-dim", 36, "--n-heads", 6).err  # must be a multiple of 12
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_batch_that_does_not_fit_names_one_that_would(
    dry: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = passes.objective

    def hungry(model: Any, tokens: Any, *args: Any, share: Share, **more: Any) -> Any:
        if len(tokens[share.rows(len(tokens))]) > 2:
            raise MemoryError
        return objective(model, tokens, *args, share=share, **more)

    monkeypatch.setattr(passes, "objective", hungry)
    said = dry()
    assert said.status == 2
    assert "error: --batch-size 4 does not fit" in said.err
    assert "use --batch-size 2 --accumulation-steps 2" in said.err
    assert list(tmp_path.iterdir()) == []


def test_the_memory_of_twice_the_batch_is_bounded_if_trying_it_is_not_safe(
    dry: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "obtainable", lambda _: 600_000_000)
    monkeypatch.setattr(resources, "step_peak", lambda _: 400_000_000)
    said = dry("--quiet")
    assert said.status == 0, said.err
    assert "400.0 MB of 600.0 MB available at the peak; with --batch-size 8 at most 800.0 MB" in said.out


@pytest.mark.parametrize(("free", "hint"), [(20_000_000, "use --keep-last "), (20_000, "larger disk")])
def test_a_disk_without_room_for_the_checkpoints_is_refused(
    free: int, hint: str, dry: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "disk_free", lambda _: free)
    said = dry("--quiet", "--keep-last", 1000)
    assert said.status == 2
    assert "but only" in said.err
    assert hint in said.err
    if "--keep-last" in hint:
        most = said.err.partition(hint)[2].split()[0]
        assert dry("--quiet", "--keep-last", most).status == 0
        assert dry("--quiet", "--keep-last", int(most) + 1).status == 2
