"""Which is better, a model or the trigram: one statement for the terminal, the page of a run and
the model card."""

from __future__ import annotations

from typing import Literal

from ebmvk.evaluation.intervals import ENOUGH
from ebmvk.report.tables import number
from ebmvk.runs.metrics import Row

Verdict = Literal["better", "worse", "too short"]


def verdict(own: Row, base: Row) -> Verdict:
    """Compares the figures of a model and of the trigram for the same tokens."""
    if own["tokens"] < ENOUGH:
        return "too short"
    return "better" if own["bits_per_byte"] < base["bits_per_byte"] else "worse"


def against_trigram(own: Row, base: Row) -> str:
    """The verdict as a clause, with the figures behind it; the winner's comes first."""
    mine, other = (number(row["bits_per_byte"], ".3f") for row in (own, base))
    match verdict(own, base):
        case "better":
            return f"the model beats the trigram: {mine} bits per byte against {other}"
        case "worse":
            return f"the trigram still beats the model: {other} bits per byte against {mine}"
    return f"the model has {mine} bits per byte, the trigram {other}; {too_short(own['tokens'])}"


def too_short(tokens: int) -> str:
    """Why two results aren't compared. tokens: of validation, fewer than `ENOUGH`."""
    return f"too short to compare: {tokens:,} tokens of validation; give at least {ENOUGH:,}"
