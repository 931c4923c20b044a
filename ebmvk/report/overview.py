"""Diagnoses as text, and the figures of several checkpoints side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ebmvk.evaluation.intervals import basis
from ebmvk.report.diagnosis_sections import TITLES, sections
from ebmvk.report.tables import DASH, STATIC, TRAINED, Table, at, interval, number, per_word, percent, plain
from ebmvk.runs.metrics import Row


def lines(record: Row) -> Iterator[str]:
    """A checkpoint's diagnosis as text: the verdict comes first, and again last, below figures and recommendations."""
    size = f"{record['parameters'] / 1e6:.2f} M parameters"
    yield from verdict(record)
    yield f"{record['checkpoint']}: --model {record['model']}, {size}, {record['corpus']}"
    yield from (f"Made by an earlier version. {fault}" for fault in record["known_faults"])
    for section in sections(record):
        yield f"\n{section.title}\n{section.note}"
        for table in section.tables:
            yield from ("  " + line for line in plain(table))
        for caption, text in section.texts:
            yield f"  {caption}: {text!r}"
    yield from (f"\n{TITLES[name]}: none; {why}" for name, why in record["absent"].items())
    yield "\nRecommendations"
    yield from (f"  {line}" for line in record["sections"]["recommendations"] or ["nothing stands out"])
    yield from ("\n" + line for line in verdict(record))


def verdict(record: Row) -> list[str]:
    """The line that matters most; empty if the run has too few evaluations to judge."""
    found = record["sections"].get("convergence")
    return [f"Verdict: {found['verdict']}, {found['reason']}"] if found else []


def overview(records: Sequence[Row]) -> Table:
    """A row per figure, a column per checkpoint; figures that none has are left out."""
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
    "denoising error at ½ κ_c, of frequencies'": _figure(".3f", "denoising", "levels", "1/2 kappa_c", "ratio"),
    "denoising error at κ_c, of frequencies'": _figure(".3f", "denoising", "levels", "kappa_c", "ratio"),
    "kinetic temperature": _figure(".4f", "langevin", "samplers", 0, "kinetic_temperature"),
    "splats of training": _figure(",d", "splats", "stores", TRAINED, "splats"),
    "coverage by them": _share("splats", "stores", TRAINED, "coverage"),
    "static splats": _figure(",d", "splats", "stores", STATIC, "splats"),
    "coverage by static ones": _share("splats", "stores", STATIC, "coverage"),
    "repetition of samples": _share("samples", "model", "repetition_rate"),
    "distinct-2 of samples": _figure(".3f", "samples", "model", "distinct_2"),
    "effective experts": _figure(".2f", "experts", "layers", 0, "effective"),
}
