"""Reads a run's metrics.jsonl as one history, without steps that a restart has lost.

Lines that a kill has cut short, or that lack what readers use, are counted and skipped.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = dict[str, Any]
METRICS_FILE = "metrics.jsonl"
_LIKELIHOOD = (
    "nats_per_token", "ppl_token", "ppl_word", "bits_per_byte", "tokens", "words", "bytes", "context", "stride"
)  # fmt: skip
_FACTS = (
    "parameters", "vocabulary", "steps", "steps_per_epoch", "threads", "corpus.name", "corpus.reason", "device",
    "torch", "torch_device", "platform", "ebmvk", "time",
    *(f"text.train.{name}" for name in ("tokens", "words", "bytes")),
)  # fmt: skip
USED: dict[str, tuple[str, ...]] = {
    "start": _FACTS,
    "resume": _FACTS,
    "step": ("parts.ce", "grad_norm", "seconds", "tokens"),
    "eval": tuple(f"validation.{name}" for name in _LIKELIHOOD),
    "soc": (),
    "alert": ("sign", "reason", "advice"),
    "end": tuple(f"{of}.{name}" for of in ("validation", "trigram") for name in _LIKELIHOOD),
}
"""{event: paths that readers rely on}. Values are numbers, except for those in WORDS."""
WORDS = {"name", "reason", "device", "torch", "torch_device", "platform", "ebmvk", "time", "sign", "advice"}


@dataclass
class History:
    """Rows by event, in order of step.

    A step that was repeated after a restart appears once, as it was last taken.

    starts: for each start and resume, what the run used from that step on (machine, text,
    versions).
    """

    starts: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    soc: list[Row] = field(default_factory=list)
    alerts: list[Row] = field(default_factory=list)
    end: Row | None = None
    restarts: int = 0
    broken_lines: int = 0

    def until(self, step: int) -> History:
        """The history as it was after a step.

        It includes the `end` of the run only if that step is the last of the run.
        """

        def before(rows: list[Row]) -> list[Row]:
            return [row for row in rows if row["step"] <= step]

        starts = self.starts[:1] + [row for row in self.starts[1:] if row["step"] < step]
        ended = self.end if self.end and self.end["step"] <= step else None
        steps, evals, soc, alerts = map(before, (self.steps, self.evals, self.soc, self.alerts))
        return replace(self, starts=starts, steps=steps, evals=evals, soc=soc, alerts=alerts, end=ended)

    @property
    def facts(self) -> Row:
        """What the run used last: machine, text, versions. Empty before it has started."""
        return self.starts[-1] if self.starts else {}

    @property
    def step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def counts(self) -> dict[str, dict[str, float]]:
        """The newest operation counts of the engine, from the last process of the run."""
        rows = [row for row in [*self.steps, *self.evals, *([self.end] if self.end else [])] if row.get("counts")]
        return max(rows, key=lambda row: row["time"])["counts"] if rows else {}

    @property
    def best(self) -> Row | None:
        """The evaluation with the lowest validation loss, among those on the text that was
        evaluated last.
        """
        digests = [(row["step"], row.get("corpus", {}).get("sha256", {}).get("validation")) for row in self.starts]
        changed = [new[0] for old, new in pairwise(digests) if None not in (old[1], new[1]) and old[1] != new[1]]
        evals = [row for row in self.evals if row["step"] > max(changed, default=-1)]
        return min(evals, key=lambda row: float(row["validation"]["nats_per_token"]), default=None)


def read_history(run: Path) -> History:
    """The history of a run folder; empty if it has no metrics, like an exported model."""
    path = run / METRICS_FILE
    return read_metrics(path) if path.is_file() else History()


def read_metrics(path: Path) -> History:
    """Read metrics.jsonl.

    Bad lines are counted in `broken_lines` and skipped; unknown events are skipped.
    """
    history = History()
    series = {"step": history.steps, "eval": history.evals, "soc": history.soc, "alert": history.alerts}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line, parse_float=_finite, parse_constant=_finite)
            event = row["event"]
            if event not in USED:
                continue
            _check(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            history.broken_lines += 1
            continue
        if event in ("start", "resume"):
            history.restarts += event == "resume"
            # A restart continues from an earlier checkpoint, and repeats the steps after it.
            history.starts[:] = [old for old in history.starts if old["step"] < row["step"]] + [row]
            history.end = None
            for rows in series.values():
                rows[:] = [old for old in rows if old["step"] <= row["step"]]
        elif event == "end":
            history.end = row
        else:
            series[event].append(row)
    return history


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _check(row: Row) -> None:
    """Raises KeyError, TypeError or ValueError if a row lacks what readers use, or has it with
    another type.
    """
    if type(row["step"]) is not int:
        raise TypeError("step")
    for path in USED[row["event"]]:
        keys = path.split(".")
        value: Any = row
        for key in keys:
            value = value[key]
        kinds = (str,) if keys[-1] in WORDS else (int, float)
        if type(value) not in kinds and (value, keys[-1]) != (None, "ppl_word"):
            raise TypeError(path)


@dataclass(frozen=True)
class Alert:
    """A warning about a run. sign: its kind, in a few words; reason: what was seen, with figures;
    advice: what to change, as a flag and a value."""

    sign: str
    reason: str
    advice: str

    def record(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.sign}: {self.reason}; {self.advice}"
