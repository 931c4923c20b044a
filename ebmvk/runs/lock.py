"""Lets one process at a time write into a run folder.

The lock belongs to the operating system, which releases it when its holder dies, so none is ever
left behind.
"""

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
from ebmvk.runs.atomic import storage_error
from ebmvk.runs.layout import LOCK_FILE

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_files = weakref.WeakSet[IO[str]]()  # locked by this process


def _leave() -> None:
    """Release the locks in a fork, which shares them and would keep them after its parent has
    died."""
    for file in _files:
        file.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave)


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A block during which no other process can write into a run folder.

    If the folder doesn't exist, it is made, and removed again if it is empty at the end. say:
    called with a warning if the file system has no locks; the block then runs without one.

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
            if not file.closed:  # closed in a fork: the lock stays with the parent
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
                raise OSError("this system has no file locks")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise _in_use(path, file) from None
        except OSError as error:
            if error.errno == errno.ESTALE:  # over NFS: it was deleted since it was opened
                file.close()
                continue
            say(f"not locked  {path.parent}: {error}. A second run that writes here would not be noticed")
            return file
        # The previous holder may have deleted the file since it was opened; then a newer file is
        # the lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _opened(path: Path, tries: int = 20) -> IO[str]:
    """Open the lock's file, although its previous holder may be removing the folder.

    Raises OSError.
    """
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
        f"{path.parent} is in use: {who} is writing into it",
        why="two processes in one run folder would spoil each other's checkpoints and metrics",
        hint="wait until it has finished, stop it with Ctrl-C or SIGTERM (it saves), or use another --run-dir",
    )
