"""The latent energy and its score as differentiable functions; any backend computes them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ebmvk.engine.api import Backend, Points
from ebmvk.engine.chained import keeper_of

_CHUNK = 1 << 24


def energy(
    backend: Backend,
    x: Tensor,
    points_tensor: Tensor,
    ids: Tensor,
    logw: Tensor,
    kappa: Tensor,
    log_background: Tensor,
    *,
    points: Points | None = None,
) -> Tensor:
    """E(x) (B,), differentiable once in x, points_tensor, logw, kappa and log_background.

    With responsibilities rho (model section 6): dE/dx = -sum_j rho_j kappa_j mu_j (in the embedding
    space, so not projected), dE/dmu_j = -rho_j kappa_j x, dE/dlogw_j = -rho_j, dE/dkappa_j = -rho_j
    mu_j.x, dE/dlog_background = -rho_rest.

    Args:
        x: (B, d) unit rows.
        points_tensor: (N, d) unit rows, float.
        ids: (B, K) int64.
        logw, kappa: (B, K). log_background: (B,).
        points: `backend.points(points_tensor)` if the caller has it already; otherwise it is made
            here.

    Raises:
        ArgumentError: as `Backend.energy_score`.
    """
    arguments = (backend, points, x, points_tensor, ids, logw, kappa, log_background)
    return cast("Tensor", _Energy.apply(*arguments))  # type: ignore[no-untyped-call]


def energy_score(
    backend: Backend,
    x: Tensor,
    points_tensor: Tensor,
    ids: Tensor,
    logw: Tensor,
    kappa: Tensor,
    log_background: Tensor,
    *,
    points: Points | None = None,
) -> tuple[Tensor, Tensor]:
    """E(x) (B,) and its score (B, d), differentiable once in the arguments of `energy`.

    The gradients are those of `Backend.energy_score_backward`, including the second-order terms of
    the score. A native backend computes them in float32. Arguments and errors as for `energy`.
    """
    arguments = (backend, points, x, points_tensor, ids, logw, kappa, log_background)
    return cast("tuple[Tensor, Tensor]", _EnergyScore.apply(*arguments))  # type: ignore[no-untyped-call]


class _EnergyScore(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        points: Points | None,
        x: Tensor,
        points_tensor: Tensor,
        ids: Tensor,
        logw: Tensor,
        kappa: Tensor,
        log_background: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.backend = backend
        ctx.points = points if points is not None else backend.points(points_tensor)
        ctx.save_for_backward(x, points_tensor, ids, logw, kappa, log_background)
        out = backend.energy_score(x, ctx.points, ids, logw, kappa, log_background)
        return out.energy.to(x), out.score.to(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_energy: Tensor, grad_score: Tensor) -> tuple[Tensor | None, ...]:
        # Reading the saved tensors makes torch check that none was changed in place since. This
        # matters most for points_tensor, because the backend keeps a copy of it.
        x, _, *lists = ctx.saved_tensors
        out = ctx.backend.energy_score_backward(
            x, ctx.points, *lists, grad_energy.contiguous(), grad_score.contiguous()
        )
        gradients = (None, None, out.x, out.points, None, out.logw, out.kappa, out.log_background)
        return tuple(
            gradient.to(x) if gradient is not None and needed else None
            for gradient, needed in zip(gradients, ctx.needs_input_grad, strict=True)
        )


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        points: Points | None,
        x: Tensor,
        points_tensor: Tensor,
        ids: Tensor,
        logw: Tensor,
        kappa: Tensor,
        log_background: Tensor,
    ) -> Tensor:
        handle = points if points is not None else backend.points(points_tensor)
        law = (x, handle, ids, logw, kappa, log_background)
        keeper = keeper_of(handle)
        if keeper is None:
            out = backend.energy_score(*law)
            parts = (out.energy, out.responsibilities, out.background)
        else:
            parts = keeper.energy(*law)  # the score would be most of what is copied from the device
        value, rho, background = (part.to(x) for part in parts)
        ctx.save_for_backward(x, points_tensor, ids, kappa, rho, background)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mu, ids, kappa, rho, background = ctx.saved_tensors
        _, _, need_x, need_mu, _, need_logw, need_kappa, need_background = ctx.needs_input_grad
        weighted = -grad[:, None] * rho
        pull = weighted * kappa
        return (
            None,
            None,
            functional.embedding_bag(ids, mu, per_sample_weights=pull, mode="sum") if need_x else None,
            _scatter(pull, x, ids, mu) if need_mu else None,
            None,
            weighted if need_logw else None,
            weighted * _dots(x, ids, mu) if need_kappa else None,
            -grad * background if need_background else None,
        )


def _scatter(pull: Tensor, x: Tensor, ids: Tensor, mu: Tensor) -> Tensor:
    """Add pull_bj x_b to row ids_bj, for all (b, j). It works on a few columns at a time, because
    (B, K, d) may not fit in memory.
    """
    total = torch.zeros_like(mu)
    for j in _columns(ids, mu):
        total.index_add_(0, ids[:, j].reshape(-1), (pull[:, j, None] * x[:, None]).flatten(0, 1))
    return total


def _dots(x: Tensor, ids: Tensor, mu: Tensor) -> Tensor:
    return torch.cat([torch.einsum("bkd,bd->bk", mu[ids[:, j]], x) for j in _columns(ids, mu)], dim=1)


def _columns(ids: Tensor, mu: Tensor) -> list[slice]:
    width = max(1, _CHUNK // max(1, ids.shape[0] * mu.shape[1]))
    return [slice(j, j + width) for j in range(0, ids.shape[1], width)]
