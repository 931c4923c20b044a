"""energy_score_backward: the oracle's gradients, torch's own, and the same bits every time."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from op_problems import Candidates, candidates, nmse
from torch import Tensor

from ebmvk.engine import Backend, EnergyGradients
from ebmvk.engine.autograd import energy_score
from ebmvk.engine.reference import Reference

NAMES = ("x", "points", "logw", "kappa", "log_background")

# (B, K, d, N): empty, one, primes; around blocks of 8 candidates and chunks of 16, 32 coordinates.
SHAPES = [
    (0, 3, 4, 5),
    (1, 1, 2, 1),
    (2, 7, 3, 5),
    (5, 8, 31, 127),
    (3, 9, 33, 128),
    (7, 64, 640, 129),
    (13, 65, 65, 97),
]


def cotangents(p: Candidates) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(len(p.x), generator=g), torch.randn(*p.x.shape, generator=g)


def run(backend: Backend, p: Candidates) -> EnergyGradients:
    return backend.energy_score_backward(p.x, backend.points(p.points), *p.lists, *cotangents(p))


def plain(
    x: Tensor, points: Tensor, ids: Tensor, logw: Tensor, kappa: Tensor, background: Tensor
) -> tuple[Tensor, ...]:
    """Energy and score as torch differentiates them: the score is the tangent part of -dE/dx."""
    logits = logw + kappa * torch.einsum("bkd,bd->bk", points[ids], x)
    energy = -torch.logsumexp(torch.cat((logits, background[:, None]), 1), 1)
    (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return energy, -slope + (slope * x).sum(1, keepdim=True) * x


def leaves(p: Candidates, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: getattr(p, name).detach().to(dtype).requires_grad_() for name in NAMES}


def smooth(*shape: int, n: int) -> Candidates:
    p = candidates(*shape, n=n, kappa=12.0)
    p.logw.clamp_(min=-3)  # gradcheck steps off -inf
    p.log_background.clamp_(min=-3)
    return p


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kappa", [0.0, 5.0, 300.0])
def test_gradients_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, ...], kappa: float) -> None:
    p = candidates(*shape, kappa=kappa)
    got, want = run(backend, p), run(oracle, p)
    for field in fields(got):
        a, b = getattr(got, field.name), getattr(want, field.name)
        assert a.shape == b.shape
        # Second-order terms hold kappa^2 times differences of responsibilities, each known to 1e-7
        # kappa in float32. If these cancel, even the reference in float32 is 4e-7 off at kappa =
        # 300.
        assert nmse(a, b) <= (1e-9 if kappa <= 5 else 2e-6), field.name


def test_the_oracle_matches_torch(oracle: Reference) -> None:
    p = smooth(5, 7, 9, n=11)
    tensors = leaves(p, torch.float64)
    x, points, *rest = (tensors[name] for name in NAMES)
    energy, score = plain(x, points, p.ids, *rest)
    grad_energy, grad_score = cotangents(p)
    want = torch.autograd.grad((energy * grad_energy).sum() + (score * grad_score).sum(), tuple(tensors.values()))
    got = run(oracle, p)
    for name, truth in zip(NAMES, want, strict=True):
        assert nmse(getattr(got, name), truth) <= 1e-20, name  # both in float64


def test_gradients_pass_gradcheck(oracle: Reference) -> None:
    p = smooth(4, 6, 7, n=9)
    tensors = leaves(p, torch.float64)

    def f(x: Tensor, points: Tensor, logw: Tensor, kappa: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
        return energy_score(oracle, x, points, p.ids, logw, kappa, background)

    assert torch.autograd.gradcheck(f, tuple(tensors[name] for name in NAMES))


@pytest.mark.parametrize("use", ["energy", "score", "both"])
def test_losses_of_energy_and_score_reach_every_argument(backend: Backend, use: str) -> None:
    """A loss of the energy only, of the score only, or of both reaches every argument."""
    p = smooth(6, 10, 33, n=17)
    got, want = leaves(p, torch.float32), leaves(p, torch.float64)
    ours = energy_score(backend, got["x"], got["points"], p.ids, *(got[n] for n in NAMES[2:]))
    peer = plain(want["x"], want["points"], p.ids, *(want[n] for n in NAMES[2:]))
    for (energy, score), tensors in ((ours, got), (peer, want)):
        loss = sum(t.square().sum() for t, part in ((energy, "energy"), (score, "score")) if use in (part, "both"))
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(t.grad is not None for t in tensors.values())
    for name in NAMES:
        assert nmse(got[name].grad, want[name].grad) <= 1e-8, name  # type: ignore[arg-type]


def test_a_change_between_forward_and_backward_is_an_error(oracle: Reference) -> None:
    p = smooth(2, 3, 4, n=5)
    tensors = leaves(p, torch.float64)
    energy, _ = energy_score(oracle, tensors["x"], tensors["points"], p.ids, *(tensors[n] for n in NAMES[2:]))
    with torch.no_grad():
        tensors["points"].mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        energy.sum().backward()


def test_many_rows_on_one_point_repeat_bit_for_bit(backend: Backend) -> None:
    """All candidates are the same three points: an unordered or atomic sum would differ between
    calls.
    """
    p = candidates(67, 20, 40, n=3)
    first = run(backend, p)
    for _ in range(3):
        again = run(backend, p)
        assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in fields(first))


def test_a_weight_of_zero_has_a_gradient_of_zero(backend: Backend) -> None:
    p = candidates(4, 6, 8)
    got = run(backend, p)
    gone = torch.isinf(p.logw)
    assert bool((got.logw[gone] == 0).all())
    assert bool((got.kappa[gone] == 0).all())
    assert bool((got.log_background[torch.isinf(p.log_background)] == 0).all())


@pytest.mark.parametrize("kappa", [1e6, 1e12])
def test_gradients_stay_accurate_if_one_candidate_has_all_the_weight(
    backend: Backend, oracle: Reference, kappa: float
) -> None:
    """In that case a_j and its mean are equal, and as large as kappa. The roundings of their
    difference must not have that size.
    """
    p = candidates(6, 3, 7, 9)
    # No point occurs twice, because float32 can't tell how two copies share the weight
    p.ids.copy_(torch.arange(18).reshape(6, 3) % 9)
    p.kappa.fill_(kappa)
    p.log_background.fill_(-torch.inf)
    got, want = run(backend, p), run(oracle, p)
    for field in fields(got):
        assert nmse(getattr(got, field.name), getattr(want, field.name)) <= 1e-9, field.name
