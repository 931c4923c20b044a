"""Numbers as pairs of float32, for devices without float64: a value is the sum of both parts.

A pair has about 48 bits, so its relative error is near 1e-14. Sums and products follow Dekker
(Numer. Math. 18, 1971) and Knuth (TAOCP 2, 4.2.2); nothing here needs a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

WAYS = 4
"""The number of terms that one level of a sum adds up."""
_SPLIT = 4097.0  # 2^12 + 1: halves the 24 bits of a float32


@dataclass(frozen=True)
class Pair:
    """A float64 tensor, high + low. low: None if float32 represents all values exactly."""

    high: Tensor
    low: Tensor | None = None

    @property
    def lower(self) -> Tensor:
        return torch.zeros_like(self.high) if self.low is None else self.low

    def each(self, function: Callable[[Tensor], Any]) -> Pair:
        """Both parts with a function applied that only moves elements."""
        return Pair(function(self.high), None if self.low is None else function(self.low))


# -------------------------------------------------------------------------------------- arithmetic


def two_sum(a: Tensor, b: Tensor) -> Pair:
    """a + b, exactly."""
    total = a + b
    part = total - a
    return Pair(total, (a - (total - part)) + (b - part))


def _quick(a: Tensor, b: Tensor) -> Pair:
    """a + b, exactly if |a| >= |b|."""
    total = a + b
    return Pair(total, b - (total - a))


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    wide = a * _SPLIT
    high = wide - (wide - a)
    return high, a - high


def two_product(a: Tensor, b: Tensor) -> Pair:
    """a b, exactly unless its low part underflows."""
    product = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return Pair(product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2)


def add(x: Pair, y: Pair) -> Pair:
    made = two_sum(x.high, y.high)
    lows = [part for part in (x.low, y.low) if part is not None]
    if not lows:
        return made
    if len(lows) == 1:
        return _quick(made.high, made.lower + lows[0])
    small = two_sum(*lows)
    made = _quick(made.high, made.lower + small.high)
    return _quick(made.high, made.lower + small.lower)


def negative(x: Pair) -> Pair:
    return x.each(torch.neg)


def multiply(x: Pair, y: Pair) -> Pair:
    made = two_product(x.high, y.high)
    low = made.lower
    if y.low is not None:
        low = low + x.high * y.low
    if x.low is not None:
        low = low + x.low * y.high
    return made if low is made.low else _quick(made.high, low)


def divide(x: Pair, y: Pair) -> Pair:
    first = x.high / y.high
    rest = add(x, negative(multiply(y, Pair(first))))
    second = rest.high / y.high
    rest = add(rest, negative(multiply(y, Pair(second))))
    made = _quick(first, second)
    return add(made, Pair(rest.high / y.high))


def root_reciprocal(x: Pair) -> Pair:
    """x^{-1/2}, by a step of Newton's method from the float32 result."""
    guess = Pair(torch.rsqrt(x.high))
    error = add(whole(1.0, x), negative(multiply(x, multiply(guess, guess))))
    return add(guess, Pair(guess.high * error.high * 0.5))


def total(x: Pair) -> Pair:
    """The sum over the last axis, in a tree whose order depends only on the axis's length."""
    while x.high.shape[-1] > 1:
        count = x.high.shape[-1]
        size = -(-count // WAYS)
        parts = [_piece(x, start, size) for start in range(0, count, size)]
        x = parts[0]
        for part in parts[1:]:
            x = add(x, part)
    return x.each(lambda own: own.squeeze(-1))


def _piece(x: Pair, start: int, size: int) -> Pair:
    part = x.each(lambda own: own[..., start : start + size])
    missing = size - part.high.shape[-1]
    return part.each(lambda own: torch.nn.functional.pad(own, (0, missing))) if missing else part


def product(x: Pair, y: Pair) -> Pair:
    """The matrix product of x (..., m, k) and y (..., k, n)."""
    rows = x.each(lambda own: own.unsqueeze(-2))
    columns = y.each(lambda own: own.transpose(-1, -2).unsqueeze(-3))
    return total(multiply(rows, columns))


def whole(value: float, like: Pair) -> Pair:
    """A pair that has the same number everywhere and the shape of `like`."""
    high = float(np.float32(value))
    low = value - high
    full: Callable[[float], Tensor] = lambda own: torch.full_like(like.high, own)  # noqa: E731
    return Pair(full(high), full(low) if low else None)
