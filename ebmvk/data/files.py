"""Text files as people have them: plain or gzipped, one or a folder of them, exact to the byte."""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import os
import re
import shlex
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ebmvk.data import formats
from ebmvk.data.splitting import at_separators
from ebmvk.errors import ConfigError, DataError

TEXT_NAME = re.compile(r"\.(txt|text|md|rst|tokens)(\.gz)?$", re.IGNORECASE)
SPLIT_NAME = re.compile(
    r"(?:wiki\.)?(train|valid|validation|val|dev|test)\.(?:txt|text|tokens)(?:\.gz)?", re.IGNORECASE
)
# Files about a corpus rather than part of it. Their name is the word alone, or the word in capitals and more, so that
# "License to Kill.txt" counts as text.
_ABOUT = "readme|licen[cs]e|notice|copying|authors|contributing|changelog"
_ABOUT_NAMES = (
    re.compile(rf"(?:{_ABOUT})(?:[-_.][a-z]{{2}})?(?:\.(?:txt|text|md|rst))?(?:\.gz)?", re.IGNORECASE),
    re.compile(rf"(?:{_ABOUT.upper()})[-_.]\S*"),
    re.compile(r"(?:sha\d+sums?|md5sums?)\b.*", re.IGNORECASE),
)
BYTE_ORDER_MARK = "\ufeff"
HUB_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
NAMED, SUFFIXES = 3, 5  # names, and suffixes, that a summary lists


@dataclass(frozen=True)
class Reading:
    """How text files are read.

    include: glob patterns of further names to read in a folder; a pattern with a slash is matched against the path
    inside the folder. raw: read formats with rows or markup as plain text. keep_bom: keep a byte order mark at the
    start of a file in the text, as earlier versions did.
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
    """A file without readable text. reason: a word or two, for a summary of many files."""

    def __init__(self, what: str, *, hint: str, reason: str, why: str = "") -> None:
        super().__init__(what, hint=hint, why=why)
        self.reason = reason


def shown(path: Path | str) -> str:
    """A path for messages: bytes that aren't UTF-8 appear as \\xNN, and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def exists(path: Path) -> bool:
    """True if the file or folder exists; False also for names that no file can have, such as too long ones."""
    try:
        return path.exists()
    except OSError:
        return False


def read_text(path: Path, reading: Reading = AS_IT_COMES) -> str:
    """The text of one file: gzip is unpacked, newlines are kept, and a byte order mark at the start is dropped.

    Raises:
        NoText: the file cannot be read, is empty, binary or not UTF-8, or has a format that isn't plain text.
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
        else "name a text file, or a folder of them",
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
        what = f"{shown(path)} is not a whole gzip file: {error}"
        raise NoText(what, hint="download it again, or unpack it yourself", reason="damaged gzip") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        what = f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise NoText(what, hint="check the name and its permissions", reason="unreadable") from error


def lines_of(text: str) -> list[str]:
    """The lines of a text. Only \\n and \\r\\n end a line; no empty line follows the last one."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


# ---- folders -------------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """files: the files of a folder that may hold text, sorted. left_out: {why: names inside the folder}."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, path: Path, why: str) -> None:
        name = shown(path.relative_to(self.folder))
        self.left_out.setdefault(why, []).append(name)

    def texts(self, reading: Reading) -> dict[Path, str]:
        """The text of each file that has text; the others are left out.

        Raises:
            DataError: no file has text; the message gives the reasons.
        """
        found: dict[Path, str] = {}
        for path in self.files:
            try:
                text = read_text(path, reading)
            except NoText as error:
                self.leave(path, error.reason)
                continue
            if at_separators(text):
                found[path] = text
            else:
                self.leave(path, "with separators only")
        if not found:
            raise DataError(
                f"{shown(self.folder)} holds no text file",
                why=self.summary()
                or "their names end in .txt, .text, .md, .rst or .tokens (and .gz); READMEs and licences do not count",
                hint="give a folder with such files, the path of one file, or --include '*.SUFFIX' for other names",
            )
        return found

    def summary(self) -> str:
        """ "skipped 2 empty (a.txt, b.txt), 120 .py (--include '*.py')"; "" if nothing was left out."""
        kinds = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        suffixes = [names for why, names in kinds if why.startswith(".")]
        listed = [item for item in kinds if not item[0].startswith(".") or item[1] in suffixes[:SUFFIXES]]
        parts = [_kind(why, names) for why, names in sorted(listed, key=lambda item: item[0].startswith("."))]
        if more := sum(map(len, suffixes[SUFFIXES:])):
            parts.append(f"{more:,} of {len(suffixes) - SUFFIXES} other suffixes")
        return f"skipped {', '.join(parts)}" if parts else ""


def _kind(why: str, names: list[str]) -> str:
    if why.startswith("."):  # a suffix says enough
        return f"{len(names):,} {why}"
    dots = ", …" if len(names) > NAMED else ""
    plural = "s" if len(names) > 1 and why.endswith(("folder", "link", "file")) else ""
    return f"{len(names):,} {why}{plural} ({', '.join(names[:NAMED])}{dots})"


def listing(folder: Path, reading: Reading = AS_IT_COMES, written: Collection[Path] = ()) -> Listing:
    """The text files of a folder and its subfolders, chosen by name. Links are followed once.

    written: files that the command itself writes; they are skipped.

    Raises:
        DataError: the folder is a run or a model. ConfigError: a pattern of --include matches nothing.
    """
    if kind := model_kind(folder):
        raise DataError(
            f"{shown(folder)} is a {kind}, not text",
            why="its samples and its report are what a model wrote",
            hint="name a text file, or a folder of them; --checkpoint names a run",
        )
    found = Listing(folder)
    ours = {os.path.realpath(path) for path in written}
    for path in _walk(found):
        name = path.relative_to(folder).as_posix()
        if os.path.realpath(path) in ours:
            found.leave(path, "written by this command")
        elif reading.takes(shown(name)) or (TEXT_NAME.search(path.name) and not _is_about(path.name)):
            found.files.append(path)
        else:
            found.leave(path, _why_not_text(path))
    _check_patterns(found, reading)
    found.files.sort()
    return found


def _is_about(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in _ABOUT_NAMES)


def _why_not_text(path: Path) -> str:
    if _is_about(path.name):
        return "about the text"
    suffix = path.suffix.lower()
    if not suffix or not suffix.isprintable() or not suffix.isascii():
        return "without a suffix of text"
    known = formats.BY_NAME.get(suffix)
    if known:
        return f"{suffix} ({known.name})"
    return f"{suffix} (--include '*{suffix}')"


def _check_patterns(found: Listing, reading: Reading) -> None:
    names = [shown(path.relative_to(found.folder).as_posix()) for path in found.files]
    for pattern in reading.include:
        if not any(Reading((pattern,)).takes(name) for name in names):
            raise ConfigError(
                f"--include {pattern!r} matches no file in {shown(found.folder)}",
                why=found.summary(),
                hint="correct the pattern, or remove --include",
            )


def model_kind(folder: Path) -> str | None:
    """The kind of a folder that holds a model instead of text: a run folder, or a model in the layout of hubs."""

    def has(name: str) -> bool:
        return (folder / name).exists()

    if has("config.toml") and any(map(has, ("tokenizer.json", "metrics.jsonl", "checkpoints"))):
        return "run folder"
    if has("config.json") and any(map(has, HUB_WEIGHTS)):
        return "model folder"
    return None


def _walk(found: Listing) -> Iterator[Path]:
    """Every file below the folder once: first the folder's own files, then those behind links."""
    above = {_identity(path) for path in found.folder.resolve().parents}
    seen = {_identity(found.folder)}
    folders, links = [found.folder], list[Path]()
    while folders or links:
        path = folders.pop() if folders else links.pop(0)
        if path != found.folder and (why := _why_not_followed(path, seen, above)):
            found.leave(path, why)
            continue
        seen.add(_identity(path))
        if path.is_file():
            yield path
            continue
        for entry in _entries(path, found):
            if entry.name.startswith("."):
                found.leave(entry, "hidden")
            elif entry.is_symlink():
                links.append(entry)
            else:
                folders.append(entry)
        links.sort()


def _entries(folder: Path, found: Listing) -> list[Path]:
    try:
        return sorted(folder.iterdir(), reverse=True)  # the last one is taken first
    except OSError:
        found.leave(folder, "unreadable")
        return []


def _why_not_followed(path: Path, seen: set[tuple[int, int]], above: set[tuple[int, int]]) -> str | None:
    try:
        identity = _identity(path)
    except OSError:
        return "broken link"
    if path.is_symlink() and identity in above:
        return "link upwards"
    if identity in seen:
        return "linked again"
    if path.is_dir():
        return model_kind(path)
    return None if path.is_file() else "not a regular file"


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def split_files(found: Listing) -> dict[str, Path]:
    """The files of official splits in a folder: those of {"train", "validation", "test"} that are present; {} without
    `train`. If there are splits, other text files are left out.

    `train.txt`, `Valid.txt.gz`, `wiki.test.tokens` and similar names are recognised, ignoring case.

    Raises:
        DataError: two files belong to the same split.
    """
    splits: dict[str, Path] = {}
    for path in found.files:
        match = SPLIT_NAME.fullmatch(path.name)
        if not match or path.parent != found.folder:
            continue
        word = match[1].lower()
        name = word if word in ("train", "test") else "validation"
        if name in splits:
            raise DataError(
                f"{shown(found.folder)} has two files for the {name} split: {splits[name].name} and {path.name}",
                hint="remove one of them, or give the path of a single file",
            )
        splits[name] = path
    if "train" not in splits:
        return {}
    for path in set(found.files) - set(splits.values()):
        found.leave(path, "beside the files of official splits")
    return splits
