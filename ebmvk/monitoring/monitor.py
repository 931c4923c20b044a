"""Records a run in metrics.jsonl and TensorBoard, shows it to people, and raises alerts."""

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
# The time left is known after this many steps from the second one on, or after this many seconds
TIMED, ENOUGH = 5, 20.0
LONG = 600.0  # seconds; runs that take longer are told how to take less


def now() -> str:
    """The time with its zone, to the microsecond."""
    return datetime.now(UTC).isoformat()


class Monitor:
    """Writes one JSON object per event, and prints lines for users.

    Args:
        run: the run folder. total, done: the number of steps of the run, and the step from which it
            continues.
        device: torch's device, whose memory is recorded.
        alerts: watches the rows. board: writes for TensorBoard.
        display: prints the lines for users; by default, to standard output.
        smaller: a flag that makes steps cheaper; long runs mention it.

    Raises:
        StorageError: from any method that writes, if the disk is full.
    """

    def __init__(
        self, run: Path, *, quiet: bool, log_every: int, total: int, done: int, device: torch.device | None = None,
        alerts: Alerts | None = None, board: Board | None = None, display: Display | None = None,
        smaller: str | None = None, verbose: bool = False,
    ) -> None:  # fmt: skip
        self._path = run / METRICS_FILE
        self._log_every, self._total, self._device = log_every, total, device or torch.device("cpu")
        self._at = done
        self._warm: tuple[float, int] | None = None  # when the first step ended, and its number
        self._energies: deque[tuple[int, float]] = deque(maxlen=TREND)
        self._timed: list[float] | None = []  # seconds of the steps after the first one
        self._smaller = smaller
        self._alerts, self._board = alerts, board
        self._display = display or Display(quiet=quiet, verbose=verbose, log_every=log_every, total=total, done=done)
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
        """Print a line for users, unless --quiet."""
        self._display.say(text)

    def detail(self, text: str) -> None:
        """Print a line for users with --verbose."""
        self._display.detail(text)

    def evaluated(self, text: str) -> None:
        """Print the line of an evaluation, unless the progress line on a terminal shows it."""
        self._display.evaluated(text)

    def doing(self, what: str) -> None:
        """Show on a terminal what the run is doing between two steps, such as an evaluation."""
        self._display.doing(what)

    def record(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one event. values: JSON values.

        Raises:
            NonFinite: a value is NaN or infinite, which JSON cannot express; the first one is
                named.
        """
        row = {"event": event, "step": step, "time": now(), **values}
        if bad := _non_finite(row, ""):
            raise NonFinite(
                f"step {step}: {bad[0]} of this {event} is {bad[1]}; earlier checkpoints are intact",
                why="a step size, temperature or learning rate is too large",
                hint="remove --langevin-dt, --langevin-T and --kappa, or continue with a smaller --lr",
            )
        self._append(json.dumps(row) + "\n")
        self._at = step
        self._display.show({"left": self._left(step), **row} if event == "step" else row)
        if self._board:
            self._board.add(row)
        for alert in self._alerts.see(row) if self._alerts else ():
            self.alert(step, alert)

    def alert(self, step: int, alert: Alert) -> None:
        """Record an alert and print it."""
        self.record("alert", step, alert.record())
        self.say(f"alert       {alert}")

    def _close_broken_line(self) -> None:
        """Start a new line if a kill or a full disk cut the last one short."""
        if self._path.is_file() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            self._append("\n")

    def _append(self, text: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise storage_error(self._path, error, "recording metrics") from error

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Record one training step. Every `log_every` steps, add the memory in use, the seconds
        left if they are known, and the trend of the energy in nats per 100 steps.
        """
        self._energies.append((step, values["parts"]["ce"]))
        if step % self._log_every == 0 or step == self._total:
            left = self._left(step)
            known = {} if left is None else {"left": left}
            values = {**values, **known, "memory": resources.memory(self._device)}
            if len(self._energies) > 1:
                values["energy_trend"] = 100 * linear_regression(*zip(*self._energies, strict=True)).slope
        self.record("step", step, values)
        if self._warm is None:
            self._warm = time.perf_counter(), step
        else:
            self._tell_time(step, values["seconds"])

    def _left(self, step: int) -> float | None:
        """Seconds that the rest of the run takes, at the pace so far. The first step doesn't count,
        because it is slower. None until enough other steps are done.
        """
        if step == self._total:
            return 0.0
        if self._warm is None:
            return None
        began, first = self._warm
        seconds, steps = time.perf_counter() - began, step - first
        return seconds / steps * (self._total - step) if _suffice(steps, seconds) else None

    def _tell_time(self, step: int, seconds: float) -> None:
        """Print once, after the first steps, how long the rest will take."""
        if self._timed is None:
            return
        self._timed.append(seconds)
        if not _suffice(len(self._timed), sum(self._timed)):
            return
        pace, self._timed = median(self._timed), None
        if step < self._total:
            self.say(f"time        {time_left(pace, step, self._total, pace * (self._total - step), self._smaller)}")


def _suffice(steps: int, seconds: float) -> bool:
    """True if the pace of these steps tells how long the others will take."""
    return steps >= TIMED or (steps > 0 and seconds >= ENOUGH)


def time_left(pace: float, step: int, total: int, left: float, smaller: str | None) -> str:
    """A line about the remaining time of a run.

    pace: seconds per step; left: seconds for all remaining steps.
    """
    said = f"about {duration(max(1.0, left))} for the next {total - step:,} steps, plus evaluations"
    if left < LONG:
        return said
    steps = max(step + 1, round(LONG / pace))
    other = f" or {smaller}" if smaller else ""
    return f"{said}; Ctrl-C saves. --steps {steps}{other} would take about {duration(steps * pace)}"


def _non_finite(value: Any, name: str) -> tuple[str, float] | None:
    """Path and value of the first number in a tree that isn't finite; None if all are."""
    if isinstance(value, float) and not math.isfinite(value):
        return name, value
    if not isinstance(value, Mapping | list):
        return None
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    found = (_non_finite(entry, f"{name}.{key}".lstrip(".")) for key, entry in entries)
    return next((bad for bad in found if bad), None)
