"""Cleans text for training: repairs and normalises it, and keeps every document and long paragraph only once.

By default no document, indentation or writing system is lost. `Rules` turns on the steps that may lose something.
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

LONG_PARAGRAPH = 100  # characters from which a repeated paragraph is boilerplate and not a turn of phrase
Blanks = Literal["auto", "keep", "single", "flat"]
Same = Literal["text", "letters"]

# Never of use in a text: soft hyphen, word joiner, byte order mark, and deprecated format characters.
_INVISIBLE = re.compile("[\u00ad\u2060\ufeff\u206a-\u206f]")
# Characters that change the direction of writing. Letters have their own direction; these only reorder the display.
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_JOINER = re.compile("[\u200c\u200d]")
_WORD_BREAK = re.compile("\u200b")
# Scripts without blanks between words, whose texts mark words with U+200B: Thai, Lao, Myanmar, Khmer.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
# A joiner may follow: letters without case (Arabic, Indic), marks (a virama), emoji and their skin tones.
_JOINED = frozenset({"Lo", "Lm", "Mn", "Mc", "So", "Sk"})
_PAGE_ENDS = re.compile(r"[\x0b\x0c]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_NOTHING_TO_MEND = re.compile(r"[\t\x20-\x25\x27-\x7e]*")  # ASCII without & and control characters
# Blanks that mean no more than a space: not U+202F, which joins suffixes in Mongolian, nor U+3000 of Chinese.
_SPACES = re.compile(r"(?<=\S)[ \u00a0\u2000-\u200a]+(?=\S)")
_BLANKS = re.compile(r"(?<=\S)[^\S\n]+(?=\S)")
_LEADING = re.compile(r"^[^\S\n]+", re.MULTILINE)
_INDENTED = re.compile(r"^(?:[^\S\n]{2}|\t)[^\S\n]*\S", re.MULTILINE)
# ftfy's names for its steps, and what to call them in messages.
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
_ENCODINGS = "encodings mended"  # by any other step


@dataclass(frozen=True)
class Rules:
    """Cleaning beyond repairs.

    preserve_case: keep capitals. blanks: `keep` inner blanks; make runs of them `single`; `flat`: single, and no
    indentation; `auto`: single where no line of a document is indented, which is prose. narrow: full-width characters
    become narrow, which changes the punctuation of Chinese and Japanese. keep_direction: keep characters that change
    the direction of writing. same: two documents are the same if their `text` is the same, or only their `letters` and
    digits, ignoring case.
    """

    preserve_case: bool = True
    blanks: Blanks = "auto"
    narrow: bool = False
    keep_direction: bool = False
    same: Same = "text"


DEFAULT = Rules()


@dataclass(frozen=True)
class Cleaned:
    """documents: those kept, in order. changes: {step: number of documents it changed}. The rest are counts."""

    documents: list[str]
    changes: dict[str, int]
    documents_changed: int
    documents_empty: int
    documents_repeated: int
    paragraphs_repeated: int


def clean_text(text: str, rules: Rules = DEFAULT) -> str:
    """Repairs broken encodings (ftfy), composes characters (NFC), and removes control characters, invisible ones (but
    not joiners and word breaks that the script needs) and blanks at the ends of lines. Lines keep their indentation.
    """
    return _cleaned(text, rules)[0]


def _cleaned(text: str, rules: Rules) -> tuple[str, set[str]]:
    """The text, and what was done to it."""
    done: set[str] = set()
    while True:  # removing characters can leave more to repair
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
    """The steps in order, each with its description for messages; empty: the step isn't reported."""
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
    """At most one empty line in a row; two in indented text, such as code."""
    most = 2 if blanks == "keep" or (blanks == "auto" and _INDENTED.search(text)) else 1
    return re.sub(rf"\n{{{most + 2},}}", "\n" * (most + 1), text)


def _beside(text: str, pattern: re.Pattern[str], wants: Callable[[str], object]) -> str:
    """Removes characters that match the pattern, unless the character before or after one needs it."""

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
        unescape_html="<" not in text,  # with tags, entities belong to the markup
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
    """Cleans each document; leaves out documents and long paragraphs that came before.

    A paragraph is a line that isn't indented. `rules.same` decides which documents and paragraphs are the same.
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
    """The text without long paragraphs already in `seen`, and how many were removed; adds its own to `seen`."""
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
        # Marks are vowels in Indic scripts. A text without letters is itself.
        letters = "".join(c for c in text.casefold() if c.isalnum() or unicodedata.category(c).startswith("M"))
        text = letters or text
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
