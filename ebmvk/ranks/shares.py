"""Which windows of a step are computed together, and by which rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The rows of a step that are computed together. A step has `batches` batches of equal length,
    one after another. Each rank takes an equal, contiguous part of each batch, in the order of the
    ranks."""

    rank: int = 0
    size: int = 1
    batch: int = 0
    batches: int = 1

    @property
    def parts(self) -> int:
        """The number of shares in a step."""
        return self.size * self.batches

    def rows(self, n: int) -> slice:
        """This share's rows among the step's n rows. n: a multiple of `parts`."""
        rows = n // self.parts
        first = (self.batch * self.size + self.rank) * rows
        return slice(first, first + rows)


WHOLE = Share()
