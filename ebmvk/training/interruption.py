"""Ctrl-C and other signals: a run ends at the next step, or at once if asked twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ebmvk.host import terminal


class Interruption:
    """Handles Ctrl-C, SIGTERM and SIGHUP: the first is remembered, a second one ends the program.

    A closed terminal sends SIGHUP, mostly twice; then nothing more is written to it. The current step is finished
    first, so that the run can be saved; within `at_once`, where stopping loses nothing, the first signal ends the
    block.
    """

    def __init__(self) -> None:
        self.came = False
        self.hung_up = False  # by a terminal that was closed
        self._at_once = False
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Interruption:
        self._terminals = terminal.terminals()  # once closed, they cannot be recognised
        self._before = {number: signal.signal(number, self._remember) for number in terminal.ending_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        hung_up = number not in (signal.SIGINT, signal.SIGTERM)
        if hung_up:
            self.hung_up = True
            terminal.let_go_of(self._terminals)
        again, self.came = self.came and not hung_up, True
        if again or self._at_once:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Run a block that the first interruption ends quietly."""
        self._at_once = True
        try:
            yield
        except KeyboardInterrupt:
            if not self.came:
                raise
        finally:
            self._at_once = False
