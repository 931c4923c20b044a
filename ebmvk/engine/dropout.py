"""The operation `ebmvk::dropout`: dropout whose masks are the same on every device.

Element e of the tensor takes byte e % 16 of Philox counter (step, place, e // 16, STREAM_DROPOUT);
each word gives its lowest byte first. If the byte is below the threshold t the element becomes 0,
else it is multiplied by 256 / (256 - t). Elements are counted over all rows of a step, so the masks
don't depend on how the step is divided. No mask is kept; the backward pass makes it again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebmvk.engine.library import operation
from ebmvk.engine.philox import STREAM_DROPOUT, philox4x32

if TYPE_CHECKING:
    from types import ModuleType

_MASK = 0xFFFFFFFF
_BYTES = 16  # random bytes that one counter gives


def words_of(seed: int, step: int, first_row: int) -> Tensor:
    """(4,) int32, the bits of four words that the masks of a pass are made from: the low and the
    high word of the seed, the step, and the number of the pass's first row among the rows of the
    whole step."""
    words = torch.tensor([seed & _MASK, (seed >> 32) & _MASK, step & _MASK, first_row])
    return torch.where(words >> 31 > 0, words - (1 << 32), words).to(torch.int32)


def dropout(x: Tensor, words: Tensor, place: int, threshold: int) -> Tensor:
    """Dropout of x with probability threshold / 256. Twice differentiable.

    x: (rows, ...), where rows are those of the step. words: see `words_of`. place: the number of
    the call in the pass, 0 to 2^32 - 1. threshold: 0 to 255.
    """
    dropped: Tensor = _DROPOUT(x, words, place, threshold)
    return dropped


def reference(x: Tensor, words: Tensor, place: int, threshold: int) -> Tensor:
    """`dropout` in plain torch, on any device. The product is rounded once, to x's dtype."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept = random_bytes(x.shape, words, place) >= threshold
    return (x.to(wide) * torch.where(kept, 256 / (256 - threshold), 0.0).to(wide)).to(x.dtype)


def random_bytes(shape: torch.Size, words: Tensor, place: int) -> Tensor:
    """The random bytes of a tensor's elements, as int64. Arguments as for `dropout`."""
    size = shape.numel()
    low, high, step, row = (words.to(torch.int64) & _MASK).unbind()
    first = row * (size // max(1, shape[0]))
    block = first // _BYTES + torch.arange(size // _BYTES + 2, device=words.device)
    counter = (step.expand_as(block), torch.full_like(block, place), block, torch.full_like(block, STREAM_DROPOUT))
    drawn = torch.stack(philox4x32(counter, (low, high)), dim=-1)
    every = (drawn[..., None] >> torch.tensor([0, 8, 16, 24], device=drawn.device)) & 0xFF
    return every.flatten()[first % _BYTES + torch.arange(size, device=words.device)].view(shape)


@cache
def _extension() -> ModuleType | None:
    """The compiled kernels; None if they are not built. `reference` gives the same bits."""
    try:
        from ebmvk import _cpu
    except ImportError:
        return None
    return _cpu


def _on_cpu(x: Tensor, words: Tensor, place: int, threshold: int) -> Tensor:
    ops, x = _extension(), x.detach().contiguous()
    if ops is None or x.dtype not in (torch.float32, torch.bfloat16) or not x.numel():
        return reference(x, words, place, threshold)
    low, high, step, row = (word & _MASK for word in words.tolist())
    out = torch.empty_like(x)
    arguments = (low | high << 32, step, place, row * (x.numel() // len(x)), threshold)
    if x.dtype == torch.float32:
        ops.dropout(x.numpy(), out.numpy(), *arguments)
    else:
        ops.dropout_bfloat16(x.view(torch.uint16).numpy(), out.view(torch.uint16).numpy(), *arguments)
    return out


def _fake(x: Tensor, words: Tensor, place: int, threshold: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, words, *ctx.place = inputs
    ctx.save_for_backward(words)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (words,) = ctx.saved_tensors
    return dropout(grad, words, *ctx.place), None, None, None


_DROPOUT = operation(
    "dropout(Tensor x, Tensor words, int place, int threshold) -> Tensor",
    reference=reference,
    fake=_fake,
    cpu=_on_cpu,
    backward=_backward,
    keep=_keep,
)
