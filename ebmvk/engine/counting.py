"""Counts calls and seconds of operations, and turns errors of native code into typed errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType

from ebmvk.engine.api import OpCount
from ebmvk.errors import EbmvkError

Translate = Callable[[BaseException], EbmvkError | None]


class Translated:
    """A block whose errors are replaced by `translate(error)`, unless that is None.

    It is a class because, from Python 3.13 on, a generator with `@contextmanager` leaves a
    reference cycle of the error and the frames that it passed. The points of the failed call would
    then stay in device memory until that cycle is collected.
    """

    def __init__(self, translate: Translate) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        found = self._translate(error)
        if found is None:
            return
        try:
            raise found from error
        finally:
            del found  # its traceback holds this frame, which would be another cycle


class Counter:
    """Calls and seconds per operation.

    It can't time kernels that return before they have run; the device counts those.
    """

    def __init__(self) -> None:
        self._counts: dict[str, OpCount] = {}

    def measure(self, op: str, translate: Translate) -> Measured:
        """A block that is one call of `op`.

        If it raises, the error is translated and the call isn't counted.
        """
        return Measured(self, op, translate)

    def add(self, op: str, seconds: float) -> None:
        """Count one call of `op`."""
        old = self._counts.get(op, OpCount(0, 0, 0.0))
        self._counts[op] = OpCount(old.calls + 1, old.dispatches, old.seconds + seconds)

    def snapshot(self) -> Mapping[str, OpCount]:
        """A read-only copy of the counts so far."""
        return MappingProxyType(dict(self._counts))


class Measured(Translated):
    """The block that `Counter.measure` returns."""

    def __init__(self, counter: Counter, op: str, translate: Translate) -> None:
        super().__init__(translate)
        self._counter, self._op, self._start = counter, op, 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._counter.add(self._op, time.perf_counter() - self._start)
        super().__exit__(kind, error, traceback)
