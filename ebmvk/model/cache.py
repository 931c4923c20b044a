"""What a model keeps of the tokens it has read, so that reading the next token costs one position
instead of all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ebmvk.model.positions import rotations, window_bias

ROOM = 64  # a new buffer has room for twice its positions, plus this many


class Growing:
    """A tensor (B, ..., n, d) whose n grows.

    Its buffer has spare room, so appending copies only what is new.
    """

    def __init__(self, buffer: Tensor | None = None, begin: int = 0, end: int = 0) -> None:
        self._buffer, self._begin, self._end = buffer, begin, end

    def append(self, new: Tensor, most: int) -> Tensor:
        """Append `new` to the last `most` positions.

        Returns a view of both, valid until the next append.
        """
        begin = max(self._begin, self._end - most)
        old, end = self._end - begin, self._end + new.shape[-2]
        if self._buffer is None or end > self._buffer.shape[-2]:
            with torch.inference_mode(False):  # a caller may leave that mode before the next token
                room = new.new_empty(*new.shape[:-2], 2 * (old + new.shape[-2]) + ROOM, new.shape[-1])
            if self._buffer is not None:
                room[..., :old, :] = self._buffer[..., begin : self._end, :]
            self._buffer, begin, end = room, 0, old + new.shape[-2]
        self._buffer[..., end - new.shape[-2] : end, :] = new
        self._begin, self._end = begin, end
        return self._buffer[..., begin:end, :]

    def numel(self) -> int:
        """How many numbers the buffer has room for."""
        return 0 if self._buffer is None else self._buffer.numel()

    def __getitem__(self, rows: Tensor) -> Growing:
        """A copy with these rows. rows: (b,) int64."""
        with torch.inference_mode(False):
            return Growing(None if self._buffer is None else self._buffer[rows], self._begin, self._end)

    def replace(self, rows: Tensor, other: Growing) -> None:
        """Replace the last positions of these rows by those of `other`, as far back as both reach.

        rows: (b,) int64.
        """
        if self._buffer is not None and other._buffer is not None:
            n = min(self._end - self._begin, other._end - other._begin)
            new = other._buffer[..., other._end - n : other._end, :]
            self._buffer[..., self._end - n : self._end, :].index_copy_(0, rows, new)


class Past(Protocol):
    """Answers what layers ask about earlier tokens. `Cache` does so in torch,
    `ebmvk.model.static_cache.StaticCache` in programs whose shapes are fixed.

    parts: {module: what it keeps}.
    """

    parts: dict[nn.Module, tuple[Any, ...]]

    @property
    def in_padding(self) -> bool:
        """True if the next positions may be padding in some row."""
        ...

    def seen(self, window: int) -> int:
        """The most earlier positions that the next one can see. window: the most that it can see,
        including itself."""
        ...

    def real(self, n: int) -> Tensor:
        """(B, n) bool: which of the next n positions are not padding."""
        ...

    def rotations(self, new: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (new, dim/2) of the rotary angles of the next positions, as tensors like
        `like`."""
        ...

    def masked(self, scores: Tensor, window: int) -> Tensor:
        """Scores (B, H, new, reach) of attention, -inf where a position must not look. `scores` may
        be changed in place."""
        ...


@dataclass(frozen=True)
class Room:
    """A tensor that a module keeps of each row in a cache. The module's method `rooms()` lists
    them, in the order in which its part of the cache has them.

    size: the shape for one row. growing: the tensor is a `Growing` one, with the newest size[-2]
    positions.
    """

    size: tuple[int, ...]
    growing: bool = False

    @property
    def empty(self) -> bool:
        """True if this array has no elements. A model with a single head, for example, has no
        early keys to keep."""
        return 0 in self.size


@dataclass
class Cache:
    """What a model keeps of B rows of tokens. Each module has its own part, which only it
    understands: tensors whose dimension 0 is the rows, or `Growing` ones.

    pads: (B,) int64, how many of a row's first positions are padding: rows of unequal length are
    aligned at their ends. length: positions read so far, with padding.
    """

    pads: Tensor
    length: int = 0
    parts: dict[nn.Module, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._hidden: dict[tuple[int, int, int], Tensor] = {}
        self._pad(self.pads)

    def _pad(self, pads: Tensor) -> None:
        self.pads = pads
        self._pads: list[int] = pads.tolist()  # on the host, because every layer asks for them
        self._least_pads, self._most_pads = min(self._pads, default=0), max(self._pads, default=0)
        self._hidden.clear()

    def lengths(self) -> list[int]:
        """Positions read of each row, without padding."""
        return [max(0, self.length - pads) for pads in self._pads]

    @property
    def in_padding(self) -> bool:
        """True if the next position is padding in some row."""
        return self.length < self._most_pads

    def seen(self, window: int) -> int:
        """The most earlier positions that the next one can see in any row.

        window: how many positions it sees, including itself.
        """
        return min(window - 1, max(0, self.length - self._least_pads))

    def padded(self, new: int, reach: int) -> bool:
        """True if `hidden` marks anything."""
        return self._most_pads > self.length + new - reach

    def real(self, n: int) -> Tensor:
        """(B, n) bool: which of the next n positions are not padding."""
        places = torch.arange(self.length, self.length + n, device=self.pads.device)
        return places >= self.pads[:, None]

    def hidden(self, new: int, reach: int) -> Tensor:
        """(B, 1, new, reach) bool: True where one of the last `reach` positions is padding that the
        newest `new` positions must not see. Padding sees itself, because a softmax over nothing is
        NaN."""
        at = (self.length, new, reach)
        if at not in self._hidden:
            if self._hidden and next(iter(self._hidden))[0] != self.length:
                self._hidden.clear()
            place = torch.arange(self.length + new - reach, self.length + new, device=self.pads.device)
            self._hidden[at] = (place < self.pads[:, None])[:, None, None] & (place != place[-new:, None])
        return self._hidden[at]

    def rotations(self, new: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `Past.rotations`."""
        return rotations(self.length, self.length + new, dim, like.dtype, like.device)

    def masked(self, scores: Tensor, window: int) -> Tensor:
        """See `Past.masked`."""
        new, reach = scores.shape[-2:]
        if new > 1:  # a single position sees everything that is kept
            scores += window_bias(new, reach, window, scores.dtype, scores.device)
        if self.padded(new, reach):
            scores.masked_fill_(self.hidden(new, reach), -math.inf)
        return scores

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows. rows: (b,) int64."""
        self._pad(self.pads[rows])
        self.parts = {module: tuple(value[rows] for value in part) for module, part in self.parts.items()}

    def replace(self, rows: Tensor, other: Cache) -> None:
        """Replace these rows by those of a cache of the same length, as far back as both reach.

        rows: (b,) int64.
        """
        self._pad(self.pads.index_copy(0, rows, other.pads))
        for module, part in self.parts.items():
            self.parts[module] = tuple(
                _replaced(value, rows, new) for value, new in zip(part, other.parts[module], strict=True)
            )


def _replaced(value: Growing | Tensor, rows: Tensor, new: Growing | Tensor) -> Growing | Tensor:
    if isinstance(value, Growing):
        assert isinstance(new, Growing)
        value.replace(rows, new)
        return value
    assert isinstance(new, Tensor)
    return value.index_copy(0, rows, new)
