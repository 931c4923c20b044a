"""Reads one text file exactly as it is, plain or gzipped, and refuses what isn't text.

Also writes text files whole or not at all, and turns paths into names for messages and settings.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import os
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path

from ebmvk.data import formats
from ebmvk.errors import ConfigError, DataError
from ebmvk.host.terminal import printable

BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Reading:
    """How text files are read.

    include: glob patterns. In a folder, files that match one are also read. A pattern with a slash
        is matched against the path inside the folder.
    raw: read formats with rows or markup (JSON, CSV, HTML …) as plain text.
    keep_bom: if a file starts with a byte order mark, keep the mark, as earlier versions did.
    """

    include: tuple[str, ...] = ()
    raw: bool = False
    keep_bom: bool = False

    def __post_init__(self) -> None:
        for pattern in self.include:
            if not pattern.strip() or pattern.startswith(("/", "~")) or ".." in pattern.split("/"):
                raise ConfigError(
                    f"--include {pattern!r} isn't a pattern for names inside the folder",
                    hint="give one such as '*.py' or 'src/*.c'",
                )

    def takes(self, name: str) -> bool:
        """True if a pattern matches a path inside the folder, ignoring case."""
        name = name.lower()
        patterns = [pattern.lower() for pattern in self.include]
        return any(fnmatch.fnmatchcase(name if "/" in p else name.rsplit("/", 1)[-1], p) for p in patterns)


AS_IT_COMES = Reading()
ANYTHING = Reading(raw=True)


class NoText(DataError):
    """The error for a file without readable text.

    reason: a word or two, for a summary of many files.
    """

    def __init__(self, what: str, *, hint: str, reason: str, why: str = "") -> None:
        super().__init__(what, hint=hint, why=why)
        self.reason = reason


def shown(path: Path | str) -> str:
    """A path for messages: bytes that aren't UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return printable(text)


def exists(path: Path) -> bool:
    """True if the file or folder exists; False also for impossible names, such as too long ones."""
    try:
        return path.exists()
    except OSError:
        return False


def read_text(path: Path, reading: Reading = AS_IT_COMES) -> str:
    """The text of one file, with its line ends; unpacks gzip and drops a byte order mark.

    Raises:
        NoText: the file cannot be read, is empty, binary or not UTF-8, or its format isn't plain
            text.
    """
    raw, name = _read_bytes(path), shown(path)
    _refuse_binary(raw, path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoText(
            f"{name} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}",
            why="it is binary, or in an older encoding such as Latin-1",
            hint=f"convert it to UTF-8, for example: iconv -f LATIN1 -t UTF-8 {shlex.quote(shown(path.name))}",
            reason="not UTF-8",
        ) from error
    if not reading.keep_bom:
        text = text.removeprefix(BYTE_ORDER_MARK)
    if not text.strip():
        what = f"{name} is empty: {len(raw)} bytes, no text"
        raise NoText(what, hint="give a file or folder that holds text", reason="empty")
    if not reading.raw and (found := formats.of_text(text.removeprefix(BYTE_ORDER_MARK), path)):
        raise _of_format(found, path)
    return text


def _refuse_binary(raw: bytes, path: Path) -> None:
    if found := formats.of_bytes(raw, path):
        raise _of_format(found, path)
    if b"\0" not in raw:
        return
    wide = raw.startswith((b"\xff\xfe", b"\xfe\xff")) or raw[:200].count(b"\0") * 3 > len(raw[:200])
    raise NoText(
        f"{shown(path)} is not a text file: it has a NUL byte at offset {raw.index(0)}",
        why="it is UTF-16" if wide else "it is binary",
        hint=f"convert it to UTF-8, for example: iconv -f UTF-16 -t UTF-8 {shlex.quote(shown(path.name))}"
        if wide
        else "name a text file, or a folder of text files",
        reason="UTF-16" if wide else "binary",
    )


def _of_format(found: formats.Format, path: Path) -> NoText:
    return NoText(
        f"{shown(path)} isn't plain text: it was recognised as {found.name}",
        why="its brackets, quotes or tags would be learnt as if they were text" if found.text else "",
        hint=found.hint(Path(shown(path))),
        reason=found.name + (", see --raw" if found.text else ""),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        packed = raw.startswith(b"\x1f\x8b") or path.suffix.lower() == ".gz"
        return gzip.decompress(raw) if packed else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = f"{shown(path)} is a damaged or incomplete gzip file: {error}"
        raise NoText(what, hint="download it again", reason="damaged gzip") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        what = f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise NoText(what, hint="check the name and the file's permissions", reason="unreadable") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text. Only \\n and \\r\\n end a line; a last line end adds no empty line."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


# ---- paths ---------------------------------------------------------------------------------------


def path_of(dataset: str) -> Path:
    """The value of --dataset as a path, with `~` expanded if there is such a user."""
    try:
        return Path(dataset).expanduser()
    except RuntimeError:
        return Path(dataset)


def _absolute(path: Path) -> Path:
    """The absolute path; a link keeps its own name."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def from_anywhere(path: Path) -> str:
    """The absolute path of a file or folder, which finds it again from any folder.

    Settings can only store UTF-8. If the name of a parent folder isn't UTF-8, the path is returned
    as given.
    """
    whole = str(_absolute(path))
    try:
        whole.encode()
    except UnicodeEncodeError:
        return str(path)
    return whole


def name_of(path: Path) -> str:
    """A corpus's name, such as `input` for input.txt.gz, or a folder's own name; never empty."""
    name = shown(_absolute(path).name)
    return name.removesuffix(".gz").removesuffix(".txt") or name
