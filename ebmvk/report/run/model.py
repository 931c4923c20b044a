"""What the trained model does: denoising, attention, experts."""

from __future__ import annotations

from ebmvk.report import shared
from ebmvk.report.run.source import Run
from ebmvk.report.section import Section
from ebmvk.runs.metrics import Row


def _levels(run: Run) -> list[Row] | None:
    """Noise levels of the last evaluation; None if an early version made the evaluation, without
    references."""
    evals = run.history.evals
    return [level for level in (evals[-1].get("score_matching") or []) if "ratio" in level] or None if evals else None


def _looks(run: Run) -> Row:
    """What the model looked at when training ended."""
    found: Row = (run.history.end or {}).get("looks") or {}
    return found


DENOISING: Section[Run, list[Row]] = Section("denoising", "Denoising", _levels, shared.denoising)
ATTENTION: Section[Run, Row] = Section(
    "attention",
    "Attention",
    lambda run: looks if (looks := _looks(run)).get("attention") else None,
    lambda looks: shared.attention(looks["attention"], looks.get("tokens", [])),
)
EXPERTS: Section[Run, list[Row]] = Section(
    "experts", "Experts", lambda run: _looks(run).get("experts") or None, shared.experts
)
SECTIONS = (DENOISING, ATTENTION, EXPERTS)
