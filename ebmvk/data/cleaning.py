"""Text as it is found made into text to learn from: repaired, normalised, every document and long paragraph once."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import ftfy

LONG_PARAGRAPH = 100  # characters from which a repeated paragraph is boilerplate and not a turn of phrase
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphen, zero-width blanks, byte order mark
_BLANKS = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Cleaned:
    """documents: what is left, in order; the rest counts what was done."""

    documents: list[str]
    documents_changed: int
    documents_empty: int
    documents_repeated: int
    paragraphs_repeated: int


def clean_text(text: str, *, preserve_case: bool = True) -> str:
    """Broken encodings mended (ftfy), composed characters (NFC), no control or invisible characters, single blanks."""
    text = ftfy.fix_text(text, normalization="NFC", uncurl_quotes=False).translate(_INVISIBLE)
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
    lines = [_BLANKS.sub(" ", line).strip() for line in text.split("\n")]
    text = _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip("\n")
    return text if preserve_case else text.lower()


def clean(documents: Iterable[str], *, preserve_case: bool = True) -> Cleaned:
    """Each document cleaned; documents said before are left out, and so are long paragraphs (lines) said before.

    Whether two are the same is decided without case and punctuation.
    """
    seen: set[bytes] = set()
    found, changed, empty, repeated, paragraphs = [], 0, 0, 0, 0
    for document in documents:
        text = clean_text(document, preserve_case=preserve_case)
        changed += text != document.strip("\n")
        if not text:
            empty += 1
            continue
        if _digest(text) in seen:
            repeated += 1
            continue
        seen.add(_digest(text))
        kept = []
        for line in text.split("\n"):
            if len(line) >= LONG_PARAGRAPH and line != text:
                if _digest(line) in seen:
                    paragraphs += 1
                    continue
                seen.add(_digest(line))
            kept.append(line)
        if left := "\n".join(kept).strip("\n"):
            found.append(left)
        else:
            repeated += 1
    return Cleaned(found, changed, empty, repeated, paragraphs)


def _digest(text: str) -> bytes:
    letters = "".join(c for c in text.casefold() if c.isalnum())
    return hashlib.blake2b(letters.encode(), digest_size=16).digest()
