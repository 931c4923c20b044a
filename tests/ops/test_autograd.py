"""The differentiable energy has the gradients that torch computes, on every backend."""

from __future__ import annotations

import pytest
import torch
from op_problems import candidates, nmse
from torch import Tensor

from ebmvk.engine import Backend
from ebmvk.engine.autograd import energy
from ebmvk.engine.reference import Reference

NAMES = ("x", "points", "logw", "kappa", "log_background")


def leaves(dtype: torch.dtype, d: int = 9) -> tuple[dict[str, Tensor], Tensor]:
    p = candidates(5, 7, d, n=11, kappa=12.0)
    p.logw.clamp_(min=-3)  # gradcheck steps off -inf
    p.log_background.clamp_(min=-3)
    return {name: getattr(p, name).to(dtype).requires_grad_() for name in NAMES}, p.ids


def plain(x: Tensor, points: Tensor, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> Tensor:
    logits = logw + kappa * torch.einsum("bkd,bd->bk", points[ids], x)
    return -torch.logsumexp(torch.cat((logits, log_background[:, None]), 1), 1)


def test_gradients_pass_gradcheck(oracle: Reference) -> None:
    tensors, ids = leaves(torch.float64)

    def run(x: Tensor, points: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> Tensor:
        return energy(oracle, x, points, ids, logw, kappa, log_background)

    assert torch.autograd.gradcheck(run, tuple(tensors[name] for name in NAMES))


@pytest.mark.parametrize("d", [3, 65])
def test_gradients_match_torch(backend: Backend, d: int) -> None:
    got, ids = leaves(torch.float32, d)
    want, _ = leaves(torch.float64, d)
    cotangent = torch.linspace(-1, 2, 5)
    ours = energy(backend, got["x"], got["points"], ids, got["logw"], got["kappa"], got["log_background"])
    peer = plain(want["x"], want["points"], ids, want["logw"], want["kappa"], want["log_background"])
    (ours * cotangent).sum().backward()
    (peer * cotangent).sum().backward()
    assert nmse(ours.detach(), peer.detach()) <= 1e-9
    for name in NAMES:
        assert got[name].grad is not None
        assert nmse(got[name].grad, want[name].grad) <= 1e-9, name  # type: ignore[arg-type]


def test_given_points_are_used(backend: Backend) -> None:
    tensors, ids = leaves(torch.float32)
    rest = tuple(tensors[name] for name in NAMES[2:])
    handle = backend.points(tensors["points"])
    with_handle = energy(backend, tensors["x"], tensors["points"], ids, *rest, points=handle)
    without = energy(backend, tensors["x"], tensors["points"], ids, *rest)
    assert torch.equal(with_handle, without)


def test_a_weight_of_zero_has_a_gradient_of_zero(backend: Backend) -> None:
    p = candidates(4, 6, 8)
    logw, background = p.logw.requires_grad_(), p.log_background.requires_grad_()
    energy(backend, p.x, p.points, p.ids, logw, p.kappa, background).sum().backward()
    assert logw.grad is not None
    assert background.grad is not None
    assert bool((logw.grad[torch.isinf(logw)] == 0).all())
    assert bool((background.grad[torch.isinf(background)] == 0).all())
    assert bool(torch.isfinite(logw.grad).all())
