"""Cuts a text into documents, and documents into training and validation text.

All are pure functions of strings. Only separator lines and blank documents are lost; the other
documents, joined, give the text again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

DOCUMENT = "<|doc|>"
STANDARD = (DOCUMENT, "<|endoftext|>")
# A line between documents; it belongs to none of them.
SEPARATOR = re.compile(r"^<\|(?:doc|endoftext)\|>\r?\n?", re.MULTILINE)
# A top-level WikiText heading between two blank lines. The blank lines matter, because the line
# " = 7 / 2 ) ... ( J = " is part of a formula and just looks like a heading. The blank line before
# the heading belongs to the article.
WIKITEXT_HEADING = re.compile(r"(?:^ *\n|\A)(?= = (?!= )[^\n]*(?<! =) = \n *\n)", re.MULTILINE)


def at_separators(text: str, separator: str | None = None) -> list[str]:
    """The documents of a text, cut at lines that equal `separator`.

    By default, or if `separator` is one of them, both standard separators cut: `<|doc|>` and
    `<|endoftext|>`.
    """
    return [document for document in _between(separator).split(text) if document.strip()]


def _between(separator: str | None) -> re.Pattern[str]:
    """A pattern that matches a separator line."""
    if separator is None or separator in STANDARD:
        return SEPARATOR
    # It must be the whole line: "### A heading" isn't the separator ###.
    return re.compile(rf"^{re.escape(separator.strip())}[^\S\n]*(?:\n|\Z)", re.MULTILINE)


def stray_separators(text: str, separator: str | None = None) -> int:
    """The number of lines that contain a separator beside other text, and so cut nothing."""
    words = STANDARD if separator is None or separator in STANDARD else (separator.strip(),)
    return len(set().union(*(_stray(text, word, _between(separator)) for word in words)))


def _stray(text: str, word: str, between: re.Pattern[str]) -> set[int]:
    """The offsets of lines that contain `word` but aren't separators."""
    found, at = set(), text.find(word)
    while at >= 0:
        start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at)
        if not between.match(text, start):
            found.add(start)
        at = text.find(word, end) if end >= 0 else -1
    return found


def is_wikitext(text: str) -> bool:
    """True for word-level text like WikiText, where every line starts and ends with a blank.

    The last line may be cut off.
    """
    start = lines = 0
    while (end := text.find("\n", start)) >= 0:
        if not (text.startswith(" ", start) and text[end - 1] == " " and end > start):
            return False
        start, lines = end + 1, lines + 1
    return lines >= 3 and text[start : start + 1] in ("", " ")


def wikitext_articles(text: str) -> list[str]:
    """The articles of a WikiText split. Text before the first heading is a document too."""
    starts = [match.start() for match in WIKITEXT_HEADING.finditer(text)]
    bounds = sorted({0, *starts, len(text)})
    return [text[a:b] for a, b in pairwise(bounds)]


def hold_out(documents: Sequence[str], fraction: float = 0.1) -> tuple[list[str], list[str]]:
    """(first part, last part): split off the last `fraction` of the characters.

    The cut is between documents if possible.

    If documents are few or very uneven, the best cut between documents may hold out less than half
    or more than double the fraction. Then the document at the cut is divided, as nanoGPT does:
    `text[: int(0.9 * len(text))]`.
    """
    total = sum(map(len, documents))
    target = int((1 - fraction) * total)
    ends = list(accumulate(map(len, documents)))
    inner = ends[:-1]
    if inner:
        cut = min(range(len(inner)), key=lambda i: abs(inner[i] - target))
        if fraction / 2 <= 1 - inner[cut] / total <= fraction * 2:
            return list(documents[: cut + 1]), list(documents[cut + 1 :])
    at = next(i for i, end in enumerate(ends) if end >= target)
    inside = target - (ends[at] - len(documents[at]))
    parts = documents[at][:inside], documents[at][inside:]
    return [*documents[:at], *filter(None, parts[:1])], [*filter(None, parts[1:]), *documents[at + 1 :]]
