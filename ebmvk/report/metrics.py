"""A run's metrics.jsonl as data: the history that counts, with restarts resolved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Row = dict[str, Any]
EVENTS = ("start", "resume", "step", "eval", "soc", "alert", "end")


@dataclass
class History:
    """Rows by event, steps rising. A step that was taken again after a restart appears once, as it was last taken."""

    facts: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    soc: list[Row] = field(default_factory=list)
    alerts: list[Row] = field(default_factory=list)
    end: Row | None = None
    restarts: int = 0
    broken_lines: int = 0

    def until(self, step: int) -> History:
        """The history as it was after a step; the end of the run only where that is its last one."""

        def before(rows: list[Row]) -> list[Row]:
            return [row for row in rows if row["step"] <= step]

        ended = self.end if self.end and self.end["step"] <= step else None
        steps, evals, soc, alerts = map(before, (self.steps, self.evals, self.soc, self.alerts))
        return replace(self, steps=steps, evals=evals, soc=soc, alerts=alerts, end=ended)

    @property
    def step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def counts(self) -> dict[str, dict[str, float]]:
        """The newest operation counts of the engine, of the last process of the run."""
        rows = [row for row in [*self.steps, *self.evals, *([self.end] if self.end else [])] if row.get("counts")]
        return max(rows, key=lambda row: row["time"])["counts"] if rows else {}

    @property
    def best(self) -> Row | None:
        """The evaluation of the lowest validation loss."""
        return min(self.evals, key=lambda row: float(row["validation"]["nats_per_token"]), default=None)


def read_metrics(path: Path) -> History:
    """Read metrics.jsonl; a line that a kill cut short is counted in `broken_lines` and skipped, events of other kinds
    are skipped."""
    history = History()
    series = {"step": history.steps, "eval": history.evals, "soc": history.soc, "alert": history.alerts}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            event = row["event"]
            if event not in EVENTS:
                continue
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            history.broken_lines += 1
            continue
        if event in ("start", "resume"):
            history.restarts += event == "resume"
            history.facts, history.end = row, None
            # A restart continues from an earlier checkpoint: what came after it was lost and is taken again.
            for rows in series.values():
                rows[:] = [old for old in rows if old["step"] <= step]
        elif event == "end":
            history.end = row
        else:
            series[event].append(row)
    return history
