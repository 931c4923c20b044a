"""Philox4x32-10: random numbers as a function of (seed, step, chain, coordinate, stream).

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Key = (seed lo,
seed hi), counter = (step, chain, coordinate // 4, stream); the four words of a counter serve
coordinates 4q .. 4q+3. Every backend draws the same bits, so a trajectory doesn't depend on how a
batch is split, on the steps per call, or on the step at which it resumes.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

STREAM_NOISE: Final = 0
"""Noise of the O part of an integrator step."""
STREAM_VELOCITY: Final = 1
"""Initial velocities."""
STREAM_METROPOLIS: Final = 2
"""Uniforms of Metropolis tests."""
STREAM_NOISE_2: Final = 3
"""Noise of the second O of a step of GHMC."""
STREAM_FREE: Final = 4
"""The first stream that callers may use. The engine also keeps the last four for itself."""
STREAM_NORMALS: Final = 2**32 - 4
"""Normals of `engine.normals`: the noise of the denoising loss. chain = row."""
STREAM_DROPOUT: Final = 2**32 - 3
"""Bytes of dropout's masks: chain = place, coordinate // 4 = element // 16."""
STREAM_VMF_COSINE: Final = 2**32 - 2
"""Uniforms of the rejection loop of vMF samples: step = attempt, chain = row."""
STREAM_VMF_TANGENT: Final = 2**32 - 1
"""Normals of the tangent direction of vMF samples."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[int | Tensor, int | Tensor]) -> Words:
    """Ten rounds of Philox. counter: four int64 tensors of one shape, values below 2^32; key: two
    words below 2^32, numbers or int64 scalars.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _multiply(_MULTIPLIERS[0], c0)
        hi1, lo1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(m: int, c: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of m * c. c is multiplied in two 16-bit parts, because the whole product
    would overflow int64."""
    low = m * (c & 0xFFFF)
    high = m * (c >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def words(seed: int, step: Tensor, chain: Tensor, quads: int, stream: int) -> Tensor:
    """Raw words (..., quads, 4) int64 for step and chain that broadcast against each other."""
    return keyed_words((seed & _MASK, (seed >> 32) & _MASK), step, chain, quads, stream)


def keyed_words(key: tuple[int | Tensor, int | Tensor], step: Tensor, chain: Tensor, quads: int, stream: int) -> Tensor:
    """`words` of a seed whose low and high word are `key`: numbers or int64 scalars."""
    # torch.broadcast_shapes imports sympy, which takes a second.
    shape = (*np.broadcast_shapes(step.shape, chain.shape), quads)
    quad = torch.arange(quads, device=step.device).expand(shape)
    constant = torch.full((), stream, dtype=torch.int64, device=step.device).expand(shape)
    return torch.stack(
        philox4x32((step[..., None].expand(shape), chain[..., None].expand(shape), quad, constant), key), dim=-1
    )


def to_uniform(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """(bits + 1/2) 2^-32 in (0, 1). In float32 it is kept within [2^-33, 1 - 2^-24], because u = 1
    would make log u 0.
    """
    if dtype == torch.float64:
        return (bits.to(dtype) + 0.5) * 2.0**-32
    u = bits.to(torch.float32) * 2.0**-32 + 2.0**-33
    return u.clamp(max=1 - 2.0**-24).to(dtype)


def fork(seed: int, number: int) -> int:
    """A 64-bit seed from `seed` and `number`, for calls that must not share random numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest(), "little")


def uniforms(
    seed: int, step: Tensor, chain: Tensor, n: int, *, stream: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """n uniforms per (step, chain): (..., n).

    step and chain: int64 tensors that broadcast against each other.
    """
    bits = words(seed, step, chain, -(-n // 4), stream).flatten(-2)
    return to_uniform(bits[..., :n], dtype)


def normals(
    seed: int, step: Tensor, chain: Tensor, d: int, *, stream: int = STREAM_NOISE, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals (..., d) by Box-Muller on the pairs (u0, u1) and (u2, u3) of each counter.

    step, chain: int64 tensors that broadcast against each other. The normals are made on their
    device.
    """
    working = torch.float64 if dtype == torch.float64 else torch.float32
    return box_muller(to_uniform(words(seed, step, chain, -(-d // 4), stream), working))[..., :d].to(dtype)


def box_muller(u: Tensor) -> Tensor:
    """Standard normals (..., 4 quads) of uniforms (..., quads, 4), by Box and Muller on the pairs
    (u0, u1) and (u2, u3) of each quad."""
    u = u.reshape(*u.shape[:-1], 2, 2)
    radius = torch.sqrt(-2 * torch.log(u[..., 0]))
    angle = 2 * math.pi * u[..., 1]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(-3)
