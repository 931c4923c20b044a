"""A second process that would write into a run folder is refused, and a dead process never blocks
others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebmvk.errors import FolderInUse, StorageError
from ebmvk.runs import lock
from ebmvk.runs.lock import LOCK_FILE, locked
from ebmvk.sweeps.planned import PlannedRun

from .conftest import Command

SAID: list[str] = []


def forked(body: Callable[[], Any]) -> int:
    """The id of a forked process that runs the body alone, and ends with status 1 if it raises."""
    child = os.fork()
    if not child:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return child


def test_a_second_writer_is_refused_but_readers_arent(
    trained: Path, ebmvk: Command, text: Path, tiny: Path, device: str
) -> None:
    before = sorted(path.name for path in trained.iterdir())
    with locked(trained, SAID.append):
        for command in (("train", "--resume", "--run-dir", trained, "--steps", 9), ("memory", "--checkpoint", trained)):
            said = ebmvk(*command, "--device", device)
            assert said.status == 2
            assert f"{trained} is in use: process {os.getpid()} on {socket.gethostname()}" in said.err
        new = ("train", "--run-dir", trained, "--dataset", text, "--config", tiny, "--device", device)
        assert "is in use" in ebmvk(*new).err
        assert "is in use" not in ebmvk(*new, "--dry-run").err
        for reader in (("evaluate", "--limit", 20), ("generate", "--max-tokens", 2)):
            assert ebmvk(*reader, "--checkpoint", trained, "--device", device).status == 0
    assert sorted(path.name for path in trained.iterdir()) == before
    assert SAID == []


def test_a_planned_run_that_another_process_has_begun_isnt_deleted(tmp_path: Path) -> None:
    planned = PlannedRun(tmp_path / "run", (), {})
    planned.note.write_text('{"arguments": []}', encoding="utf-8")
    with locked(planned.folder, print):
        (planned.folder / "config.toml").touch()
        with pytest.raises(FolderInUse):
            planned.train(threads=1)
        assert (planned.folder / "config.toml").exists()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ready, told = os.pipe()

    def hold() -> None:
        with locked(run, print):
            os.write(told, b"!")
            signal.pause()

    child = forked(hold)
    try:
        os.read(ready, 1)
        with pytest.raises(FolderInUse, match=f"process {child} on"), locked(run, print):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (run / LOCK_FILE).exists()  # a killed process can't remove it
    with locked(run, print):
        assert str(os.getpid()) in (run / LOCK_FILE).read_text(encoding="utf-8")
    assert not (run / LOCK_FILE).exists()


def test_a_fork_doesnt_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ready, told = os.pipe()

    def hold() -> None:
        with locked(run, print):
            child = forked(signal.pause)
            os.write(told, child.to_bytes(8, "little"))
            signal.pause()

    parent = forked(hold)
    child = int.from_bytes(os.read(ready, 8), "little")
    try:
        with pytest.raises(FolderInUse), locked(run, print):
            pass
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        with locked(run, print):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_that_leaves_the_block_keeps_the_parents_lock(tmp_path: Path) -> None:
    with contextlib.ExitStack() as block:
        block.enter_context(locked(tmp_path, print))
        os.waitpid(forked(block.close), 0)
        with pytest.raises(FolderInUse), locked(tmp_path, print):
            pass


def test_a_lock_file_that_was_deleted_on_the_server_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, stale = lock.fcntl.flock, [errno.ESTALE]

    def flock(*args: Any) -> None:
        if stale:
            raise OSError(stale.pop(), "Stale file handle")
        real(*args)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    said: list[str] = []
    with locked(tmp_path, said.append), pytest.raises(FolderInUse), locked(tmp_path, said.append):
        pass
    assert said == []


def test_a_folder_that_was_just_removed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, times = Path.mkdir, [1, 2]

    def mkdir(folder: Path, *args: Any, **how: Any) -> None:
        real(folder, *args, **how)
        if times:
            times.pop()
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with locked(tmp_path / "run", print):
        assert (tmp_path / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "run").exists()


def test_only_one_holds_the_lock_although_each_deletes_its_file(tmp_path: Path) -> None:
    """Processes count in a file, reading and writing separately, so two at once would lose a
    count."""
    total = tmp_path / "total"
    total.write_text("0", encoding="utf-8")

    def count() -> None:
        done = 0
        while done < 40:
            try:
                with locked(tmp_path / "run", print):
                    seen = int(total.read_text(encoding="utf-8"))
                    time.sleep(0)
                    total.write_text(str(seen + 1), encoding="utf-8")
                done += 1
            except FolderInUse:
                time.sleep(0.0005)

    children = [forked(count) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert total.read_text(encoding="utf-8") == "160"


@pytest.mark.parametrize("missing", [errno.ENOTSUP, errno.ENOLCK, None])
def test_a_file_system_without_locks_gives_a_warning(
    missing: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def refuse(*_: Any) -> None:
            raise OSError(missing, os.strerror(missing))

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    said: list[str] = []
    with locked(tmp_path, said.append), locked(tmp_path, said.append):
        pass
    assert len(said) == 2
    assert "would not be noticed" in said[0]


def test_quiet_runs_warn_about_missing_locks_too(
    trained: Path, ebmvk: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    said = ebmvk("train", "--resume", "--run-dir", trained, "--steps", 1, "--device", "cpu", "--quiet")
    assert said.err.startswith(f"not locked  {trained}: ")
    assert "--steps 1 is less than the" in said.err


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "a", print):
        pass
    assert not (tmp_path / "runs" / "a").exists()
    with locked(tmp_path / "runs" / "a", print):
        (tmp_path / "runs" / "a" / "config.toml").touch()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["config.toml"]
    with pytest.raises(StorageError, match="locking"), locked(tmp_path / "runs" / "a" / "config.toml", print):
        pass
