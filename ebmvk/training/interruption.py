"""Ctrl-C and other signals: the first ends a run after the current step, a second one at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ebmvk.host import terminal


class Interruption:
    """Handles Ctrl-C, SIGTERM and SIGHUP. The first signal is remembered, a second one ends the
    program.

    The current step is finished first, so that the run can be saved. Within `at_once`, where
    stopping loses nothing, the first signal ends the block. A closed terminal sends SIGHUP, often
    twice; then nothing more is written to it.
    """

    def __init__(self) -> None:
        self.came = False
        self._at_once = False
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Interruption:
        self._terminals = terminal.terminals()  # a closed terminal couldn't be recognised later
        self._before = {number: signal.signal(number, self._remember) for number in terminal.ending_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        hung_up = number not in (signal.SIGINT, signal.SIGTERM)
        if hung_up:
            terminal.let_go_of(self._terminals)
        again, self.came = self.came and not hung_up, True
        if again or self._at_once:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Run a block that the first signal ends without an error."""
        self._at_once = True
        try:
            yield
        except KeyboardInterrupt:
            if not self.came:
                raise
        finally:
            self._at_once = False
