"""What a position may look at, and the angles of rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmvk.model.constants import constant

_ANGLES = 1024  # positions whose rotary angles are computed at once


@constant
def window_bias(block: int, reach: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(block, reach): 0 where a query may look (itself and the window-1 tokens before it), -inf
    elsewhere.

    The block's own tokens are the last of the `reach` keys.
    """
    age = torch.arange(block, device=device)[:, None] - torch.arange(reach, device=device) + (reach - block)
    allowed = (age >= 0) & (age < window)
    return torch.zeros(block, reach, dtype=dtype, device=device).masked_fill(~allowed, -math.inf)


@constant
def _angles(length: int, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    frequency = 1000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) * 2 / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rotations(begin: int, end: int, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (T, dim/2) of the rotary angles t 1000^{-2i/dim}, for t from begin to end. The
    base is small because windows are short."""
    cos, sin = _angles(_ANGLES * math.ceil(end / _ANGLES), dim, dtype, device)
    return cos[begin:end], sin[begin:end]
