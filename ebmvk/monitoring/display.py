"""Shows a run while it trains: a progress line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ebmvk.errors import StorageError
from ebmvk.host import terminal
from ebmvk.host.resources import amount
from ebmvk.report.tables import duration, number

REDRAWN = 0.5  # seconds between two drawings of the line; a row draws it, not a thread
DROPPED = ("speed", "validation", "left", "loss")  # what a narrow terminal loses first
LINES = ("score matching", "splats")  # figures that --verbose prints on lines of their own


class _Console(Console):
    """A console that raises if a pipe is closed. Rich's own handler would end the program, and the
    run with it."""

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  # the error being handled


class Display:
    """Shows rows of metrics.jsonl.

    Args:
        quiet: show nothing. verbose: also print every figure. log_every: steps between two printed
        lines.
        total, done: the number of steps of the run, and the step from which it continues.
        console: the output; standard output by default.

    Raises:
        StorageError: from any method, the first time that writing fails; nothing is shown from then
            on.
    """

    def __init__(
        self, *, quiet: bool, log_every: int, total: int, done: int, verbose: bool = False,
        console: Console | None = None,
    ) -> None:  # fmt: skip
        self._quiet, self._verbose, self._log_every, self._total = quiet, verbose, log_every, total
        self._console = console or _Console(highlight=False, emoji=False)
        self._figures = {"step": f"step {done:,}/{total:,}"}
        self._live: Live | None = None
        self._output = ExitStack()
        self._drawn = 0.0

    def start(self) -> None:
        self._output.enter_context(terminal.outlived())
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._line, transient=True)
            with self._shown():
                self._live.start()

    def stop(self) -> None:
        with self._output:
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
        """Print a line, unless --quiet."""
        if not self._quiet:
            with self._shown():
                self._console.print(terminal.hanging(text), soft_wrap=True, markup=False)

    def detail(self, text: str) -> None:
        """Print a line with --verbose."""
        if self._verbose:
            self.say(text)

    def evaluated(self, text: str) -> None:
        """Print the line of an evaluation; on a terminal only with --verbose, because the progress
        line shows the loss."""
        (self.detail if self._live else self.say)(text)

    def doing(self, what: str) -> None:
        """Show in the progress line what the run is doing between two steps."""
        self._figures["left"] = what
        self._draw(0.0)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a row as it was recorded."""
        event, step = row["event"], row["step"]
        if self._quiet or event not in ("step", "eval", "soc"):
            return
        self._figures |= _brief(row, self._total)
        self._draw(REDRAWN)
        due = event == "step" and (step % self._log_every == 0 or step == self._total)
        if self._verbose:
            for line in _details(row, self._total, due=due):
                self.say(line)
        elif due and not self._live:
            self.say(fitted(self._figures))

    def _draw(self, every: float) -> None:
        if self._live and time.perf_counter() - self._drawn >= every:
            with self._shown():
                self._live.refresh()
            self._drawn = time.perf_counter()

    def _line(self) -> Text:
        # One column stays free: some terminals wrap when the last one is written.
        return Text(fitted(self._figures, self._console.width - 1), no_wrap=True, overflow="crop")


def fitted(figures: Mapping[str, str], width: int | None = None) -> str:
    """One line of figures.

    If it is wider than `width`, those named in `DROPPED` are left out, one after another.
    """
    order = [name for name in ("step", "loss", "validation", "speed", "left") if name in figures]
    for drop in (None, *DROPPED):
        order = [name for name in order if name != drop]
        line = "  ".join(figures[name] for name in order)
        if width is None or len(line) <= width:
            break
    return line


def _brief(row: Mapping[str, Any], total: int) -> dict[str, str]:
    """{name: text} of a row for the progress line.

    Both losses are nats per token, so that they can be compared.
    """
    if row["event"] == "eval":
        return {"validation": f"validation {number(row['validation']['nats_per_token'], '.3f')}"}
    if row["event"] == "soc":
        return {}
    left = {"left": _time_left(row["left"])} if "left" in row else {}
    return left | {
        "step": f"step {row['step']:,}/{total:,}",
        "loss": f"loss {number(row['parts']['ce'], '.3f')}",
        "speed": f"{number(row['tokens_per_second'], ',.0f')} tokens/s",
    }


def _time_left(seconds: float | None) -> str:
    return "estimating time left" if seconds is None else f"{duration(seconds)} left"


def _details(row: Mapping[str, Any], total: int, *, due: bool) -> Iterator[str]:
    """Lines for --verbose. due: True if this step prints a line anyway."""
    step, found = row["step"], figures(row)
    if row["event"] == "step":
        if due:
            yield f"step {step}/{total}  " + "  ".join(f"{name} {text}" for name, text in found.items())
        return
    for name in LINES:
        if name in found:
            yield f"step {step}: {name} {found[name]}"


def figures(row: Mapping[str, Any]) -> dict[str, str]:
    """{name: text} of all figures in a row whose event is step, eval or soc."""
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
    if row.get("left") is not None:
        found["left"] = duration(row["left"])
    return found


def _of_evaluation(row: Mapping[str, Any]) -> dict[str, str]:
    levels = row.get("score_matching")
    if not levels:
        return {}
    return {
        "score matching": ", ".join(f"κ {level['kappa']:.3g}: {number(level['loss'], '.3f')}" for level in levels),
    }


def _of_consolidation(row: Mapping[str, Any]) -> dict[str, str]:
    if not row["splats"]:
        return {}
    low, _, median, _, high = row["kappa_quantiles"]
    return {
        "splats": f"{row['active']:,} active of {row['splats']:,}, recalled {number(row['frequency'], '.1f')} times, "
        f"{number(row['age_epochs'], '.2f')} epochs old, kappa {low:.3g} to {high:.3g} (median {median:.3g}), "
        f"{row['nearest_angle']:.3f} rad apart"
    }
