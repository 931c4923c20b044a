"""What people see of a run while it runs: a panel below a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ebmvk.errors import StorageError
from ebmvk.host import terminal
from ebmvk.host.resources import amount
from ebmvk.report.tables import duration, number

REDRAWN = 1.0  # seconds after which the panel is drawn again, by the next row: no thread takes training's time
LINES = ("score matching", "splats")  # figures that have a plain line of their own; what tells the others says them


class _Console(Console):
    """Rich's own handler ends the program, and so the run, if a pipe is closed."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  # the error being handled


class Display:
    """Shows rows of metrics.jsonl. `console`: the output; standard output by default.

    Raises:
        StorageError: from any method, the first time that writing fails; nothing is shown from then on.
    """

    def __init__(self, *, quiet: bool, log_every: int, total: int, done: int, console: Console | None = None) -> None:
        self._quiet, self._log_every, self._total = quiet, log_every, total
        self._console = console or _Console(file=sys.stdout, highlight=False, emoji=False)
        self._figures: dict[str, str] = {}
        self._bar = Progress(TextColumn("step"), BarColumn(), MofNCompleteColumn())
        self._task = self._bar.add_task("train", total=total, completed=done)
        self._live: Live | None = None
        self._drawn = 0.0

    def start(self) -> None:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._panel)
            with self._shown():
                self._live.start()

    def stop(self) -> None:
        if self._live:
            with self._shown():
                self._live.stop()

    @contextmanager
    def _shown(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._quiet, self._live = True, None
            terminal.let_go()
            raise StorageError(
                f"standard output could not be written: {error.strerror or error}",
                why="its reader has ended, as `| head` does, or the disk is full",
                hint="write to a file or terminal that stays open, or use --quiet",
            ) from error

    def say(self, text: str) -> None:
        """A line, unless --quiet."""
        if not self._quiet:
            with self._shown():
                self._console.print(text, soft_wrap=True, markup=False)

    def show(self, row: Mapping[str, Any]) -> None:
        """A row as it was recorded: in the panel, or as a line where it is time for one."""
        event, step = row["event"], row["step"]
        if self._quiet or event not in ("step", "eval", "soc"):
            return
        own = figures(row)
        if self._live:
            self._figures |= own
            self._bar.update(self._task, completed=step)
            if time.perf_counter() - self._drawn >= REDRAWN:
                with self._shown():
                    self._live.refresh()
                self._drawn = time.perf_counter()
        elif event == "step":
            if step % self._log_every == 0 or step == self._total:
                self.say(f"step {step}/{self._total}  {'  '.join(f'{name} {text}' for name, text in own.items())}")
        else:
            for name in LINES:
                if name in own:
                    self.say(f"step {step}: {name} {own[name]}")

    def _panel(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, text in self._figures.items():
            table.add_row(name, text)
        return Group(self._bar, table)


def figures(row: Mapping[str, Any]) -> dict[str, str]:
    """{name: text} of what a row of an event step, eval or soc tells."""
    if row["event"] == "step":
        return _of_step(row)
    return _of_evaluation(row) if row["event"] == "eval" else _of_consolidation(row)


def _of_step(row: Mapping[str, Any]) -> dict[str, str]:
    parts = ", ".join(f"{name} {number(value, '.3f')}" for name, value in row["parts"].items())
    found = {
        "loss": f"{number(row['loss'], '.3f')} ({parts})",
        "lr": number(row["lr"], ".1e"),
        "speed": f"{number(row['tokens_per_second'], ',.0f')} tokens/s",
    }
    if "energy_trend" in row:
        energy, trend = number(row["parts"]["ce"], ".3f"), number(row["energy_trend"], "+.3f")
        found["energy"] = f"{energy}, {trend} in 100 steps"
    if "memory" in row:
        held = row["memory"]
        device = f", {amount(held['device'])} on the device" if "device" in held else ""
        found["memory"] = f"{amount(held.get('resident', held['peak']))}, {amount(held['peak'])} at most{device}"
    if "left" in row:
        found["left"] = duration(row["left"])
    return found


def _of_evaluation(row: Mapping[str, Any]) -> dict[str, str]:
    found = {"perplexity": f"{number(row['validation']['ppl_token'], ',.2f')} per token at step {row['step']}"}
    levels = row.get("score_matching")
    if levels:
        found["score matching"] = ", ".join(
            f"κ {level['kappa']:.3g}: {number(level['loss'], '.3f')}" for level in levels
        )
    return found


def _of_consolidation(row: Mapping[str, Any]) -> dict[str, str]:
    order = f"phi {number(row['phi'], '.3f')} against {number(row['threshold'], '.3f')}"
    found = {"consolidation": f"{number(row['rate'], '.2f')} events in 1,000 states, {order}"}
    if row["splats"]:
        low, _, median, _, high = row["kappa_quantiles"]
        found["splats"] = (
            f"{row['active']:,} active of {row['splats']:,}, recalled {number(row['frequency'], '.1f')} times, "
            f"{number(row['age_epochs'], '.2f')} epochs old, kappa {low:.3g} to {high:.3g} (median {median:.3g}), "
            f"{row['nearest_angle']:.3f} rad apart"
        )
    return found
