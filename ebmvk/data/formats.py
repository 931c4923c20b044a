"""Recognises files that aren't plain text, and tells the user how to convert each of them.

Binary formats (PDF, ZIP …) are always refused. Text with rows or markup (JSON, CSV, HTML …) is
refused unless --raw is given.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath

ROWS = 20  # the lines that decide whether a text is a table or JSON Lines
FEWEST_ROWS = 5
PARSED = 1 << 26  # a longer text isn't parsed as JSON; its first characters decide


@dataclass(frozen=True)
class Format:
    """A format that isn't plain text.

    name: for messages. text: True if --raw can read it as it is. advice: how to convert it; FILE
    stands for the file's name.
    """

    name: str
    text: bool
    advice: str

    def hint(self, path: PurePath) -> str:
        """A command that converts this file."""
        packed = path.suffix.lower() == ".gz"
        advice = self.advice.replace("FILE", shlex.quote(path.stem if packed else path.name))
        advice = f"unpack it first: gunzip --keep {shlex.quote(path.name)}; then {advice}" if packed else advice
        return f"{advice}; or add --raw to read it as it is" if self.text else advice


def _document(name: str) -> Format:
    return Format(name, text=False, advice="convert it to text: pandoc -t plain FILE -o text.txt")


def _archive(name: str, command: str) -> Format:
    return Format(name, text=False, advice=f"unpack it first: {command}")


def _rows(name: str, rows: str) -> Format:
    """A format of rows with columns.

    rows: a Python expression that reads them from standard input as dictionaries.
    """
    script = f"import csv, json, sys; print(*[row['text'] for row in {rows}], sep='\\n<|doc|>\\n')"
    return Format(name, True, f'write its column of text to a file: python -c "{script}" < FILE > text.txt')


def _markup(name: str) -> Format:
    return Format(name, text=True, advice="convert it to text: pandoc -t plain FILE -o text.txt")


JSON = _rows("JSON", "json.load(sys.stdin)")
JSON_LINES = _rows("JSON Lines", "map(json.loads, sys.stdin)")
CSV = _rows("CSV", "csv.DictReader(sys.stdin)")
TSV = _rows("TSV", "csv.DictReader(sys.stdin, delimiter='\\t')")
HTML, XML, RTF = _markup("HTML"), _markup("XML"), _markup("RTF")
ZIP = _archive("ZIP", "unzip FILE")
WORD, OPEN_DOCUMENT, EPUB = _document("Word"), _document("OpenDocument"), _document("EPUB")
PDF = Format("PDF", text=False, advice="convert it to text: pdftotext FILE text.txt")
PARQUET = Format(
    "Parquet",
    text=False,
    advice='write its column of text to a file: python -c "import pandas, sys; '
    "print(*pandas.read_parquet(sys.argv[1])['text'], sep='\\n<|doc|>\\n')\" FILE > text.txt",
)
TABLE = Format("spreadsheet", text=False, advice="save its column of text as a text file")
NUMBERS = Format("numbers or weights", text=False, advice="name a text file, or a folder of them")
PICTURE = Format("picture, sound or film", text=False, advice="name a text file, or a folder of them")

BY_NAME: dict[str, Format] = {
    ".json": JSON, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".ipynb": JSON, ".csv": CSV, ".tsv": TSV,
    ".html": HTML, ".htm": HTML, ".xhtml": HTML, ".xml": XML, ".rtf": RTF, ".zip": ZIP, ".docx": WORD, ".doc": WORD,
    ".odt": OPEN_DOCUMENT, ".epub": EPUB, ".pdf": PDF, ".parquet": PARQUET, ".xlsx": TABLE, ".xls": TABLE,
    ".ods": TABLE,
}  # fmt: skip
_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"PAR1", PARQUET),
    (b"%PDF-", PDF),
    (b"PK\x05\x06", ZIP),
    (b"BZh", _archive("bzip2", "bunzip2 FILE")),
    (b"\xfd7zXZ\0", _archive("xz", "unxz FILE")),
    (b"\x28\xb5\x2f\xfd", _archive("Zstandard", "unzstd FILE")),
    (b"7z\xbc\xaf\x27\x1c", _archive("7z", "7z x FILE")),
    (b"Rar!\x1a\x07", _archive("RAR", "unrar x FILE")),
    (b"ARROW1", Format("Arrow", text=False, advice="write its column of text to a text file")),
    (b"ORC", Format("ORC", text=False, advice="write its column of text to a text file")),
    (b"SQLite format 3\0", Format("SQLite", text=False, advice="write its column of text to a text file")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", WORD),
    (b"\x93NUMPY", NUMBERS),
    (b"GGUF", NUMBERS),
    (b"\x89HDF", NUMBERS),
    (b"\x89PNG", PICTURE),
    (b"\xff\xd8\xff", PICTURE),
    (b"GIF8", PICTURE),
    (b"RIFF", PICTURE),
    (b"OggS", PICTURE),
    (b"\x7fELF", Format("program", text=False, advice="name a text file, or a folder of them")),
)
_HEADER = re.compile(r"[A-Za-z_][\w .-]{0,40}")
_HTML_START = re.compile(r"\s*(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
_JSON_START = re.compile(r'\s*(?:\{\s*"(?:[^"\\\n]|\\.)*"\s*:|\[\s*[\[{])')


def suffix(path: PurePath) -> str:
    """The lower-case suffix of a name; for `.gz`, the suffix before it."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def of_bytes(raw: bytes, path: PurePath) -> Format | None:
    """The binary format of a file; None if it may be text."""
    if raw.startswith(b"PK\x03\x04"):
        return _zipped(raw[:8192], path)
    if raw[257:262] == b"ustar" and b"\0" in raw[:257]:
        return _archive("tar", "tar xf FILE")
    magic = next((found for start, found in _MAGIC if raw.startswith(start)), None)
    # A text may begin with the letters of a short signature, such as "ORC" or "BZh", so UTF-8 is
    # taken for text. A PDF file is an exception, because all of it may be ASCII.
    return None if magic is not PDF and _is_utf8(raw) else magic


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in raw


def _zipped(start: bytes, path: PurePath) -> Format:
    """The format inside a zip archive."""
    named = BY_NAME.get(suffix(path))
    if named in (WORD, OPEN_DOCUMENT, EPUB, TABLE):
        return named
    parts = ((b"word/", WORD), (b"xl/", TABLE), (b"epub+zip", EPUB), (b"oasis.opendocument.text", OPEN_DOCUMENT))
    return next((found for part, found in parts if part in start), ZIP)


def of_text(text: str, path: PurePath) -> Format | None:
    """The format of a text file with rows or markup; None for plain text. It is recognised by the
    file's name or its content.
    """
    named = BY_NAME.get(suffix(path))
    if named is not None and named.text:
        return named
    if text.startswith("{\\rtf"):
        return RTF
    if text.startswith("<?xml"):
        return XML
    if _HTML_START.match(text[:4096]):
        return HTML
    return _json_in(text) or _table_in(text)


def _json_in(text: str) -> Format | None:
    if not text.lstrip()[:1].startswith(("{", "[")):
        return None
    *rows, last = _first_lines(text)
    # The last line may be cut off
    if rows and all(map(_is_row, rows)) and (_is_row(last) or last.startswith(("{", "["))):
        return JSON_LINES
    if len(text) > PARSED:
        return JSON if _JSON_START.match(text[:4096]) else None
    return JSON if isinstance(_parsed(text), dict | list) else None


def _first_lines(text: str) -> list[str]:
    """The first ROWS lines that are not blank."""
    lines = (line[0].removesuffix("\r") for line in re.finditer(r"[^\n]+", text))
    return list(islice((line for line in lines if line.strip()), ROWS))


def _is_row(line: str) -> bool:
    found = _parsed(line)
    return isinstance(found, dict) or (isinstance(found, list) and len(found) > 1)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _table_in(text: str) -> Format | None:
    """CSV or TSV if column names are followed by rows of the same width.

    A comma before a blank counts as prose.
    """
    lines = _first_lines(text)
    if len(lines) < FEWEST_ROWS:
        return None
    for delimiter, found in (("\t", TSV), (",", CSV)):
        if delimiter in lines[0] and _is_table(_cells(lines, delimiter)):
            return found
    return None


def _cells(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return []


def _is_table(rows: Sequence[Sequence[str]]) -> bool:
    if len(rows) < FEWEST_ROWS or len(rows[0]) < 2 or len(set(rows[0])) < len(rows[0]):
        return False
    # A quoted line end may cut the last row
    same_width = all(len(row) == len(rows[0]) for row in rows[:-1])
    head = all(_HEADER.fullmatch(cell) for cell in rows[0])
    return same_width and head and not any(cell.startswith(" ") for row in rows for cell in row)
