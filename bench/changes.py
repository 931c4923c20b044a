"""Every change that this process makes to files, one by one: what kills and failures are injected at.

Counted are the calls of the standard library that everything here goes through: open for writing, write, fsync, mkdir,
rename, replace, unlink, rmdir. A write counts twice, before it and after its first half.
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
    """before: told the number, from 1, of a change that is about to be made; what it raises, the call raises.
    made: how many there were."""

    before: Callable[[int], None]
    made: int = 0

    def next(self) -> None:
        self.made += 1
        self.before(self.made)


@contextmanager
def watched(before: Callable[[int], None]) -> Iterator[Changes]:
    """Within the block, tell `before` of every change."""
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
    """A file whose writes are told of, and come in halves."""

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
    """SIGKILL to this process at its n-th change."""

    def before(number: int) -> None:
        if number == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def fail_at(first: int, error: int, *, lasting: bool) -> Callable[[int], None]:
    """OSError of number `error` at one change, and where it is lasting at all that follow."""

    def before(number: int) -> None:
        if number == first or (lasting and number > first):
            raise OSError(error, os.strerror(error))

    return before


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process to its end; its exit status, negative for a signal. 99: it raised."""
    return os.waitstatus_to_exitcode(os.waitpid(start(work), 0)[1])


def start(work: Callable[[], object]) -> int:
    """`forked`, without waiting for its end: the number of its process."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        result = work()
        status = result if isinstance(result, int) else 0
    finally:
        os._exit(status)
