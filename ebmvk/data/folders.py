"""Which files of a folder are text to read, and which are skipped and why.

Chooses by name, follows links once, recognises the files of official splits (train.txt, valid.txt,
test.txt), and finds the folders of data sets that `--data-dir` and the environment variable name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ebmvk.data import formats
from ebmvk.data.files import AS_IT_COMES, NoText, Reading, exists, read_text, shown
from ebmvk.data.splitting import at_separators
from ebmvk.errors import ConfigError, DataError

ENVIRONMENT = "EBMVK_DATA_DIR"
TEXT_NAME = re.compile(r"\.(txt|text|md|rst|tokens)(\.gz)?$", re.IGNORECASE)
SPLIT_NAME = re.compile(
    r"(?:wiki\.)?(train|valid|validation|val|dev|test)\.(?:txt|text|tokens)(?:\.gz)?", re.IGNORECASE
)
# Files that describe a corpus and aren't part of it. Their name is one of these words alone, or
# starts with the word in capitals. So "License to Kill.txt" counts as text.
_ABOUT = "readme|licen[cs]e|notice|copying|authors|contributing|changelog"
_ABOUT_NAMES = (
    re.compile(rf"(?:{_ABOUT})(?:[-_.][a-z]{{2}})?(?:\.(?:txt|text|md|rst))?(?:\.gz)?", re.IGNORECASE),
    re.compile(rf"(?:{_ABOUT.upper()})[-_.]\S*"),
    re.compile(r"(?:sha\d+sums?|md5sums?)\b.*", re.IGNORECASE),
)
HUB_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
NAMED, SUFFIXES = 3, 5  # a summary lists at most this many names and suffixes


@dataclass
class Listing:
    """The files of a folder. files: those that may hold text, sorted. left_out: {reason: names}."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, path: Path, why: str) -> None:
        """Note that a file is skipped."""
        name = shown(path.relative_to(self.folder))
        self.left_out.setdefault(why, []).append(name)

    def texts(self, reading: Reading) -> dict[Path, str]:
        """The text of each file that has text; the other files move to `left_out`.

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
                or "only .txt, .text, .md, .rst and .tokens (and .gz) count, without READMEs and licences",
                hint="give a folder with such files, the path of one file, or --include '*.SUFFIX' for other names",
            )
        return found

    def summary(self) -> str:
        """For example "skipped 2 empty (a.txt, b.txt), 120 .py (--include '*.py')"."""
        kinds = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        suffixes = [names for why, names in kinds if why.startswith(".")]
        listed = [item for item in kinds if not item[0].startswith(".") or item[1] in suffixes[:SUFFIXES]]
        parts = [_kind(why, names) for why, names in sorted(listed, key=lambda item: item[0].startswith("."))]
        if more := sum(map(len, suffixes[SUFFIXES:])):
            parts.append(f"{more:,} of {len(suffixes) - SUFFIXES} other suffixes")
        return f"skipped {', '.join(parts)}" if parts else ""


def _kind(why: str, names: list[str]) -> str:
    if why.startswith("."):  # the suffix says enough without the names
        return f"{len(names):,} {why}"
    dots = ", …" if len(names) > NAMED else ""
    plural = "s" if len(names) > 1 and why.endswith(("folder", "link", "file")) else ""
    return f"{len(names):,} {why}{plural} ({', '.join(names[:NAMED])}{dots})"


def listing(folder: Path, reading: Reading = AS_IT_COMES, written: Collection[Path] = ()) -> Listing:
    """The text files of a folder and its subfolders, chosen by name. Each link is followed once.

    written: files that the command itself writes; they are skipped.

    Raises:
        DataError: the folder is a run or a model.
        ConfigError: a pattern of --include matches nothing.
    """
    if kind := model_kind(folder):
        raise DataError(
            f"{shown(folder)} is a {kind}, not text",
            why="its samples and its report were written by a model",
            hint="name a text file, or a folder of text files; --checkpoint names a run",
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
    """ "run folder" or "model folder" if a folder holds a model instead of text, else None."""

    def has(name: str) -> bool:
        return (folder / name).exists()

    if has("config.toml") and any(map(has, ("tokenizer.json", "metrics.jsonl", "checkpoints"))):
        return "run folder"
    if has("config.json") and any(map(has, HUB_WEIGHTS)):
        return "model folder"
    return None


def _walk(found: Listing) -> Iterator[Path]:
    """Yields every file below the folder once: its own files first, then those behind links."""
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
        return sorted(folder.iterdir(), reverse=True)  # `_walk` pops from the end
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
    """{split: file} of the official splits in a folder; {} if `train` is missing.

    `train.txt`, `Valid.txt.gz`, `wiki.test.tokens` and similar names are recognised, ignoring case.
    If there are splits, all other text files are skipped.

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


def data_folders(data_dir: Path | None) -> list[tuple[Path, str]]:
    """The folders of data sets, each with the flag or variable that named it.

    Raises:
        DataError: one of them isn't a folder.
    """
    named = [(data_dir, "--data-dir")] if data_dir else []
    if os.environ.get(ENVIRONMENT):
        named.append((Path(os.environ[ENVIRONMENT]).expanduser(), ENVIRONMENT))
    for folder, flag in named:
        if not exists(folder) or not folder.is_dir():
            raise DataError(
                f"{flag} {folder} is not a folder", hint="give the folder that holds the data sets' folders"
            )
    return named
