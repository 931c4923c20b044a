"""Parts of a step: which of its windows are computed at once, and by which rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Which rows of a step are computed at once. A step has `batches` batches of equal length, one after another; of
    each, every rank takes an equal, contiguous part, in the order of the ranks."""

    rank: int = 0
    size: int = 1
    batch: int = 0
    batches: int = 1

    @property
    def parts(self) -> int:
        """How many shares a step has."""
        return self.size * self.batches

    def rows(self, n: int) -> slice:
        """Of a step's n rows, a multiple of `parts`."""
        rows = n // self.parts
        first = (self.batch * self.size + self.rank) * rows
        return slice(first, first + rows)


WHOLE = Share()
