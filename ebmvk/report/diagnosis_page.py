"""The page of a diagnosis: one checkpoint, or several side by side; without network, script or other files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ebmvk.report.diagnosis_sections import TITLES, sections
from ebmvk.report.overview import overview
from ebmvk.report.page import render
from ebmvk.report.pictures import MOST_CURVES, PICTURES, Picture, compared
from ebmvk.report.tables import Section, number, per_word
from ebmvk.runs.metrics import Row

CODE = re.compile(r"`([^`]+)`|(--[a-z][A-Za-z-]*(?: [0-9][\w.+-]*)?)")
"""A command, or a flag with a number."""
WORDS = {
    "converging": "still learning",
    "converged": "flat, and far below where it began",
    "stalled": "flat, and hardly below where it began",
    "diverging": "getting worse",
    "undecided": "too little to tell",
}


@dataclass(frozen=True)
class View:
    """A checkpoint as the template needs it."""

    record: Row
    sections: list[tuple[Section, list[Picture]]]
    tiles: list[tuple[str, str, str]]
    absent: list[tuple[str, str]]


def page(record: Row) -> str:
    """The HTML of a record of one checkpoint or more."""
    found = record["checkpoints"]
    views = [_view(own, f"{place}. " if len(found) > 1 else "") for place, own in enumerate(found, start=1)]
    several = len(found) > 1
    return render(
        "diagnosis.html.j2",
        title=found[0]["name"] if not several else f"{len(found)} checkpoints side by side",
        views=views,
        overview=overview(found) if several else None,
        pictures=list(compared(found)) if several else [],
        most=MOST_CURVES,
        words=WORDS,
        marked=marked,
        version=record["ebmvk"],
    )


def marked(text: str) -> Iterator[tuple[str, bool]]:
    """Pieces of a line, and whether each is a command or a flag with its value."""
    done = 0
    for found in CODE.finditer(text):
        yield text[done : found.start()], False
        yield found[1] or found[2], True
        done = found.end()
    yield text[done:], False


def _view(record: Row, prefix: str) -> View:
    shown = [
        (section, list(PICTURES[section.key](record, prefix)) if section.key in PICTURES else [])
        for section in sections(record)
    ]
    return View(record, shown, list(_tiles(record)), [(TITLES[name], why) for name, why in record["absent"].items()])


def _tiles(record: Row) -> Iterator[tuple[str, str, str]]:
    """(value, name, note) of the few figures that matter most."""
    own = record["sections"]["likelihood"]["validation"]
    yield number(own["bits_per_byte"], ".3f"), "bits per byte", f"{own['bytes']:,} bytes, exact"
    yield number(own["ppl_token"], ",.1f"), "perplexity per token", f"{own['tokens']:,} tokens"
    if (word := per_word(own)) is not None:
        yield number(word, ",.1f"), "perplexity per word", f"{own['words']:,} words"
    yield f"{record['parameters'] / 1e6:.2f} M", "parameters", f"{record['vocabulary']:,} tokens, d = {record['d']}"
