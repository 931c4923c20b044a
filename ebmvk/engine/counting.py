"""Calls and seconds per operation, for backends whose device does not count itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from ebmvk.engine.api import OpCount


class Counter:
    """Adds up what `measure` saw. Not for kernels that return before they ran: there the device counts."""

    def __init__(self) -> None:
        self._counts: dict[str, OpCount] = {}

    @contextmanager
    def measure(self, op: str, dispatches: int = 0) -> Iterator[None]:
        """Count one call of `op`; a call that raises is not counted."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        old = self._counts.get(op, OpCount(0, 0, 0.0))
        self._counts[op] = OpCount(old.calls + 1, old.dispatches + dispatches, old.seconds + seconds)

    def snapshot(self) -> Mapping[str, OpCount]:
        """A read-only copy of the counts so far."""
        return MappingProxyType(dict(self._counts))
