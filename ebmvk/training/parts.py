"""A step in parts: passes, whose gradients and losses are added up, and then one update. Each part
is a pure function and is compiled once, however many passes a step has.

What is added up is kept between the parts, as a tree of tensors:

| entry | tensor |
|---|---|
| gradients | a list of flat arrays; see `layout` |
| losses | (1 + parts,), the loss and its parts |
| sums | (2, S), what the model's own losses need of the whole step, as pairs of float32 |
| sample | (m, d + 1), states and energies of the positions that consolidation sees |

The first pass of a step replaces what is there, so that nothing of an earlier step stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from ebmvk.compute.capture import tracing
from ebmvk.compute.fuse_place import padded
from ebmvk.objective.batch import Batch
from ebmvk.training.step import Step
from ebmvk.training.update import Rule, Tensors

Kept = dict[str, Any]


@dataclass(frozen=True)
class Outline:
    """What a pass returns. gradients: names of the parameters that have one. parts: names of the
    losses. sums: the number of sums. width: that of a state."""

    gradients: list[str]
    parts: list[str]
    sums: int
    width: int

    @staticmethod
    def of(step: Step, parameters: Mapping[str, Tensor], batch: Batch) -> Outline:
        """The outline of a step's passes, found without computing anything."""
        with tracing(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake, given = pytree.tree_map_only(Tensor, mode.from_tensor, (dict(parameters), batch))
            (losses,), gradients = step.gradients(fake, [given])
            sums = step.sums(fake, given) if step.own_losses else torch.zeros(0)
        return Outline(list(gradients), list(losses.parts), len(sums), losses.states.shape[1])


def layout(
    names: Sequence[str], parameters: Mapping[str, Tensor], rules: Mapping[str, Rule], most: int
) -> list[list[str]]:
    """The names in each flat array of at most `most` numbers; a larger tensor has one of its own.

    Parameters that are updated alike lie side by side, so that one loop can update them.
    """
    alike: dict[Rule, list[str]] = {}
    for name in names:
        alike.setdefault(rules[name], []).append(name)
    flats: list[list[str]] = [[]]
    total = 0
    for name in (name for group in alike.values() for name in group):
        size = padded(parameters[name].numel())
        if flats[-1] and total + size > most:
            flats.append([])
            total = 0
        flats[-1].append(name)
        total += size
    return flats


class Parts:
    """The parts of a step.

    Args:
        step: the whole step.
        outline: that of its passes.
        parameters: all of the model's, by name; only their shapes matter.
        samples: positions that consolidation sees; 0 without it.
        most: the most numbers in a flat array.
    """

    def __init__(
        self, step: Step, outline: Outline, parameters: Mapping[str, Tensor], *, samples: int, most: int
    ) -> None:
        self.step, self.outline, self.samples = step, outline, samples
        self._shapes = {name: parameters[name] for name in outline.gradients}
        self.flats = layout(outline.gradients, parameters, step.rules, most)

    def empty(self) -> Kept:
        """The tensors that are kept, before the first pass."""
        kept: Kept = {
            "gradients": [torch.zeros(sum(padded(self._shapes[name].numel()) for name in flat)) for flat in self.flats],
            "losses": torch.zeros(1 + len(self.outline.parts)),
        }
        if self.outline.sums:
            kept["sums"] = torch.zeros(2, self.outline.sums)
        if self.samples:
            kept["sample"] = torch.zeros(self.samples, self.outline.width + 1)
        return kept

    def sums(self, parameters: Tensors, kept: Kept, batch: Tensors, scalars: Tensors) -> tuple[Tensors, Kept, Tensors]:
        """Add what the model's own losses need of a pass.

        batch: `counted` of the pass. scalars: first, bool, True for the first pass of a step.
        """
        before = torch.where(scalars["first"], 0.0, kept["sums"]).double()
        return parameters, {"sums": pairs(before[0] + before[1] + self.step.sums(parameters, _batch_of(batch)))}, {}

    def one_pass(
        self, parameters: Tensors, kept: Kept, batch: Mapping[str, Any], scalars: Tensors
    ) -> tuple[Tensors, Kept, Tensors]:
        """Add a pass.

        batch: pass, a `Batch`; with a sample also place, (m,) int64, the positions among those of
        the pass, and mine, (m,) bool, False for positions of other passes. scalars: see `sums`.
        """
        whole = kept["sums"].double().sum(0) if "sums" in kept else None
        (losses,), gradients = self.step.gradients(parameters, [batch["pass"]], whole)
        first = scalars["first"]
        values = torch.stack([losses.total, *(losses.parts[name] for name in self.outline.parts)])
        flats = [self._flat(flat, gradients) for flat in self.flats]
        made = dict(kept)
        made["gradients"] = [
            torch.where(first, 0.0, old) + own for old, own in zip(kept["gradients"], flats, strict=True)
        ]
        made["losses"] = torch.where(first, 0.0, kept["losses"]) + values
        if "sample" in kept:
            rows = torch.cat((losses.states, losses.energies[:, None]), dim=1).index_select(0, batch["place"])
            made["sample"] = torch.where(batch["mine"][:, None], rows, torch.where(first, 0.0, kept["sample"]))
        return parameters, made, {}

    def update(self, parameters: Tensors, kept: Kept, batch: Kept, scalars: Tensors) -> tuple[Tensors, Kept, Tensors]:
        """Update parameters and `kept["moments"]`, unless something isn't finite.

        batch: empty. scalars: lr and count, as for `Step`. The record is that of `Step`.
        """
        del batch
        flats = kept["gradients"]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(flat) for flat in flats]))
        names = ("total", *(f"part.{name}" for name in self.outline.parts))
        record = dict(zip(names, kept["losses"].unbind(), strict=True))
        record |= {"norm": norm, "finite": torch.isfinite(norm) & torch.isfinite(record["total"])}
        if "sample" in kept:
            record["sample"] = kept["sample"]
        gradients = {
            name: own for flat, names in zip(flats, self.flats, strict=True) for name, own in self._views(flat, names)
        }
        new, moments = self.step.updated(parameters, gradients, kept["moments"], norm, record["finite"], scalars)
        return new, {**kept, "moments": moments}, record

    def _flat(self, names: Sequence[str], gradients: Tensors) -> Tensor:
        pieces = []
        for name in names:
            own = gradients[name].reshape(-1)
            pieces.append(own)
            if rest := padded(len(own)) - len(own):
                pieces.append(own.new_zeros(rest))
        return torch.cat(pieces)

    def _views(self, flat: Tensor, names: Sequence[str]) -> list[tuple[str, Tensor]]:
        found, start = [], 0
        for name in names:
            like = self._shapes[name]
            found.append((name, flat[start : start + math.prod(like.shape)].view(like.shape)))
            start += padded(like.numel())
        return found


def pairs(x: Tensor) -> Tensor:
    """(2, n) float32, whose sum is x (n,) float64 to about 14 digits."""
    high = x.float()
    return torch.stack((high, (x - high.double()).float()))


def counted(batch: Batch) -> Tensors:
    """What `Parts.sums` reads of a pass."""
    names = ("tokens", "rows", "there", "words")
    return {name: own for name in names if (own := getattr(batch, name)) is not None}


def _batch_of(own: Tensors) -> Batch:
    tokens, words = own["tokens"], own.get("words")
    return Batch(tokens, tokens, own.get("rows"), own.get("there"), tokens, None, words, None, None, 1)
