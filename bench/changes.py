"""Counts every change that this process makes to files, to inject kills and failures there.

Counts the calls of the standard library that all our code uses: open for writing, write, fsync,
mkdir, rename, replace, unlink, rmdir. A write counts twice: before it and after its first half.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

CALLS = ("fsync", "mkdir", "rename", "replace", "unlink", "remove", "rmdir")


@dataclass
class Changes:
    """Counts changes, and calls `before` with the number of each one, from 1, before it is made.

    If `before` raises an error, the call that makes the change raises it. made: the number of
    changes so far.
    """

    before: Callable[[int], None]
    made: int = 0

    def next(self) -> None:
        self.made += 1
        self.before(self.made)


@contextmanager
def watched(before: Callable[[int], None]) -> Iterator[Changes]:
    """Within the block, call `before` before every change."""
    changes, open_file = Changes(before), io.open

    def telling(call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **more: Any) -> Any:
            changes.next()
            return call(*args, **more)

        return told

    def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if not set(mode) & set("wax+"):
            return open_file(file, mode, *args, **more)
        changes.next()
        return _Written(open_file(file, mode, *args, **more), changes)

    calls: dict[str, Any] = {name: telling(getattr(os, name)) for name in CALLS}
    with patch.multiple(os, **calls), patch.object(io, "open", opened):
        yield changes


class _Written:
    """A file that reports its writes and makes each in two halves."""

    def __init__(self, file: Any, changes: Changes) -> None:
        self._file, self._changes = file, changes

    def write(self, content: Any) -> int:
        self._changes.next()
        middle = len(content) // 2
        written: int = self._file.write(content[:middle])
        self._file.flush()
        self._changes.next()
        return written + int(self._file.write(content[middle:]))

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def kill_at(nth: int) -> Callable[[int], None]:
    """Sends SIGKILL to this process at its n-th change."""

    def before(number: int) -> None:
        if number == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def fail_at(first: int, error: int, *, lasting: bool) -> Callable[[int], None]:
    """Raises an OSError with number `error` at one change, and if `lasting` at all later ones."""

    def before(number: int) -> None:
        if number == first or (lasting and number > first):
            raise OSError(error, os.strerror(error))

    return before


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process and wait for it.

    Returns its exit status: negative if a signal killed it, 99 if it raised an error.
    """
    return os.waitstatus_to_exitcode(os.waitpid(start(work), 0)[1])


def start(work: Callable[[], object]) -> int:
    """Like `forked`, without waiting; returns the process id."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        result = work()
        status = result if isinstance(result, int) else 0
    finally:
        os._exit(status)
