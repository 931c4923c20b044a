"""Runs a command: exit status, typed errors without a traceback, lost output, several processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ebmvk.errors import INTERRUPTED, ConfigError, EbmvkError, StorageError
from ebmvk.host import terminal

if TYPE_CHECKING:
    from ebmvk.ranks import Handler, Ranks


def run(body: Callable[[], int], *, saves: bool = False) -> int:
    """Run `body` and return its exit status; a typed error is printed in up to three lines.

    saves: the command saves its work while it runs; the message after Ctrl-C says so.
    """
    terminal.prepare()
    try:
        return _written(body)
    except EbmvkError as error:
        if not error.told:
            _complain(f"error: {_rank()}{error}")
        return error.exit_status
    except KeyboardInterrupt:
        _complain("interrupted; what was saved is intact" if saves else "interrupted")
        return INTERRUPTED
    except OSError as error:
        if not terminal.is_of_output(error):
            raise
        return _output_lost(error)


def _written(body: Callable[[], int]) -> int:
    """Run `body` and flush its output; returns its exit status."""
    try:
        status = body()
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _complain(text: str) -> None:
    """Print to standard error, if it is open."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    if terminal.is_broken():  # or the interpreter would fail at exit
        terminal.let_go()


def _output_lost(error: OSError) -> int:
    """Print that standard output could not be written, unless its reader has gone; returns 1."""
    if isinstance(error, BrokenPipeError):
        terminal.let_go()
        return 1
    lost = StorageError(
        f"standard output could not be written: {error.strerror or error}",
        hint="free some space, or write to another file",
    )
    terminal.let_go()
    _complain(f"error: {_rank()}{lost}")
    return lost.exit_status


def _rank() -> str:
    """A prefix for messages that tells which of several processes this is; empty for the first."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" or os.environ.get("WORLD_SIZE", "1") == "1" else f"rank {rank}: "


def processes() -> int:
    """The number of processes that torchrun has started. Raises ConfigError."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or not int(given):
        raise ConfigError(f"WORLD_SIZE={given} is not a number of processes", hint="unset it, or start with torchrun")
    return int(given)


def lead(body: Callable[[Ranks | None], int], followers: Callable[[Ranks], Mapping[str, Handler]]) -> int:
    """Run `body` in the first process of torchrun and return its exit status.

    The other processes do what it tells them. With one process, `body` is called with None and
    nothing is imported.

    followers: returns {name: function}, what the first process can tell the others to do.
    """
    if processes() == 1:
        return body(None)
    from ebmvk.ranks import Ranks

    ranks = Ranks.join()
    with ranks.together():
        if ranks.rank:
            return ranks.follow(followers(ranks))
        try:
            status = body(ranks)
        except SystemExit as stop:  # --help
            status = int(stop.code or 0)
        ranks.tell("end", status=status)
        return status


def write_output(path: Path, text: str, flag: str) -> None:
    """Write the file that a flag names, whole or not at all; makes its folder.

    Raises StorageError.
    """
    from ebmvk.data.files import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise StorageError(
            f"{flag} {path} could not be written: {error.strerror or error}", hint=f"give {flag} a writable place"
        ) from error
