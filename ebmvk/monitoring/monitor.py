"""What a run records and says: metrics.jsonl always, TensorBoard where asked for, and alerts where it goes wrong."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import linear_regression, median
from types import TracebackType
from typing import Any

import torch

from ebmvk.errors import NonFinite
from ebmvk.host import resources
from ebmvk.monitoring.alerts import Alerts, non_finite
from ebmvk.monitoring.display import Display
from ebmvk.monitoring.tensorboard import Board
from ebmvk.report.tables import duration
from ebmvk.runs.atomic import storage_error
from ebmvk.runs.metrics import METRICS_FILE, Alert

TREND = 50  # steps over which the energy's trend is fitted
TIMED, ENOUGH = 6, 20.0  # steps, or seconds if steps are slow, after which the remaining time is printed
WORTH_TELLING, LONG = 60.0, 600.0  # seconds: shorter runs say nothing; longer ones say how to shorten them


def now() -> str:
    """The time with its zone, to the microsecond."""
    return datetime.now(UTC).isoformat()


class Monitor:
    """One JSON object per event, flushed; what people read goes through `say`.

    Args:
        device: torch's, whose memory is recorded. alerts: watch the rows; board: TensorBoard's. display: shows lines
        for people, by default on standard output. smaller: a flag that makes steps cheaper, for long runs.

    Raises:
        StorageError: from any method that writes, when the disk is full.
    """

    def __init__(
        self, run: Path, *, quiet: bool, log_every: int, total: int, done: int, device: torch.device | None = None,
        alerts: Alerts | None = None, board: Board | None = None, display: Display | None = None,
        smaller: str | None = None,
    ) -> None:  # fmt: skip
        self._path = run / METRICS_FILE
        self._log_every, self._total, self._device = log_every, total, device or torch.device("cpu")
        self._began, self._first, self._at = time.perf_counter(), done, done
        self._energies: deque[tuple[int, float]] = deque(maxlen=TREND)
        self._timed: list[float] | None = []  # seconds of the first steps; None once the time was printed
        self._smaller = smaller
        self._alerts, self._board = alerts, board
        self._display = display or Display(quiet=quiet, log_every=log_every, total=total, done=done)
        self._close_broken_line()

    def __enter__(self) -> Monitor:
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()
        try:
            if isinstance(error, NonFinite):
                self.alert(self._at, non_finite(error))
        finally:
            if self._board:
                self._board.close()

    def say(self, text: str) -> None:
        """A line for people, unless --quiet."""
        self._display.say(text)

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
        self._at = step
        self._display.show(row)
        if self._board:
            self._board.add(row)
        for alert in self._alerts.see(row) if self._alerts else ():
            self.alert(step, alert)

    def alert(self, step: int, alert: Alert) -> None:
        """Record and say it."""
        self.record("alert", step, alert.record())
        self.say(f"alert       {alert}")

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
        """Record one training step; every log_every with what it takes of the machine, the energy's trend, in nats per
        100 steps, and the seconds left."""
        self._energies.append((step, values["parts"]["ce"]))
        if step % self._log_every == 0 or step == self._total:
            taken = (time.perf_counter() - self._began) / max(1, step - self._first)
            values = {**values, "left": taken * (self._total - step), "memory": resources.memory(self._device)}
            if len(self._energies) > 1:
                values["energy_trend"] = 100 * linear_regression(*zip(*self._energies, strict=True)).slope
        self.record("step", step, values)
        self._tell_time(step, values["seconds"])

    def _tell_time(self, step: int, seconds: float) -> None:
        """Say once, after the first steps, how long the rest will take, so that a run of hours doesn't look like one of
        minutes. The first step warms up and does not count."""
        if self._timed is None:
            return
        self._timed.append(seconds)
        counted = self._timed[1:]
        if len(self._timed) < TIMED and (not counted or sum(counted) < ENOUGH):
            return
        self._timed = None
        if (left := median(counted) * (self._total - step)) >= WORTH_TELLING:
            self.say(f"time        {time_left(median(counted), step, self._total, left, self._smaller)}")


def time_left(pace: float, step: int, total: int, left: float, smaller: str | None) -> str:
    """A line about the remaining time of a run. pace: seconds per step; left: seconds for all remaining steps."""
    said = f"about {duration(left)} left for {total - step:,} steps, plus evaluations"
    if left < LONG:
        return said
    steps = max(step + 1, round(LONG / pace))
    other = f" or {smaller}" if smaller else ""
    return f"{said}; Ctrl-C saves. For a run of about {duration(steps * pace)} take --steps {steps}{other}"


def _non_finite(value: Any, name: str) -> tuple[str, float] | None:
    """Path and value of the first number in a tree that is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        return name, value
    if not isinstance(value, Mapping | list):
        return None
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    found = (_non_finite(entry, f"{name}.{key}".lstrip(".")) for key, entry in entries)
    return next((bad for bad in found if bad), None)
