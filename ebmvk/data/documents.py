"""Reads text files and folders that a person names; cuts them into documents at separator lines.

Commands that take text without splits (`prepare-corpus`, `analyze-corpus`, `init-tokenizer`) read
it here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ebmvk.data.files import AS_IT_COMES, Reading, exists, lines_of, read_text, shown
from ebmvk.data.folders import listing
from ebmvk.data.splitting import STANDARD, at_separators, stray_separators
from ebmvk.errors import ConfigError, DataError


@dataclass(frozen=True)
class Documents:
    """texts: documents in order. notes: lines to print about what was read and what was skipped."""

    texts: list[str]
    notes: list[str]


def read_documents(
    paths: Sequence[Path],
    flag: str,
    separator: str | None = None,
    reading: Reading = AS_IT_COMES,
    written: Collection[Path] = (),
) -> Documents:
    """The documents of text files and folders, cut at lines that equal `separator`.

    separator: None for the standard separators. flag: the flag that named the paths, for messages.
    written: files that the command itself writes; they are skipped in folders.

    Raises:
        DataError: a file or folder doesn't exist or holds no text.
        ConfigError: `separator` isn't a single line, or `reading.include` is given without a
            folder.
    """
    if separator is not None and (not separator.strip() or len(lines_of(separator)) > 1):
        raise ConfigError(
            f"--separator {separator!r} isn't a single line with text",
            hint="give the line that separates documents, or remove --separator to use <|doc|>",
        )
    if missing := next((path for path in paths if not exists(path)), None):
        what = f"{flag} {shown(missing)}: no such file or folder"
        raise DataError(what, hint="name a text file, or a folder of text files")
    if reading.include and not any(path.is_dir() for path in paths):
        raise not_a_folder(f"{flag} {shown(paths[0])}")
    found: list[str] = []
    notes: list[str] = []
    for path in paths:
        texts, note = _texts(path, reading, written)
        notes += [note] if note else []
        parts = [at_separators(text, separator) for text in texts]
        if not any(parts):
            raise only_separators(path)
        found += [document for part in parts for document in part]
        notes += stray_note(texts, separator)
    return Documents(found, notes)


def _texts(path: Path, reading: Reading, written: Collection[Path]) -> tuple[list[str], str]:
    """The texts of a file or folder, and for a folder a note on what was read and skipped."""
    if not path.is_dir():
        return [read_text(path, reading)], ""
    found = listing(path, reading, written)
    texts = list(found.texts(reading).values())
    return texts, "; ".join(filter(None, [f"{len(texts):,} read in {shown(path)}", found.summary()]))


def stray_note(texts: Iterable[str], separator: str | None = None) -> list[str]:
    """A note on separators that cut nothing because other text shares their line; else []."""
    if not (count := sum(stray_separators(text, separator) for text in texts)):
        return []
    named = " or ".join(STANDARD) if separator is None else separator
    lines = "lines hold" if count > 1 else "line holds"
    return [f"{count:,} {lines} {named} among other text, so no document ends there"]


def only_separators(path: Path) -> DataError:
    """The error for a text that holds nothing but separator lines."""
    return DataError(
        f"{shown(path)} has no text: only lines that separate documents", hint="give a file or folder that holds text"
    )


def not_a_folder(what: str) -> ConfigError:
    """The error for `--include` with something that isn't a folder.

    what: the other flag and its value.
    """
    return ConfigError(
        f"--include doesn't work with {what}, which isn't a folder",
        why="--include says which files of a folder are read",
        hint="remove --include: a single file is read whatever its name",
    )
