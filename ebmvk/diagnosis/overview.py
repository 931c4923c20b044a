"""A diagnosis as lines for a terminal, and the figures of several checkpoints side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ebmvk.diagnosis.diagnosis import SECTIONS
from ebmvk.diagnosis.subject import Row
from ebmvk.evaluation.intervals import basis
from ebmvk.report import glossary
from ebmvk.report.section import Part, Shown
from ebmvk.report.tables import DASH, STATIC, TRAINED, Table, at, interval, number, per_word, percent, plain

COLUMNS = 100  # width of prose on a terminal
TITLES = {section.name: section.title for section in SECTIONS}


def parts(record: Row) -> Iterator[Part]:
    """The sections that the record of one checkpoint has, in the order of the page."""
    for section in SECTIONS:
        found = record["sections"].get(section.name)
        if found is not None:
            yield Part(section.title, section.show(found | {key: record[key] for key in section.also}))


def lines(record: Row) -> Iterator[str]:
    """A checkpoint's diagnosis as text. The verdict comes first, and again last."""
    size = f"{record['parameters'] / 1e6:.2f} M parameters"
    yield from verdict(record)
    yield f"{record['checkpoint']}: --model {record['model']}, {size}, {record['corpus']}"
    yield from (f"Made by an earlier version. {fault}" for fault in record["known_faults"])
    shown = list(parts(record))
    for part in shown:
        yield f"\n{part.title}"
        yield from _content(part.shown)
    yield from (f"\n{TITLES[name]}: none; {why}" for name, why in record["absent"].items())
    yield "\nWords"
    yield from (_wrapped(f"{term.name}: {term.meaning}", "    ") for term in glossary.used(_texts(shown)))
    yield "\nRecommendations"
    yield from (f"  {line}" for line in record["sections"]["recommendations"] or ["nothing stands out"])
    yield from ("\n" + line for line in verdict(record))


def _content(shown: Shown) -> Iterator[str]:
    yield _wrapped(shown.note)
    for table in shown.tables:
        yield from ("  " + line for line in plain(table))
    for caption, text in shown.texts:
        yield f"  {caption}: {text!r}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _texts(shown: Sequence[Part]) -> Iterator[str]:
    """The texts of a diagnosis that may use a term of the glossary."""
    for part in shown:
        yield part.shown.note
        for table in part.shown.tables:
            yield from table.head
            yield from (row[0] for row in table.rows if not table.words)


def verdict(record: Row) -> list[str]:
    """The line with the verdict; empty if the run has no training steps to judge."""
    found = record["sections"].get("convergence")
    return [f"Verdict: {found['verdict']}, {found['reason']}"] if found else []


def overview(records: Sequence[Row]) -> Table:
    """A row per figure and a column per checkpoint, without figures that no checkpoint has."""
    rows = [(name, *(figure(record) for record in records)) for name, figure in FIGURES.items()]
    return Table(("", *(record["name"] for record in records)), [row for row in rows if set(row[1:]) != {DASH}])


def _figure(form: str, *keys: Any) -> Callable[[Row], str]:
    return lambda record: number(at(record, *keys), form)


def _share(*keys: Any) -> Callable[[Row], str]:
    return lambda record: percent(at(record, *keys))


def _paired(gain: Row | None) -> str:
    return f"{interval(gain)}, {basis(gain)}" if gain else DASH


FIGURES: dict[str, Callable[[Row], str]] = {
    "model": lambda record: record["model"],
    "parameters": lambda record: f"{record['parameters'] / 1e6:.2f} M",
    "bits per byte": _figure(".4f", "likelihood", "validation", "bits_per_byte"),
    "perplexity per word": lambda record: number(per_word(at(record, "likelihood", "validation")), ",.2f"),
    "perplexity per token": _figure(",.2f", "likelihood", "validation", "ppl_token"),
    "nats per token": _figure(".4f", "likelihood", "validation", "nats_per_token"),
    "against the first, paired (95 %)": lambda record: _paired(record["against_first"]),
    "nats per token of training text": _figure(".4f", "likelihood", "training", "nats_per_token"),
    "verdict": lambda record: at(record, "convergence", "verdict") or DASH,
    "denoising error at ½ κ_c, relative to frequencies'": _figure(".3f", "denoising", "levels", "1/2 kappa_c", "ratio"),
    "denoising error at κ_c, relative to frequencies'": _figure(".3f", "denoising", "levels", "kappa_c", "ratio"),
    "kinetic temperature": _figure(".4f", "langevin", "samplers", 0, "kinetic_temperature"),
    "splats of training": _figure(",d", "splats", "stores", TRAINED, "splats"),
    "coverage by splats of training": _share("splats", "stores", TRAINED, "coverage"),
    "static splats": _figure(",d", "splats", "stores", STATIC, "splats"),
    "coverage by static splats": _share("splats", "stores", STATIC, "coverage"),
    "repetition of samples": _share("samples", "model", "repetition_rate"),
    "distinct-2 of samples": _figure(".3f", "samples", "model", "distinct_2"),
    "effective experts": _figure(".2f", "experts", "layers", 0, "effective"),
}
