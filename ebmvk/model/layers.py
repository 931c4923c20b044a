"""Layers that the models share: causal attention in a window, with or without a cache, and its
block.

Positions are rotary, and no distance in a window exceeds the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Growing, Past, Room
from ebmvk.model.dropout import NONE, Masks, dropout
from ebmvk.model.positions import rotations, window_bias

Result = TypeVar("Result")

MIN_BLOCK = 32  # least tokens per attention block: smaller products waste the cores


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i+dim/2}) by position. x: (B, H, T, dim)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class _RmsNorm(torch.autograd.Function):
    """F.rms_norm of float32 or float64 with its gradient in closed form, (g - y mean(g y)) / rms.
    That takes two passes over the rows instead of ten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        inverse = (square + torch.finfo(x.dtype).eps).rsqrt()
        y: Tensor = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        (grad,) = grads
        along = torch.linalg.vecdot(grad, y)[..., None] / y.shape[-1]
        gradient: Tensor = torch.addcmul(grad, y, along, value=-1).mul_(inverse)
        return gradient


def rms_norm(x: Tensor) -> Tensor:
    """sqrt(d) projx(x), without parameters: the matrix that follows would absorb a scale."""
    # Half precision has an epsilon of its own, which would be added to the mean square.
    if x.dtype in (torch.bfloat16, torch.float16) or not torch.is_grad_enabled():
        return F.rms_norm(x, (x.shape[-1],))
    normed: Tensor = _RmsNorm.apply(x)  # type: ignore[no-untyped-call]
    return normed


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """`_banded_attention`, or torch's fused kernels (flash attention) on a CUDA device if the
    window holds the whole sequence."""
    return (_fused_attention if q.is_cuda and q.shape[-2] <= window else _banded_attention)(q, k, v, window)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:  # noqa: ARG001
    """`_banded_attention` if the window holds the whole sequence."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention over the last `window` tokens, in blocks that see themselves and the block
    before.

    q, k, v: (B, H, T, dim) -> (B, H, T, dim). It is two matrix products around a softmax, because
    torch's fused CPU kernel is three times slower in bfloat16 and has no windows.
    """
    length = q.shape[-2]
    block = max(window, MIN_BLOCK)
    if length <= block + block // 2:
        scores = q @ k.transpose(-1, -2)
        return torch.softmax(scores + window_bias(length, length, window, scores.dtype, q.device), dim=-1) @ v
    # The first block masks the zeros before it, because keys of zeros would get weight.
    tail = -length % block
    shape = (*q.shape[:-2], -1, block, q.shape[-1])
    q, k, v = (F.pad(x, (0, 0, 0, tail)).reshape(shape) for x in (q, k, v))
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, -1)), x], dim=-2) for x in (k, v))
    scores = q @ k.transpose(-1, -2)
    bias = window_bias(block, 2 * block, window, scores.dtype, q.device).repeat(q.shape[-3], 1, 1)
    bias[0, :, :block] = -math.inf
    return (torch.softmax(scores + bias, dim=-1) @ v).flatten(-3, -2)[..., :length, :]


class Attention(nn.Module):
    """Sliding-window attention with normalised queries and keys, and a learned temperature per
    head.

    In half of the heads each token uses the key of the token before it, so that one layer can find
    what followed this token when it occurred last.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)
        # Queries and keys are unit vectors, so scores start within +- sqrt(dim of a head).
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.sqrt(dim // heads)))

    def forward(self, x: Tensor, cache: Past | None = None) -> Tensor:
        """x: (B, T, d) -> (B, T, d). With a cache, x are the positions after those in the cache."""
        q, k, v = self._heads(x, cache)
        if cache:
            mixed = self._cached_attention(q, k, v, cache)
        else:
            mixed = _causal_attention(q.to(v.dtype), k.to(v.dtype), v, self.window)
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return projected

    def weights(self, x: Tensor) -> Tensor:
        """How much each position looks at every other one: (B, H, T, T), rows sum to 1. x: (B, T,
        d).
        """
        q, k, _ = self._heads(x, None)
        bias = window_bias(x.shape[1], x.shape[1], self.window, q.dtype, q.device)
        return torch.softmax(q @ k.transpose(-1, -2) + bias, dim=-1)

    def rooms(self) -> tuple[Room, ...]:
        """What a cache keeps of a row: the last key of the heads that shift keys by one token, and
        the newest keys and values."""
        width = self.out.in_features // self.heads
        kept = Room((self.heads, self.window, width), growing=True)
        return Room((self.heads // 2, 1, width)), kept, kept

    def _heads(self, x: Tensor, cache: Past | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (normalised, rotated and scaled) and values, each (B, H, T, dim)."""
        batch, length, dim = x.shape
        width = dim // self.heads
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width).permute(2, 0, 3, 1, 4)
        cos, sin = cache.rotations(length, width, x) if cache else rotations(0, length, width, x.dtype, x.device)
        early, own = k.tensor_split([self.heads // 2], dim=1)
        both = torch.cat([q, self._shifted(early, cache), own], dim=1).to(x.dtype)
        q, k = _rotate(rms_norm(both), cos, sin).chunk(2, dim=1)
        root = math.sqrt(width)
        return q * (self.temperature / root), k / root, v

    def _shifted(self, early: Tensor, cache: Past | None) -> Tensor:
        """Keys (B, H/2, T, dim), each moved to the token after it; the first token gets 0."""
        if cache is None:
            return F.pad(early, (0, 0, 1, -1))
        if cache.in_padding:
            early = early * cache.real(early.shape[-2])[:, None, :, None].to(early.dtype)
        last, keys, values = cache.parts.get(self) or (torch.zeros_like(early[..., :1, :]), Growing(), Growing())
        cache.parts[self] = (early[..., -1:, :], keys, values)
        return torch.cat([last, early[..., :-1, :]], dim=-2) if early.shape[-2] > 1 else last

    def _cached_attention(self, q: Tensor, k: Tensor, v: Tensor, cache: Past) -> Tensor:
        """Attention of new positions over themselves and at most window - 1 cached ones."""
        _, keys, values = cache.parts[self]
        past = cache.seen(self.window)
        k, v = keys.append(k, past), values.append(v, past)
        scores = cache.masked(q @ k.transpose(-1, -2), self.window)
        return torch.softmax(scores, dim=-1) @ v


class _SquaredRelu(torch.autograd.Function):
    """max(x, 0)^2 with the gradient 2 max(x, 0) g in one pass.

    Autograd takes four, over the widest tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.addcmul(torch.zeros((), dtype=y.dtype, device=y.device), grads[0], y, value=2)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    if not torch.is_grad_enabled():
        return F.relu(x).square_()
    squared: Tensor = _SquaredRelu.apply(x)  # type: ignore[no-untyped-call]
    return squared


class Block(nn.Module):
    """Pre-norm attention and feed-forward, `width` wide.

    Both start at zero, so that depth does no harm at first.
    """

    def __init__(
        self, config: ModelConfig, window: int, width: int, activation: Callable[[Tensor], Tensor] = squared_relu
    ) -> None:
        super().__init__()
        self.attention = Attention(config.latent_dim, config.n_heads, window)
        self.up = nn.Linear(config.latent_dim, width, bias=False)
        self.down = nn.Linear(width, config.latent_dim, bias=False)
        nn.init.zeros_(self.down.weight)
        self.rate, self.activation = config.dropout, activation

    def forward(self, x: Tensor, cache: Past | None = None, masks: Masks = NONE) -> Tensor:
        """x: (B, T, d) -> (B, T, d)."""
        x = x + dropout(self.attention(rms_norm(x), cache), self.rate, masks, 0)
        hidden = self.activation(self.up(rms_norm(x)))
        return x + dropout(self.down(hidden), self.rate, masks, 1)


def apply(
    block: Callable[[Tensor, Past | None, Masks], Result], x: Tensor, cache: Past | None, masks: Masks, *, again: bool
) -> Result:
    """Return block(x, cache, masks). again: in training, keep no intermediate values and compute
    the block once more for the gradient."""
    if again and cache is None and torch.is_grad_enabled():
        # Nothing in a block draws from torch's generators, so their states needn't be kept.
        kept: Result = checkpoint(block, x, None, masks, use_reentrant=False, preserve_rng_state=False)
        return kept
    return block(x, cache, masks)
