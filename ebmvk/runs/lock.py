"""One writer at a time in a run folder: a lock of the operating system, which it takes back from whoever dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ebmvk.errors import FolderInUse
from ebmvk.runs.checkpoint import storage_error
from ebmvk.runs.layout import LOCK_FILE

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_files = weakref.WeakSet[IO[str]]()  # that this process has locked


def _leave() -> None:
    """A fork shares its parent's locks, and would keep them after the parent has died."""
    for file in _files:
        file.close()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_leave)


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A block in which nobody else writes into a run folder. It is made where there is none, and removed if nothing has
    been put into it by the end. say: told where the file system has no locks, so that nothing is refused.

    Raises:
        FolderInUse: another process is in such a block. StorageError: no file can be made there.
    """
    path = folder / LOCK_FILE
    try:
        new = not folder.exists()
        file = _taken(path, say)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError as error:
        raise storage_error(path, error, "locking the run folder", "try again") from error
    with file:
        try:
            yield
        finally:
            if not file.closed:  # in a fork it is: there the lock is the parent's
                with contextlib.suppress(OSError):
                    path.unlink()
                    if new:
                        folder.rmdir()


def _taken(path: Path, say: Callable[[str], None]) -> IO[str]:
    """The lock's file, open and locked. Raises FolderInUse, OSError."""
    while True:
        file = _opened(path)
        _files.add(file)
        try:
            if fcntl is None:
                raise OSError("this system has none that we know")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise _in_use(path, file) from None
        except OSError as error:
            if error.errno == errno.ESTALE:  # over NFS: it was deleted since it was opened
                file.close()
                continue
            say(f"not locked  {path.parent}: no locks ({error}); a second run that writes here would not be noticed")
            return file
        # Whoever had the lock before may have deleted the file since it was opened: then another one is the lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _opened(path: Path, tries: int = 20) -> IO[str]:
    """The file, in a folder that whoever had the lock before may remove meanwhile. Raises OSError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8", errors="replace")
    except (FileExistsError, FileNotFoundError):
        if not tries:
            raise
    return _opened(path, tries - 1)


def _in_use(path: Path, file: IO[str]) -> FolderInUse:
    file.seek(0)
    who = file.read().strip() or "another process"
    return FolderInUse(
        f"{path.parent} is in use: {who} writes into it",
        why="two that write into one run folder would spoil each other's checkpoints and metrics",
        hint="wait until it has finished, stop it with Ctrl-C or SIGTERM (it saves), or take another --run-dir",
    )
