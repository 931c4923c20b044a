"""Geometry of the unit sphere S^{d-1} in torch (model section 1).

All functions work on the last axis, broadcast over the others, and keep dtype and device. Their
gradients are finite everywhere, also at u = 0 and y = x, where plain formulas divide zero by zero.
Points have to be unit rows, and tangent vectors orthogonal to them; neither is checked (`projx` and
`proju` make them so).

At exact antipodes y = -x the minimal geodesic is not unique: `logmap` returns 0 and `transp`
returns u. Both are finite and tangent, but no direction has them as its limit. Within the dtype's
epsilon of -x the direction of `logmap` is lost to rounding, and gradients are bounded by about
1/epsilon.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this squared angle three Taylor terms suffice: the next is (1e-3)^4 / 8! relative.
_SMALL = 1e-3
_ROUNDING = 1e-3  # allowed deviation of a unit row's length from 1: more than float16 rounds, less than any damage


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _safe_sqrt(square: Tensor) -> Tensor:
    """sqrt whose gradient at 0 is 0, not infinity.

    The outer `where` alone would still propagate NaN.
    """
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _chords(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The squared chords |x-y|^2 and |x+y|^2, (..., 1) each."""
    minus, plus = x - y, x + y
    return _dot(minus, minus), _dot(plus, plus)


def projx(x: Tensor) -> Tensor:
    """The nearest point on the sphere, x / |x|. x: (..., d).

    The zero vector has none and stays zero.
    """
    return x / _safe_sqrt(_dot(x, x)).clamp_min(torch.finfo(x.dtype).tiny)


def off_sphere(x: Tensor) -> int | None:
    """The number of the first row of x (n, d) that isn't a unit vector; None if all are."""
    wrong = (torch.linalg.vector_norm(x.double(), dim=1) - 1).abs() > _ROUNDING
    return int(wrong.nonzero()[0]) if bool(wrong.any()) else None


def proju(x: Tensor, u: Tensor) -> Tensor:
    """The tangent part of u at x, (I - x x^T) u. x, u: (..., d)."""
    return u - _dot(x, u) * x


def dist(x: Tensor, y: Tensor) -> Tensor:
    """Geodesic distance in radians, (...), as 2 atan2(|x-y|, |x+y|).

    Accurate near 0 and pi, unlike acos.
    """
    minus, plus = _chords(x, y)
    return 2 * torch.atan2(_safe_sqrt(minus), _safe_sqrt(plus)).squeeze(-1)


def expmap(x: Tensor, u: Tensor) -> Tensor:
    """The end of the geodesic from x along u for unit time, cos|u| x + sin|u|/|u| u.

    x, u: (..., d), u tangent at x.
    """
    square = _dot(u, u)
    small = square < _SMALL
    angle = torch.where(small, 1.0, square).sqrt()
    cos = torch.where(small, 1 - square / 2 * (1 - square / 12 * (1 - square / 30)), angle.cos())
    sinc = torch.where(small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), angle.sin() / angle)
    return cos * x + sinc * u


def logmap(x: Tensor, y: Tensor) -> Tensor:
    """The tangent vector at x that leads to y: dist(x, y) P_x y / |P_x y|; 0 at y = -x.

    x, y: (..., d).
    """
    minus, plus = _chords(x, y)
    # P_x (y - x) = P_x y, without the cancellation that y - (x.y) x has near y = x.
    tangent = proju(x, y - x)
    small = minus < _SMALL
    # theta / sin(theta) as a series in sin^2(theta/2) = |x-y|^2 / 4.
    s = minus / 4
    near = 1 + s * (2 / 3 + s * (8 / 15 + s * (16 / 35 + s * 128 / 315)))
    sine = _safe_sqrt(_dot(tangent, tangent)).clamp_min(torch.finfo(x.dtype).eps)
    angle = 2 * torch.atan2(torch.where(small, 1.0, minus).sqrt(), _safe_sqrt(plus))
    return torch.where(small, near, angle / torch.where(small, 1.0, sine)) * tangent


def transp(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """u transported from x to y along the minimal geodesic; keeps lengths.

    x, y, u: (..., d), u tangent at x.
    """
    plus = x + y
    # 1 + x.y = |x+y|^2 / 2 keeps its relative accuracy near antipodes.
    half = (_dot(plus, plus) / 2).clamp_min(torch.finfo(x.dtype).eps ** 2)
    return u - _dot(y, u) / half * plus
