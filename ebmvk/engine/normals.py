"""The operation `ebmvk::normals`: normal random numbers that are the same on every device.

They are a function of a few words, so a step on a device makes them there, and no array of them is
copied to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebmvk.engine.library import operation
from ebmvk.engine.philox import STREAM_NORMALS, box_muller, keyed_words, to_uniform

_MASK = 0xFFFFFFFF


def normals(words: Tensor, rows: Tensor, d: int) -> Tensor:
    """Standard normals (m, d), float32. Not differentiable: nothing that they depend on is real.

    words: see `engine.dropout.words_of`; the last one, the first row, isn't used. rows: (m,) int64,
    0 to 2^31 - 1. Row i holds the normals `philox.normals` of (seed, step, chain rows[i],
    STREAM_NORMALS), so they don't depend on the other rows of the call.
    """
    drawn: Tensor = _NORMALS(words, rows, d)
    return drawn


def reference(words: Tensor, rows: Tensor, d: int) -> Tensor:
    """`normals` in plain torch, on any device."""
    low, high, step, _ = (words.to(torch.int64) & _MASK).unbind()
    drawn = keyed_words((low, high), step, rows, -(-d // 4), STREAM_NORMALS)
    return box_muller(to_uniform(drawn, torch.float32))[..., :d].contiguous()


def _fake(words: Tensor, rows: Tensor, d: int) -> Tensor:  # noqa: ARG001
    return rows.new_empty((len(rows), d), dtype=torch.float32)


_NORMALS = operation("normals(Tensor words, Tensor rows, int d) -> Tensor", reference=reference, fake=_fake)
