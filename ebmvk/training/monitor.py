"""What a run says: metrics.jsonl always, a rich progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ebmvk.errors import NonFinite
from ebmvk.training.checkpoint import storage_error


def now() -> str:
    """The time with its zone, to the microsecond."""
    return datetime.now(UTC).isoformat()


class Monitor:
    """One JSON object per event, flushed; what people read goes through `say`.

    Raises:
        StorageError: from any method that writes, when the disk is full.
    """

    def __init__(self, run: Path, *, quiet: bool, log_every: int, total: int, done: int) -> None:
        self._path = run / "metrics.jsonl"
        self._quiet, self._log_every, self._total = quiet, log_every, total
        self._done, self._began, self._first = done, time.perf_counter(), done
        self._console = Console(file=sys.stdout, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._close_broken_line()

    def __enter__(self) -> Monitor:
        if self._console.is_terminal and not self._quiet:
            columns = (TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._task = self._bar.add_task("train", total=self._total, completed=self._done, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line for people, unless --quiet."""
        if not self._quiet:
            (self._bar.console if self._bar else self._console).print(text, soft_wrap=True, markup=False)

    def record(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one event. Values must be JSON-able.

        Raises:
            NonFinite: naming the first value that JSON has no word for.
        """
        row = {"event": event, "step": step, "time": now(), **values}
        if bad := _non_finite(row, ""):
            raise NonFinite(
                f"step {step}: the {event}'s {bad[0]} is {bad[1]}; checkpoints hold what was saved before",
                why="a step size, temperature or learning rate is too large",
                hint="leave --langevin-dt, --langevin-T and --kappa away, or continue with a smaller --lr",
            )
        self._append(json.dumps(row) + "\n")

    def _close_broken_line(self) -> None:
        """After a line that a kill or a full disk cut short, the next event must not become a part of it."""
        if self._path.is_file() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            self._append("\n")

    def _append(self, text: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise storage_error(self._path, error, "recording metrics") from error

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Record one training step and show it: the bar at each step, a plain line every log_every."""
        self.record("step", step, values)
        note = f"loss {values['loss']:.3f}  lr {values['lr']:.1e}  {values['tokens_per_second']:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)
        elif step % self._log_every == 0 or step == self._total:
            left = (time.perf_counter() - self._began) / max(1, step - self._first) * (self._total - step)
            self.say(f"step {step}/{self._total}  {note}  {_duration(left)} left")


def _non_finite(value: Any, name: str) -> tuple[str, float] | None:
    """Path and value of the first number in a tree that is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return name, value
    if not isinstance(value, Mapping | list):
        return None
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    found = (_non_finite(entry, f"{name}.{key}".lstrip(".")) for key, entry in entries)
    return next((bad for bad in found if bad), None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
