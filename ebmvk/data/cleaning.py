"""Cleans text for training: repairs and normalises it, and removes repetitions.

By default cleaning loses no distinct document, no indentation and no writing system. `Rules` turns
on steps that may lose something.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import ftfy

# A repeated paragraph of at least this many characters is boilerplate, not a turn of phrase
LONG_PARAGRAPH = 100
Blanks = Literal["auto", "keep", "single", "flat"]
Same = Literal["text", "letters"]

# Never useful in a text: soft hyphen, word joiner, byte order mark, deprecated format characters.
_INVISIBLE = re.compile("[\u00ad\u2060\ufeff\u206a-\u206f]")
# Marks of writing direction. Letters have a direction of their own; these marks only reorder the
# display.
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_JOINER = re.compile("[\u200c\u200d]")
_WORD_BREAK = re.compile("\u200b")
# Scripts that mark words with U+200B instead of blanks: Thai, Lao, Myanmar, Khmer.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
# Categories that need a joiner: letters without case (Arabic, Indic), marks (a virama), emoji and
# skin tones.
_JOINED = frozenset({"Lo", "Lm", "Mn", "Mc", "So", "Sk"})
_PAGE_ENDS = re.compile(r"[\x0b\x0c]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_NOTHING_TO_MEND = re.compile(r"[\t\x20-\x25\x27-\x7e]*")  # ASCII without & and control characters
# Blanks that mean the same as a space. U+202F isn't one (it joins suffixes in Mongolian), nor is
# Chinese U+3000.
_SPACES = re.compile(r"(?<=\S)[ \u00a0\u2000-\u200a]+(?=\S)")
_BLANKS = re.compile(r"(?<=\S)[^\S\n]+(?=\S)")
_LEADING = re.compile(r"^[^\S\n]+", re.MULTILINE)
_INDENTED = re.compile(r"^(?:[^\S\n]{2}|\t)[^\S\n]*\S", re.MULTILINE)
# {ftfy's name of a step: its name in messages}.
_REPAIRS = {
    "unescape_html": "HTML entities resolved",
    "fix_latin_ligatures": "Latin ligatures spelt out",
    "fix_character_width": "full-width characters made narrow",
    "fix_line_breaks": "line ends made one newline",
    "fix_surrogates": "surrogate pairs mended",
    "remove_terminal_escapes": "terminal escapes removed",
    "remove_control_chars": "control characters removed",
    "normalize": "characters composed (NFC)",
}
_ENCODINGS = "encodings mended"  # all other steps of ftfy


@dataclass(frozen=True)
class Rules:
    """Choices that go beyond repairs.

    preserve_case: keep capitals.
    blanks: `keep` leaves runs of blanks inside a line as they are; `single` makes each run one
        blank; `flat` also removes indentation; `auto` means `single` if no line of the document is
        indented, because then it is prose.
    narrow: make full-width characters narrow, which changes Chinese and Japanese punctuation.
    keep_direction: keep marks of writing direction.
    same: when two documents count as the same. `text`: their texts are equal. `letters`: their
        letters and digits are equal, ignoring case.
    """

    preserve_case: bool = True
    blanks: Blanks = "auto"
    narrow: bool = False
    keep_direction: bool = False
    same: Same = "text"


DEFAULT = Rules()


@dataclass(frozen=True)
class Cleaned:
    """documents: those that were kept, in order. changes: {step: number of documents changed}."""

    documents: list[str]
    changes: dict[str, int]
    documents_changed: int
    documents_empty: int
    documents_repeated: int
    paragraphs_repeated: int


def clean_text(text: str, rules: Rules = DEFAULT) -> str:
    """The text, repaired and normalised.

    Repairs broken encodings (ftfy), composes characters (NFC), and removes control characters,
    invisible characters (except joiners and word breaks that the script needs) and blanks at ends
    of lines. Indentation stays.
    """
    return _cleaned(text, rules)[0]


def _cleaned(text: str, rules: Rules) -> tuple[str, set[str]]:
    """The cleaned text, and the names of the steps that changed it."""
    done: set[str] = set()
    while True:  # removing characters can expose more to repair
        before = text
        for what, step in _steps(rules):
            changed = step(text)
            if changed != text and what:
                done.add(what)
            text = changed
        text = _mended(text, rules, done).strip("\n")
        if text == before:
            return text, done


def _steps(rules: Rules) -> Iterator[tuple[str, Callable[[str], str]]]:
    """The steps in order, each with its name for messages ("" if it isn't reported)."""
    yield "ends of pages made ends of lines", lambda text: _PAGE_ENDS.sub("\n", text)
    yield "line ends made one newline", lambda text: text.replace("\r\n", "\n")
    yield "invisible characters removed", lambda text: _INVISIBLE.sub("", text)
    if not rules.keep_direction:
        yield "direction signs removed", lambda text: _DIRECTION.sub("", text)
    yield "joiners removed where nothing joins", lambda text: _beside(text, _JOINER, _joins)
    yield "zero-width blanks removed", lambda text: _beside(text, _WORD_BREAK, _UNSPACED.match)
    yield "control characters removed", lambda text: _CONTROL.sub("", text)
    yield "blanks at ends of lines removed", lambda text: "\n".join(map(str.rstrip, text.split("\n")))
    yield "runs of blanks made one", partial(_spaced, blanks=rules.blanks)
    yield "empty lines removed", partial(_closed_up, blanks=rules.blanks)
    yield "", lambda text: text.strip("\n")
    if not rules.preserve_case:
        yield "made small letters", str.lower


def _spaced(text: str, blanks: Blanks) -> str:
    if blanks == "keep" or (blanks == "auto" and _INDENTED.search(text)):
        return text
    if blanks == "flat":
        text = _LEADING.sub("", text)
    return (_SPACES if blanks == "auto" else _BLANKS).sub(" ", text)


def _closed_up(text: str, blanks: Blanks) -> str:
    """Keeps at most one empty line in a row; two in indented text, such as code."""
    most = 2 if blanks == "keep" or (blanks == "auto" and _INDENTED.search(text)) else 1
    return re.sub(rf"\n{{{most + 2},}}", "\n" * (most + 1), text)


def _beside(text: str, pattern: re.Pattern[str], wants: Callable[[str], object]) -> str:
    """Removes characters that match the pattern, unless a neighbouring character needs them."""

    def kept(found: re.Match[str]) -> str:
        beside = text[max(0, found.start() - 1) : found.start()], text[found.end() : found.end() + 1]
        return found[0] if any(character and wants(character) for character in beside) else ""

    return pattern.sub(kept, text)


def _joins(character: str) -> bool:
    return unicodedata.category(character) in _JOINED


def _mended(text: str, rules: Rules, done: set[str]) -> str:
    """Applies ftfy's repairs, line by line."""
    config = ftfy.TextFixerConfig(
        normalization="NFC",
        uncurl_quotes=False,
        fix_character_width=rules.narrow,
        unescape_html="<" not in text,  # in a text with tags, entities belong to the markup
    )
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not _NOTHING_TO_MEND.fullmatch(line):
            lines[i] = "".join(_mended_part(part, config, done) for part in _parts(line, config.max_decode_length))
    return "\n".join(lines)


def _parts(line: str, length: int) -> list[str]:
    return [line[i : i + length] for i in range(0, len(line), length)]


def _mended_part(part: str, config: ftfy.TextFixerConfig, done: set[str]) -> str:
    found = ftfy.fix_and_explain(part, config)
    if found.text != part:
        steps = found.explanation or []
        names = [step.parameter if step.action == "apply" else step.action for step in steps]
        done.update(_REPAIRS.get(name, _ENCODINGS) for name in names)
    return found.text


def clean(documents: Iterable[str], rules: Rules = DEFAULT) -> Cleaned:
    """Cleans each document; drops repeated documents and repeated long paragraphs.

    A paragraph is a line that isn't indented. `rules.same` decides which documents and paragraphs
    are the same.
    """
    seen: set[bytes] = set()
    changes: Counter[str] = Counter()
    found: list[str] = []
    changed = empty = repeated = paragraphs = 0
    for document in documents:
        text, done = _cleaned(document, rules)
        changed += text != document.strip("\n")
        changes.update(done)
        if not text:
            empty += 1
            continue
        digest = _digest(text, rules.same)
        if digest in seen:
            repeated += 1
            continue
        seen.add(digest)
        left, said_before = _said_once(text, seen, rules.same)
        paragraphs += said_before
        if left:
            found.append(left)
        else:
            repeated += 1
    return Cleaned(found, dict(changes), changed, empty, repeated, paragraphs)


def _said_once(text: str, seen: set[bytes], same: Same) -> tuple[str, int]:
    """Drops long paragraphs already in `seen`; adds the others to it.

    Returns the text and the number of paragraphs dropped.
    """
    kept = []
    lines = text.split("\n")
    for line in lines:
        if len(line) >= LONG_PARAGRAPH and line != text and not line[0].isspace():
            digest = _digest(line, same)
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(line)
    return "\n".join(kept).strip("\n"), len(lines) - len(kept)


def _digest(text: str, same: Same) -> bytes:
    if same == "letters":
        # Marks count as letters, because they are vowels in Indic scripts. A text without letters
        # is compared whole.
        letters = "".join(c for c in text.casefold() if c.isalnum() or unicodedata.category(c).startswith("M"))
        text = letters or text
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
