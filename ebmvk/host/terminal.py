"""Makes standard output and error robust: any encoding, a closed pipe, a closed terminal; wraps
long lines.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import textwrap
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SIGNS = {
    **dict.fromkeys("−–‐‑", "-"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict(
        zip("—…·•×÷≈→←≤≥≠±", ["--", "...", ".", "*", "x", "/", "~", "->", "<-", "<=", ">=", "!=", "+-"], strict=True)
    ),
    **dict(zip("∞√∑²³½°µ", ["inf", "sqrt", "sum", "^2", "^3", "1/2", "deg", "mu"], strict=True)),
}


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encodings: ASCII for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_readable(sign, alone=len(lacking) == 1) for sign in lacking), error.end


def _readable(sign: str, *, alone: bool) -> str:
    """ASCII for a character: a similar sign, the name of a single Greek letter, or else an
    escape."""
    kind, _, name = unicodedata.name(sign, "").partition(" ")
    if kind == "BOX":
        return "+" if "AND" in name.split() else "|" if "VERTICAL" in name else "-"
    if kind == "GREEK" and alone:
        last = name.split()[-1]
        return last.lower() if "SMALL" in name else last.capitalize()
    return _SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode()


codecs.register_error("ebmvk.readable", _substitute)


def prepare() -> None:
    """Let standard output and error take every character, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # not a file, or closed
            stream.reconfigure(errors="ebmvk.readable")  # type: ignore[union-attr]


LABEL = 12  # columns of the label that lines of a run start with


def width() -> int | None:
    """The columns of the terminal that lines may fill; None if standard output isn't a terminal."""
    return max(40, shutil.get_terminal_size().columns - 1) if sys.stdout.isatty() else None


def hanging(text: str) -> str:
    """The text; on a terminal, its long lines are wrapped and indented past their label."""
    columns = width()
    if columns is None:
        return text
    indent = " " * LABEL
    return "\n".join(
        textwrap.fill(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def is_of_output(error: OSError) -> bool:
    """True if printing may have caused the error: it names no file, and writing can't continue
    after it.
    """
    kinds = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
    return error.filename is None and error.errno in kinds


def is_broken() -> bool:
    """True if buffered standard output can't be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def let_go() -> None:
    """Discard standard output from now on, so that nothing fails when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):  # not a file
        _discard(sys.stdout.fileno())


def let_go_of(terminals: list[int]) -> None:
    """Discard what is written to these file descriptors from now on."""
    for number in terminals:
        with contextlib.suppress(OSError):
            _discard(number)


def terminals() -> list[int]:
    """The file descriptors of standard output and error that are terminals."""
    return [number for number in (1, 2) if os.isatty(number)]


class _Outliving(io.FileIO):
    """A terminal's file descriptor. Once the terminal was closed, what is written is discarded.

    A write can fail before the handler of SIGHUP has run, and a background process gets no SIGHUP.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENXIO):
                raise
            _discard(self.fileno())
            return super().write(data)


@contextlib.contextmanager
def outlived() -> Iterator[None]:
    """Within this block, writing to a closed terminal does not fail."""
    before = sys.stdout, sys.stderr
    try:
        sys.stdout, sys.stderr = map(_outliving, before)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _outliving(stream: TextIO) -> TextIO:
    if stream is None or not stream.isatty():  # None: a program without a console
        return stream
    try:
        number = stream.fileno()
    except OSError:  # a notebook's stream has no file descriptor
        return stream
    stream.flush()
    raw = io.BufferedWriter(_Outliving(number, "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


def _discard(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def ending_signals() -> tuple[signal.Signals, ...]:
    """Signals that ask a process to end: Ctrl-C, kill, and a closed terminal (unless `nohup`
    ignores that).
    """
    hangup = getattr(signal, "SIGHUP", None)  # Windows has no SIGHUP
    heeded = hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, hangup) if heeded and hangup else (signal.SIGINT, signal.SIGTERM)


def printable(text: str) -> str:
    """The text with escapes in place of characters that control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
