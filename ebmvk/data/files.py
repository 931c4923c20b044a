"""Text files as people have them: plain or gzipped, one or a folder of them, exact to the byte."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shlex
import zlib
from pathlib import Path

from ebmvk.errors import DataError

TEXT_NAME = re.compile(r"\.(txt|text|md|rst|tokens)(\.gz)?$", re.IGNORECASE)
# What stands beside the text of a corpus without being part of it.
ABOUT_NAME = re.compile(r"^(readme|licen[cs]e|notice|copying|authors|changelog|sha\d+sums?|md5sums?)\b", re.IGNORECASE)


def read_text(path: Path) -> str:
    """The text of one file, `.gz` unpacked, with no newline translated.

    Raises:
        DataError: the file cannot be read, is empty, binary, or not UTF-8.
    """
    raw = _read_bytes(path)
    if b"\0" in raw:
        raise DataError(
            f"{path} is not a text file: it has a NUL byte at offset {raw.index(0)}",
            why="it is binary, or UTF-16",
            hint=f"convert it to UTF-8, for example: iconv -f UTF-16 -t UTF-8 {shlex.quote(path.name)}",
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}",
            why="it is binary, or in an older encoding such as Latin-1",
            hint=f"convert it to UTF-8, for example: iconv -f LATIN1 -t UTF-8 {shlex.quote(path.name)}",
        ) from error
    if not text.strip():
        raise DataError(f"{path} is empty: {len(raw)} bytes, no text", hint="give a file or folder that holds text")
    return text


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole gzip file: {error}", hint="get it again, or unpack it yourself"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}", hint="check the name and its permissions"
        ) from error


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


def text_files(folder: Path) -> list[Path]:
    """The text files of a folder and its subfolders, sorted; hidden files, READMEs, licences and check sums left out.

    Raises:
        DataError: there is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and TEXT_NAME.search(path.name)
        and not ABOUT_NAME.match(path.name)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise DataError(
            f"{folder} holds no text file",
            why="their names end in .txt, .text, .md, .rst or .tokens (and .gz); READMEs and licences do not count",
            hint="give a folder with such files, or the path of one file",
        )
    return found


def split_files(folder: Path) -> dict[str, Path]:
    """The files of official splits that lie in a folder: {"train", "validation", "test"} as far as present.

    `train.txt`, `valid.txt.gz`, `wiki.test.tokens` and their like are recognised.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(
            r"(?:wiki\.)?(train|valid|validation|val|dev|test)\.(?:txt|text|tokens)(?:\.gz)?", path.name
        )
        if match and path.is_file():
            name = match[1] if match[1] in ("train", "test") else "validation"
            if name in found:
                raise DataError(
                    f"{folder} has two files for the {name} split: {found[name].name} and {path.name}",
                    hint="remove one of them, or give the path of a single file",
                )
            found[name] = path
    return found if "train" in found else {}
