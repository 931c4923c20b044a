"""Exact likelihood of validation, compared with the trigram and the run's best evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from ebmvk.report.run.source import Run
from ebmvk.report.section import Section, Shown
from ebmvk.report.tables import Table, number, per_word, why_no_word
from ebmvk.report.trigram import against_trigram
from ebmvk.runs.metrics import Row

HEAD = (
    "validation", "bits per byte", "perplexity / token", "perplexity / word", "nats / token", "tokens", "words",
    "bytes", "context / stride",
)  # fmt: skip


def _likelihood(run: Run) -> Shown:
    note = " ".join(remarks(run)) or "No evaluation yet."
    rows = [
        (
            what, number(row["bits_per_byte"]), number(row["ppl_token"], ",.2f"), number(per_word(row), ",.2f"),
            number(row["nats_per_token"]), f"{row['tokens']:,}", f"{row['words']:,}", f"{row['bytes']:,}",
            f"{row['context']} / {row['stride']}",
        )
        for what, row in _rows(run)
    ]  # fmt: skip
    return Shown(note, tables=[Table(HEAD, rows)] if rows else [])


def _rows(run: Run) -> Iterator[tuple[str, Row]]:
    history = run.history
    if history.end:
        yield "this model", history.end["validation"]
        yield "Kneser–Ney trigram, same tokens", history.end["trigram"]
    if history.best:
        yield f"best evaluation (step {history.best['step']:,}, part of validation)", history.best["validation"]


def remarks(run: Run) -> Iterator[str]:
    """Sentences: which is better, model or trigram, and why perplexity per word is missing."""
    if run.history.end:
        line = against_trigram(run.history.end["validation"], run.history.end["trigram"])
        yield f"{line[0].upper()}{line[1:]}."
    found = run.last_validation
    if found and per_word(found) is None:
        yield f"Perplexity per word: {why_no_word(found)}."


SECTIONS: tuple[Section[Run, Run]] = (Section("likelihood", "Exact likelihood", lambda run: run, _likelihood),)
