"""Shares of a batch, and means over all of it while each rank works on its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ebmvk.ranks.processes import Ranks


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a rank takes: equal, contiguous shares, in the order of the ranks."""

    rank: int = 0
    size: int = 1

    def rows(self, n: int) -> slice:
        """Of n rows, a multiple of the ranks."""
        part = n // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


WHOLE = Share()
_sharing: Ranks | None = None  # a global, not an argument: the losses that need it lie deep in a model


@contextmanager
def sharing(ranks: Ranks) -> Iterator[None]:
    """Within it each rank works on its share of one batch, so that `batch_mean` is of all of it."""
    global _sharing  # noqa: PLW0603
    _sharing = ranks if ranks.size > 1 else None
    try:
        yield
    finally:
        _sharing = None


def batch_mean(x: Tensor) -> Tensor:
    """The mean over the ranks that share the batch, differentiable; x itself where none do."""
    if _sharing is None:
        return x
    mean: Tensor = _Mean.apply(x, _sharing)  # type: ignore[no-untyped-call]
    return mean


class _Mean(torch.autograd.Function):
    """Of a loss that is the sum of all ranks' the gradient is the mean of theirs.

    Through the host, wherever x is: it is little, and where a rank ends in the midst of its pass, NCCL would leave the
    others waiting.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _mean(x, ranks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ranks: Ranks = ctx.ranks
        return _mean(grads[0], ranks), None


def _mean(x: Tensor, ranks: Ranks) -> Tensor:
    return ranks.all_reduce(x.to("cpu", copy=True)).to(x.device) / ranks.size
