"""A cache whose shapes never change, for programs that are compiled once and keep it on a device.

It holds the same numbers as `ebmvk.model.cache.Cache`. What changes from call to call is a tensor:
the host says how many positions were read, how many of a row's first ones are padding, and the
angles of the new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebmvk.errors import ArgumentError
from ebmvk.model.cache import Room

State = Mapping[str, list[Tensor]]
"""What the modules keep, by their names; the tensors of a module are in the order of its rooms.
Empty ones are left out."""


def keeping(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[Room, ...]]]:
    """(name, module, rooms) of each module that keeps something. Such a module has a method
    `rooms`."""
    for name, module in model.named_modules():
        rooms = getattr(module, "rooms", None)
        if callable(rooms):
            yield name, module, rooms()


def empty(model: nn.Module, rows: int) -> dict[str, list[Tensor]]:
    """The state of a cache of some rows that has read nothing."""
    return {
        name: [torch.zeros(rows, *room.size) for room in rooms if not room.empty] for name, _, rooms in keeping(model)
    }


@dataclass(frozen=True)
class Place:
    """Where the new positions of all rows are.

    Attributes:
        length: () int64, positions read so far, with padding. It may be below 0 if all the
            positions up to 0 are padding.
        pads: (B,) int64, the position of each row's first token.
        cos, sin: (new, dim/2) float32, of the angles of the new positions.
        takes: (B,) bool, the rows that take part; others keep what they have. None: all do.
        anew: (B,) bool, the rows that forget what was read before. None: none does.
    """

    length: Tensor
    pads: Tensor
    cos: Tensor
    sin: Tensor
    takes: Tensor | None = None
    anew: Tensor | None = None


class StaticCache:
    """The `ebmvk.model.cache.Past` of one call of a model.

    With one new position, `takes` and `anew` are None, and no row that matters is in its padding.
    """

    def __init__(self, model: nn.Module, state: State, place: Place) -> None:
        self.place = place
        self.parts: dict[nn.Module, tuple[Any, ...]] = {}
        self._masks: dict[tuple[int, int, int], Tensor] = {}
        self._before = state
        self._modules = {name: (module, rooms) for name, module, rooms in keeping(model)}
        for name, (module, rooms) in self._modules.items():
            kept = iter(state[name])
            self.parts[module] = tuple(self._part(room, kept) for room in rooms)

    @property
    def in_padding(self) -> bool:
        """See `Past.in_padding`."""
        return self.place.takes is not None

    def seen(self, window: int) -> int:
        """See `Past.seen`."""
        return window - 1

    def real(self, n: int) -> Tensor:
        """See `Past.real`."""
        return self.place.length + torch.arange(n) >= self.place.pads[:, None]

    def rotations(self, new: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `Past.rotations`."""
        assert self.place.cos.shape == (new, dim // 2)
        return self.place.cos.to(like.dtype), self.place.sin.to(like.dtype)

    def masked(self, scores: Tensor, window: int) -> Tensor:
        """See `Past.masked`. The scores are for the places of a ring; with more than one new
        position, the new positions follow the ring."""
        new, reach = scores.shape[-2:]
        if (new, reach, window) not in self._masks:
            self._masks[new, reach, window] = self._hidden(new, reach, window)
        return scores.masked_fill(self._masks[new, reach, window], -torch.inf)

    def state(self) -> dict[str, list[Tensor]]:
        """What the modules keep after the call.

        Raises ArgumentError if a module keeps something that it has no room for.
        """
        for module in self.parts.keys() - {module for module, _ in self._modules.values()}:
            raise ArgumentError(
                f"{type(module).__name__} keeps something in a cache, and doesn't say how much",
                hint="Give it a method rooms(), as the guide to new models does, or use --device cpu.",
            )
        return {
            name: [self._after(own, old) for own, old in zip(self._filled(name), self._before[name], strict=True)]
            for name in self._modules
        }

    def _part(self, room: Room, kept: Iterator[Tensor]) -> Ring | Tensor:
        if room.empty:
            return torch.zeros(len(self.place.pads), *room.size)
        old = next(kept)
        return Ring(old, self.place) if room.growing else self._begun(old)

    def _filled(self, name: str) -> list[Ring | Tensor]:
        """A module's part as it is now, without empty tensors."""
        module, rooms = self._modules[name]
        return [own for own, room in zip(self.parts[module], rooms, strict=True) if not room.empty]

    def _hidden(self, new: int, reach: int, window: int) -> Tensor:
        """(B, 1, new, reach) bool: True where a new position must not look. Padding sees itself,
        because a softmax over nothing is NaN."""
        length = self.place.length
        query = length + torch.arange(new)
        ring = newest(reach if new == 1 else reach - new, length + int(new == 1))
        places = ring if new == 1 else torch.cat([ring, query])
        age = query[:, None] - places
        padding = (places < self.place.pads[:, None])[:, None] & (age != 0)
        return (padding | ((age < 0) | (age >= window)))[:, None]

    def _begun(self, old: Tensor) -> Tensor:
        """A tensor of rows, with zeros in those that begin anew."""
        anew = self.place.anew
        return old if anew is None else torch.where(_along(anew, old), 0.0, old)

    def _after(self, own: Ring | Tensor, old: Tensor) -> Tensor:
        if isinstance(own, Ring):
            return own.kept
        takes = self.place.takes
        return own if takes is None else torch.where(_along(takes, old), own, old)


class Ring:
    """The newest positions of a tensor (B, H, R, dim): position p is at place p mod R.

    A new position is written over the oldest one, so nothing else moves.
    """

    def __init__(self, kept: Tensor, place: Place) -> None:
        self.kept, self._place = kept, place

    def append(self, new: Tensor, most: int) -> Tensor:
        """See `ebmvk.model.cache.Growing.append`. The rows come in the order
        that `StaticCache.masked` describes."""
        slots, n, length, old = self.kept.shape[-2], new.shape[-2], self._place.length, self.kept
        assert most < slots
        at = newest(slots, length + n) - length  # which of the new positions each place gets
        written = (at >= 0)[:, None]
        if self._place.takes is not None:
            written = written & _along(self._place.takes, old)
        if n == 1:
            self.kept = torch.where(written, new, old)
            return self.kept
        self.kept = torch.where(written, new.index_select(-2, at.clamp(min=0)), old)
        return torch.cat([old, new], dim=-2)


def newest(slots: int, length: Tensor) -> Tensor:
    """The newest position before `length` at each place of a ring: (slots,).

    A number below 0 means that the place is empty.
    """
    last = length - 1
    return last - torch.remainder(last - torch.arange(slots), slots)


def _along(rows: Tensor, like: Tensor) -> Tensor:
    """Rows (B,) as (B, 1, ...), to go with a tensor of rows."""
    return rows.view(-1, *[1] * (like.ndim - 1))
