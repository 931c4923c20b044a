"""Checkpoints come back as they were saved, damage is refused by name, and a save never loses
anything.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.changes import fail_at, forked, kill_at, watched
from ebmvk.engine import select
from ebmvk.errors import CheckpointError, StorageError
from ebmvk.runs import atomic, checkpoint, steps, verified
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.runs.manifest import MANIFEST, MODEL, SOC
from ebmvk.splats.soc import Consolidation
from ebmvk.training import optim

from .conftest import Command
from .damage import CATALOGUE

pytestmark = pytest.mark.usefixtures("no_pictures")

SPLATS = ("--soc-check-interval", 2, "--soc-history", 400, "--soc-threshold", 0.01)


class Small(nn.Module):
    """Two tensors are enough to save."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.bias = nn.Parameter(torch.ones(3))


def _save(run: Path, step: int, model: nn.Module | None = None, *, slot: float = 0.0, keep: bool = False) -> Path:
    state = {"weight/slot": torch.full((2, 3), slot or step), "weight/step": torch.tensor(float(step))}
    return checkpoint.save(run, step, model or Small(), state, {"progress": {"step": step}}, keep=keep)


def _other() -> Small:
    """A model with other weights."""
    model = Small()
    nn.init.zeros_(model.bias)
    return model


def test_loading_gives_back_what_was_saved(tmp_path: Path) -> None:
    model = Small()
    path = _save(tmp_path, 7, model)
    found = checkpoint.load(path)
    assert (found.step, found.state) == (7, {"progress": {"step": 7}})
    assert found.optimizer["weight/slot"].equal(torch.full((2, 3), 7.0))
    other = Small()
    nn.init.zeros_(other.weight)
    checkpoint.restore(other, found)
    assert other.weight.equal(model.weight)
    assert steps.locate(tmp_path, "--checkpoint") == (tmp_path, path)
    assert steps.locate(path, "--checkpoint") == (tmp_path, path)


def test_saving_a_step_again_keeps_the_files_beside_it(tmp_path: Path) -> None:
    """For example a memory, which was built for the same weights."""
    path = _save(tmp_path, 7)
    (path / "memory.safetensors").write_bytes(b"memory")
    checkpoint.save(tmp_path, 7, Small(), checkpoint.load(path).optimizer, {"progress": {"step": 7, "evaluated": 7}})
    assert checkpoint.load(path).state["progress"]["evaluated"] == 7
    assert (path / "memory.safetensors").read_bytes() == b"memory"
    assert [left.name for left in path.parent.iterdir()] == ["step-7"]


def test_files_beside_a_step_stay_with_its_weights_only(tmp_path: Path) -> None:
    path = _save(tmp_path, 7)
    (path / "memory.safetensors").write_bytes(b"memory")
    _save(tmp_path, 7, slot=9.0)
    assert checkpoint.load(path).optimizer["weight/slot"].equal(torch.full((2, 3), 9.0))
    assert (path / "memory.safetensors").read_bytes() == b"memory"
    _save(tmp_path, 7, _other())
    assert not (path / "memory.safetensors").exists()
    assert [left.name for left in path.parent.iterdir()] == ["step-7"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        _save(tmp_path, step)
    steps.point(tmp_path, "best", "step-1")
    steps.prune(tmp_path, keep_last=2)
    assert [path.name for path in steps.step_folders(tmp_path)] == ["step-5", "step-4", "step-1"]


@pytest.mark.parametrize("model", [Small, _other])
def test_checkpoints_that_are_kept_are_never_pruned(model: Callable[[], Small], tmp_path: Path) -> None:
    """They stay even if a run that is resumed there saves the step again."""
    _save(tmp_path, 2, keep=True)
    for step in (1, 2, 3, 4):
        _save(tmp_path, step, model())
    steps.prune(tmp_path, keep_last=1)
    assert [path.name for path in steps.step_folders(tmp_path)] == ["step-4", "step-2"]


@pytest.mark.parametrize("content", [b"", b'{"keep": tr', b'{"format": 1, "step": 1}', None])
def test_pruning_spares_checkpoints_whose_manifest_is_unreadable(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = _save(tmp_path, 1, keep=True) / MANIFEST
    if content is None:
        monkeypatch.setattr(verified, "read_content", _failing(verified.read_content, manifest, errno.EIO))
    else:
        manifest.write_bytes(content)
    for step in (2, 3):
        _save(tmp_path, step)
    steps.prune(tmp_path, keep_last=1)
    assert [path.name for path in steps.step_folders(tmp_path)] == ["step-3", "step-1"]


def _failing(call: Callable[..., bytes], at: Path, number: int) -> Callable[..., bytes]:
    def fails(file: Path, **more: int) -> bytes:
        if file == at:
            raise OSError(number, os.strerror(number))
        return call(file, **more)

    return fails


def test_superseded_checkpoints_that_are_kept_stay(tmp_path: Path) -> None:
    """A run may continue from the same older step several times."""
    for slot, keep in ((1.0, False), (2.0, True), (3.0, True), (4.0, False), (5.0, False)):
        _save(tmp_path, 1)
        _save(tmp_path, 2, slot=slot, keep=keep)
        steps.supersede(tmp_path, 1)
    names = {"step-2.superseded": 2.0, "step-2.superseded-2": 3.0, "step-2.superseded-3": 5.0}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-1", *names}
    for name, slot in names.items():
        found = checkpoint.load(tmp_path / "checkpoints" / name)
        assert found.optimizer["weight/slot"][0, 0] == slot


def test_superseding_deletes_what_the_step_had_replaced(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    _save(tmp_path, 1)
    shutil.copytree(path, path.with_name(".step-2.replaced"))  # as a kill before the folder was tidied leaves it
    steps.supersede(tmp_path, 1)
    assert [path.name for path in steps.step_folders(tmp_path)] == ["step-1"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cant_sync_folders_isnt_an_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    assert checkpoint.load(_save(tmp_path, 1)).step == 1


def test_on_windows_folders_arent_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        windows.setattr(os, "open", None)
        atomic.sync_folder(tmp_path)


# ---- damage --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path) -> Path:
    """A run with checkpoints of steps 4 and 8, and splats in them; to be read only."""
    folder = tmp_path_factory.mktemp("good") / "run"
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", "cpu", "--quiet", *SPLATS]
    assert importlib.import_module("ebmvk.train").main([str(arg) for arg in (*args, "--sample-tokens", 0)]) == 0
    return folder


def go_on(run: OpenRun) -> None:
    """Read everything that training reads from a checkpoint."""
    optim.build(run.model, run.config.training).load_state_dict(run.checkpoint.optimizer)
    sizes = {"d": run.config.model.latent_dim, "vocab_size": run.tokenizer.vocab_size, "steps": 8, "steps_per_epoch": 4}
    splats = Consolidation(run.config.splats, select("reference"), **sizes, seed=int)
    splats.restore(run.checkpoint.soc, str(run.checkpoint.path / SOC))


def test_the_undamaged_checkpoint_is_good(good: Path) -> None:
    """Without this the tests of damage would prove nothing."""
    go_on(open_run(good / "checkpoints" / "step-8", "--checkpoint", print))
    assert len(CATALOGUE) >= 40


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(name: str, good: Path, tmp_path: Path) -> None:
    damage, said = CATALOGUE[name], list[str]()
    run = shutil.copytree(good, tmp_path / "run")
    damage.to(run / "checkpoints" / "step-8")
    with pytest.raises(CheckpointError) as error:
        go_on(open_run(run / "checkpoints" / "step-8", "--checkpoint", print))
    assert damage.words in error.value.what
    lines = str(error.value).splitlines()
    assert len(lines) <= 3
    assert lines[-1].startswith("  try: ")
    found = open_run(run, "--checkpoint", said.append)
    if damage.resume:
        assert found.checkpoint.step == 8  # its weights are good
    else:
        assert found.checkpoint.step == 4
        assert said[0].startswith("skipped step-8: ")
        assert "continuing from step-4" in said[0]


def test_invalid_weights_arent_blamed_on_another_configuration(good: Path, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / "run")
    CATALOGUE["signed: kappa 0"].to(run / "checkpoints" / "step-8")
    with pytest.raises(CheckpointError) as error:
        open_run(run / "checkpoints" / "step-8", "--checkpoint", print)
    assert error.value.why.startswith("training went wrong")
    assert error.value.hint.startswith(f"use an older checkpoint of {run}")


@pytest.mark.parametrize("name", ["step-2-lr", "step-2"])
def test_a_run_may_be_named_like_a_step(name: str, good: Path, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / name)
    assert open_run(run, "--checkpoint", print).checkpoint.step == 8
    assert steps.locate(run / "checkpoints" / "step-4", "--checkpoint") == (run, run / "checkpoints" / "step-4")


@pytest.mark.parametrize("name", ["manifest a pipe", "signed: kappa 0", "splats: mass 0"])
def test_a_command_reports_damage_in_at_most_three_lines(name: str, good: Path, ebmvk: Command, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / "run")
    CATALOGUE[name].to(run / "checkpoints" / "step-8")
    said = ebmvk("train", "--resume", run / "checkpoints" / "step-8", "--quiet", "--steps", 9)
    assert said.status == 2
    assert CATALOGUE[name].words in said.err
    assert len(said.err.splitlines()) <= 3


@pytest.mark.parametrize("content", [b"checkpoints/step-99", b"../../step-1", b"\xff\xfe", b"", None])
def test_a_damaged_pointer_is_ignored(content: bytes | None, good: Path, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / "run")
    for name in ("latest", "best"):
        (run / name).unlink()
        if content is None:
            (run / name).mkdir()
        else:
            (run / name).write_bytes(content)
    assert open_run(run, "--checkpoint", print).checkpoint.step == 8


NAMES = {"best": 4, "ckpt_best": 4, "latest": 8, "ckpt_last": 8}


@pytest.mark.parametrize("name", NAMES)
def test_latest_and_best_open_the_checkpoint_that_they_name(name: str, good: Path, tmp_path: Path) -> None:
    """They do so whatever came after; if the checkpoint is damaged, no other is taken instead."""
    run = shutil.copytree(good, tmp_path / "run")
    steps.point(run, "best", "step-4")
    found = open_run(run / name, "--checkpoint", print)
    assert (found.folder, found.checkpoint.step) == (run, NAMES[name])
    assert steps.locate(run / name, "--checkpoint") == (run, run / "checkpoints" / f"step-{NAMES[name]}")
    (found.checkpoint.path / MODEL).unlink()
    with pytest.raises(CheckpointError, match=f"step-{NAMES[name]}.*{MODEL}"):
        open_run(run / name, "--checkpoint", print)


@pytest.mark.parametrize(
    "content", [b"checkpoints/step-99", b"../../step-1", b"checkpoints/../../run", b"\xff\xfe", b"x" * 2000, b""]
)
@pytest.mark.parametrize("name", ["best", "ckpt_best"])
def test_a_pointer_to_nothing_is_refused(name: str, content: bytes, good: Path, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / "run")
    (run / "best").write_bytes(content)
    words = "it names step-99, which does not exist" if content.endswith(b"-99") else "there is no such folder"
    with pytest.raises(CheckpointError, match=f"--checkpoint .*{name}: {words}"):
        open_run(run / name, "--checkpoint", print)


def test_a_run_may_be_named_best(good: Path, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / "best")
    assert open_run(run, "--checkpoint", print).checkpoint.step == 8


def test_a_run_can_resume_from_its_best(good: Path, ebmvk: Command, tmp_path: Path) -> None:
    run = shutil.copytree(good, tmp_path / "run")
    steps.point(run, "best", "step-4")
    said = ebmvk("train", "--resume", run / "best", "--quiet", "--steps", 5, "--sample-tokens", 0)
    assert said.status == 0, said.err
    assert (run / "checkpoints" / "step-8.superseded").is_dir()
    assert [path.name for path in steps.step_folders(run)] == ["step-5", "step-4"]


@pytest.mark.parametrize("path", ["x" * 300, "nul\0", "circle"])
def test_a_path_that_cannot_be_looked_up_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(CheckpointError, match="--checkpoint"):
        open_run(tmp_path / path, "--checkpoint", print)


# ---- kills and failures at every change of a save ------------------------------------------------


def _before(run: Path) -> None:
    for step in (1, 2):
        _save(run, step)
    steps.point(run, "best", "step-2")


def _again(run: Path) -> None:
    """Save the best step so far again, with another state."""
    model, optimizer = Small(), checkpoint.load(run / "checkpoints" / "step-2").optimizer
    checkpoint.save(run, 2, model, optimizer, {"progress": {"step": 2, "evaluated": 2}})


def _anew(run: Path) -> None:
    """Reach the step of `_again` again, with other weights."""
    _save(run, 2, _other())


def _next(run: Path) -> None:
    """Do all that a trainer does at a save."""
    path = _save(run, 3)
    steps.point(run, "best", path.name)
    steps.prune(run, keep_last=1)


def _usable(run: Path) -> int:
    """The step of the newest checkpoint. Also checks that the next save leaves no other files
    behind.
    """
    step = checkpoint.newest_complete(run, "--resume", print).step
    _next(run)
    assert checkpoint.newest_complete(run, "--resume", print).step == 3
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-3"]
    return step


@pytest.mark.parametrize("work", [_next, _again, _anew])
def test_a_kill_at_any_change_of_a_save_loses_nothing(work: Callable[[Path], None], tmp_path: Path) -> None:
    steps = []
    for nth in count(1):
        run = tmp_path / str(nth)
        _before(run)

        def killed(run: Path = run, nth: int = nth) -> None:
            with watched(kill_at(nth)):
                work(run)

        status = forked(killed)
        assert status in (0, -signal.SIGKILL)
        steps.append(_usable(run))
        if status == 0:
            break
    assert len(steps) > 15  # the save was killed at each of these changes
    assert steps == sorted(steps)  # the save takes effect at one of them
    assert (steps[0], steps[-1]) == ((2, 3) if work is _next else (2, 2))


def _failure(work: Callable[[], object]) -> StorageError | None:
    try:
        work()
    except StorageError as error:
        return error
    return None


@pytest.mark.parametrize("step", [3, 2])
@pytest.mark.parametrize(("number", "lasting"), [(errno.ENOSPC, False), (errno.EROFS, True)])
def test_a_failure_at_any_change_of_a_save_is_a_typed_error_and_loses_nothing(
    step: int, number: int, lasting: bool, tmp_path: Path
) -> None:
    """The disk is full for a moment, or the folder stays read-only. If only tidying up fails, the
    save succeeds.
    """
    failed = []
    for nth in count(1):
        run = tmp_path / str(nth)
        _before(run)
        with watched(fail_at(nth, number, lasting=lasting)) as changes:
            error = _failure(lambda run=run: _save(run, step, _other()))
        if error:
            failed.append(nth)
            assert len(str(error).splitlines()) == 3
            assert os.strerror(number) in error.what
        assert _usable(run) in ((2, step) if error else (step,))
        if changes.made < nth:
            break
    assert len(failed) > 15
