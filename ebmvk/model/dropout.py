"""Dropout in models. Its masks are a function of the seed, the step, the place in the model and the
element, so every device draws the same ones, however a step is divided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ebmvk.engine import dropout as engine
from ebmvk.engine.dropout import words_of

VERSION = 2
"""Version of the masks, kept in checkpoints. 1: masks from torch's generator, in earlier
releases."""
_PLACES = 16  # most calls of `dropout` in one part of a model


@dataclass(frozen=True)
class Masks:
    """What the masks of one pass through a model are made from. A pass without `words` drops
    nothing.

    words: see `ebmvk.engine.dropout.words_of`. part: the part of the model that draws.
    """

    words: Tensor | None = None
    part: int = 0

    @classmethod
    def of_step(cls, seed: int, step: int, first_row: int = 0) -> Masks:
        """The masks of a step. first_row: the first of the step's rows that this pass reads."""
        return cls(words_of(seed, step, first_row))

    def at(self, part: int) -> Masks:
        """The masks of one part of the model. Each part of a pass needs a number of its own."""
        return self if self.words is None else replace(self, part=part)


NONE = Masks()


def dropout(x: Tensor, rate: float, masks: Masks, place: int = 0) -> Tensor:
    """Zero each element with probability round(256 rate)/256; divide the others by the share that
    is kept.

    x: (B, ...), one entry for each row of the pass. place: 0 to 15, the number of the
    call in this part of the model.
    """
    threshold = round(256 * rate)
    if masks.words is None or threshold == 0:
        return x
    return engine.dropout(x, masks.words, _PLACES * masks.part + place, threshold)
