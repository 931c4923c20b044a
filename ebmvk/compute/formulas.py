"""Operations that torch computes by a single kernel, written in simpler operations of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

LARGE = 1e9
"""For x from this value on, x and sqrt(x² ± 1) are the same float32, and x² may overflow."""


def _asinh(x: torch.Tensor) -> torch.Tensor:
    """sign(x) log(|x| + sqrt(x² + 1)); log1p keeps the digits of small numbers."""
    size = x.abs()
    near = torch.clamp(size, max=LARGE)
    small = torch.log1p(near + near * near / (1 + torch.sqrt(near * near + 1)))
    return torch.copysign(torch.where(size < LARGE, small, torch.log(size) + math.log(2)), x)


def _acosh(x: torch.Tensor) -> torch.Tensor:
    """log(x + sqrt(x² - 1)); NaN below 1."""
    t = torch.clamp(x, max=LARGE) - 1
    small = torch.log1p(t + torch.sqrt(t * (t + 2)))
    return torch.where(x < LARGE, small, torch.log(x) + math.log(2))


def _atanh(x: torch.Tensor) -> torch.Tensor:
    """Half of log((1 + x) / (1 - x))."""
    size = x.abs()
    return torch.copysign(0.5 * torch.log1p(2 * size / (1 - size)), x)


def _addbmm(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> torch.Tensor:
    product: torch.Tensor = alpha * torch.bmm(a, b).sum(0)
    return product if beta == 0 else product + beta * x


def _cumprod(x: torch.Tensor, dim: int, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Running products along an axis; the work grows with the square of its length."""
    x = x if dtype is None else x.to(dtype)
    if x.dim() == 0:
        return x.clone()
    rows = x.movedim(dim, -1)
    size = rows.shape[-1]
    place = torch.arange(size, device=x.device)
    begins = place[None, :] <= place[:, None]
    return torch.prod(torch.where(begins, rows.unsqueeze(-2), torch.ones_like(rows).unsqueeze(-2)), -1).movedim(-1, dim)


def _fmax(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The larger of x and y; if one of them is NaN, the other one."""
    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, torch.maximum(x, y)))


def _fmin(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The smaller of x and y; if one of them is NaN, the other one."""
    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, torch.minimum(x, y)))


def _kthvalue(x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The k-th smallest element and its position. Equal elements are ordered by position."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, places = torch.sort(x, dim=dim, stable=True)
    found = values.narrow(dim, k - 1, 1), places.narrow(dim, k - 1, 1)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


def _median_along(x: torch.Tensor, dim: int = -1, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The median, the lower of two middle elements; NaN if the row has a NaN."""
    if x.dim() == 0:
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    size = x.shape[dim]
    middle, last = _kthvalue(x, (size + 1) // 2, dim, keepdim), _kthvalue(x, size, dim, keepdim)
    undefined = torch.isnan(last[0])
    return torch.where(undefined, last[0], middle[0]), torch.where(undefined, last[1], middle[1])


def _median(x: torch.Tensor) -> torch.Tensor:
    return _median_along(x.reshape(-1), 0)[0]


def _masked_scatter(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Element n of the source goes to the n-th place where the mask is true."""
    x, mask = torch.broadcast_tensors(x, mask)  # type: ignore[no-untyped-call]
    flat = mask.reshape(-1)
    if not flat.numel() or not source.numel():
        return x.clone()
    places = torch.clamp(torch.cumsum(flat.to(torch.int64), 0) - 1, 0, source.numel() - 1)
    return torch.where(mask, source.reshape(-1)[places].reshape(x.shape), x)


def _differences(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(-2) - y.unsqueeze(-3)


def _cdist(x: torch.Tensor, y: torch.Tensor, p: float, compute_mode: int | None = None) -> torch.Tensor:
    """Distances of all pairs of rows; 0 for rows without elements, which vector_norm refuses."""
    del compute_mode
    apart = _differences(x, y)
    norm: torch.Tensor = torch.linalg.vector_norm(apart, p, dim=-1) if apart.numel() else apart.sum(-1)
    return norm


def _cdist_backward(
    gradient: torch.Tensor, x: torch.Tensor, y: torch.Tensor, p: float, distances: torch.Tensor
) -> torch.Tensor:
    """The gradient for the first rows; 0 where a distance is 0, as in torch."""
    apart = _differences(x, y)
    size, whole = apart.abs(), distances.unsqueeze(-1)
    if p == 0 or not apart.numel():
        return torch.zeros_like(x)
    if p == math.inf:
        share = (size == whole).to(x.dtype)
    elif p == 1:
        share = torch.ones_like(size)
    else:
        share = torch.where(whole > 0, size / torch.where(whole > 0, whole, 1.0), 0.0) ** (p - 1)
    return (gradient.unsqueeze(-1) * torch.sign(apart) * share).sum(-2)


FORMULAS: dict[Any, Callable[..., Any]] = {
    aten.asinh.default: _asinh,
    aten.acosh.default: _acosh,
    aten.atanh.default: _atanh,
    aten.addbmm.default: _addbmm,
    aten._cdist_backward.default: _cdist_backward,
    aten._cdist_forward.default: _cdist,
    aten.cumprod.default: _cumprod,
    aten.fmax.default: _fmax,
    aten.fmin.default: _fmin,
    aten.kthvalue.default: _kthvalue,
    aten.masked_scatter.default: _masked_scatter,
    aten.median.default: _median,
    aten.median.dim: _median_along,
}
