"""Experts, composition, banded attention and dropout against plain forms of themselves."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ebmvk.model import grouped
from ebmvk.model.decoder import Composition, midpoint_and_log
from ebmvk.model.dropout import NONE, Masks, dropout
from ebmvk.model.experts import MixtureOfExperts, Routing
from ebmvk.model.grouped import _Groups
from ebmvk.model.layers import _banded_attention, _fused_attention, rms_norm, squared_relu
from ebmvk.sphere.geometry import dist, logmap, projx


def experts(n_experts: int, active: int) -> MixtureOfExperts:
    torch.manual_seed(n_experts)
    moe = MixtureOfExperts(10, 7, 5, n_experts, active).double()
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return moe


def loop(moe: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """The definition, row by row."""
    rows = []
    for row in x:
        logits = moe.router.weight @ row
        chosen = sorted(range(moe.experts), key=lambda e: -float(logits[e].detach()))[: moe.active]
        weights = torch.softmax(logits, -1)[chosen]
        if moe.active > 1:
            weights = weights / weights.sum()
        outputs = [moe.down[e].weight @ torch.relu(moe.up[e].weight @ row) ** 2 for e in chosen]
        rows.append(sum(w * y for w, y in zip(weights, outputs, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize(("n_experts", "active"), [(1, 1), (4, 2), (5, 3), (8, 1), (3, 3)])
@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize(("training", "multiple"), [(True, 1), (True, 4), (True, 64), (False, 64)])
def test_grouped_and_dense_experts_equal_a_plain_loop(
    n_experts: int, active: int, rows: int, training: bool, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal room for all groups, and with unequal room."""
    monkeypatch.setattr("ebmvk.model.grouped._ROUND", multiple)
    moe = experts(n_experts, active).train(training)
    x = torch.randn(rows, 10, dtype=torch.float64, requires_grad=True)
    y, _routing = moe(x)
    expected = loop(moe, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(y)
    parameters = [x, *moe.parameters()]
    found = torch.autograd.grad((y * direction).sum(), parameters, retain_graph=True, allow_unused=True)
    wanted = torch.autograd.grad((expected * direction).sum(), parameters, allow_unused=True)
    for a, b, parameter in zip(found, wanted, parameters, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [[5, 5, 5], [5, 9, 0], [0, 0, 14], [1, 0, 0]], ids=str)
@pytest.mark.parametrize("multiple", [1, 4])
def test_groups_hold_each_row_once(sizes: list[int], multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare places have weight zero, so that no row gets a second gradient."""
    monkeypatch.setattr("ebmvk.model.grouped._ROUND", multiple)
    torch.manual_seed(sum(sizes))
    chosen = torch.tensor([e for e, size in enumerate(sizes) for _ in range(size)])[torch.randperm(sum(sizes))]
    groups = _Groups.of(chosen[None], 3)
    x, matrices = torch.randn(len(chosen), 6, dtype=torch.float64), torch.randn(3, 6, 2, dtype=torch.float64)
    found = groups.spread(x)
    torch.testing.assert_close(groups.collected(found, 1)[0], x, rtol=0, atol=0)
    products = groups.collected(groups.products(found, matrices), 1)[0]
    torch.testing.assert_close(products, torch.einsum("nd,nde->ne", x, matrices[chosen]))
    weights = torch.rand(1, len(chosen), dtype=torch.float64)
    weighted = groups.weighted(found, weights)
    torch.testing.assert_close(groups.collected(weighted, 1)[0], x * weights[0][:, None], rtol=0, atol=0)
    assert int(weighted.any(-1).sum()) == len(x)


@pytest.mark.parametrize("active", [1, 2])
@pytest.mark.parametrize("rows", [1, 9, 500])
def test_the_operation_of_experts_equals_its_reference(rows: int, active: int) -> None:
    """Results and gradients; each has its own order of places. The last expert gets no row."""
    torch.manual_seed(rows)
    kinds, inner, hidden, outer = 4, 6, 5, 7
    x, grad = (torch.randn(rows, n, dtype=torch.float64) for n in (inner, outer))
    up, down = torch.randn(kinds, hidden, inner).double(), torch.randn(kinds, outer, hidden).double()
    chosen = torch.stack([torch.randperm(kinds - 1)[:active] for _ in range(rows)], dim=1)
    arguments = (x, torch.rand(active, rows, dtype=torch.float64), chosen, up, down)
    found, wanted = grouped.experts(*arguments), grouped.reference(*arguments)
    torch.testing.assert_close(found[0], wanted[0])
    assert [part.shape for part in found] == [part.shape for part in wanted]
    given = (grad, arguments[1], up, down)
    gradients = grouped.experts_backward(*given, *found[1:])
    for a, b in zip(gradients, grouped.reference_backward(*given, *wanted[1:]), strict=True):
        torch.testing.assert_close(a, b)
    for operation, own in ((grouped.experts, arguments), (grouped.experts_backward, (*given, *found[1:]))):
        torch.library.opcheck(operation, own, test_utils=("test_schema", "test_faketensor"))


def test_the_static_bound_holds_any_groups() -> None:
    for kinds in (1, 3, 8):
        for pairs in (1, 7, 64, 4096):
            for sizes in ([pairs], [pairs // 2, pairs - pairs // 2], [pairs // kinds] * kinds):
                chosen = torch.cat([torch.full((n,), i % kinds) for i, n in enumerate(sizes)])[None]
                if chosen.numel():
                    assert len(_Groups.of(chosen, kinds).row) <= grouped.places(chosen.numel(), kinds)


def test_equal_logits_choose_the_lower_numbers() -> None:
    moe = MixtureOfExperts(6, 4, 6, 5, 2)
    with torch.no_grad():
        for training in (True, False):
            _, routing = moe.train(training)(torch.randn(30, 6))
            assert routing.experts.tolist() == [[0, 1]] * 30


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("active", [1, 2, 4])
def test_routing_losses_equal_their_definitions(active: int, training: bool) -> None:
    """With their gradients."""
    moe, x = experts(4, active).train(training), torch.randn(9, 10, dtype=torch.float64, requires_grad=True)
    y, routing = moe(x)
    found = routing.losses(routing.sums(None), len(x))
    logits = x @ moe.router.weight.t()
    p, chosen = torch.softmax(logits, -1), logits.topk(active, -1).indices
    assert torch.equal(routing.experts, chosen)
    kept = p.gather(-1, chosen)
    torch.testing.assert_close(routing.weights, kept if active == 1 else kept / kept.sum(-1, keepdim=True))
    torch.testing.assert_close(routing.shares, kept / kept.sum(-1, keepdim=True))
    share = torch.nn.functional.one_hot(chosen, 4).double().mean((0, 1))
    wanted = {"moe_balance": 4 * (share * p.mean(0)).sum(), "moe_z": torch.logsumexp(logits, -1).square().mean()}
    torch.testing.assert_close(found, wanted)
    for a, b in ((found, wanted), ({"y": y.sum(), **found}, {"y": loop(moe, x).sum(), **wanted})):
        gradients = [
            torch.autograd.grad(
                sum(i * own for i, own in enumerate(losses.values(), start=2)),
                (x, moe.router.weight),
                retain_graph=True,
            )
            for losses in (a, b)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("active", [1, 2])
def test_the_router_learns_which_expert_is_better(active: int) -> None:
    moe, x = experts(4, active).train(), torch.randn(9, 10, dtype=torch.float64)
    moe(x)[0].square().sum().backward()
    assert moe.router.weight.grad.abs().max() > 1e-6


def balance(routing: Routing) -> dict[str, torch.Tensor]:
    return routing.losses(routing.sums(None), len(routing.weights))


def test_balance_is_one_when_even_and_grows_when_collapsed() -> None:
    moe = MixtureOfExperts(6, 4, 6, 4, 2)
    with torch.no_grad():
        even = balance(moe(torch.randn(2000, 6))[1])
    assert float(even["moe_balance"]) == pytest.approx(1.0, abs=1e-5)  # equal probabilities, whatever was chosen
    assert float(even["moe_z"]) == pytest.approx(math.log(4) ** 2, rel=1e-5)
    with torch.no_grad():
        moe.router.weight[0] = 5.0
    assert float(balance(moe(torch.rand(2000, 6))[1])["moe_balance"].detach()) > 1.9  # one of two choices: 4 (1/2) 1


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return projx(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("d", [2, 3, 32, 257])
def test_midpoint_and_log_agree_with_the_geometry(d: int) -> None:
    a, b = unit(50, d, seed=1), unit(50, d, seed=2)
    p, u = midpoint_and_log(a, b)
    torch.testing.assert_close(p, projx(a + b))
    torch.testing.assert_close(u, logmap(p, a), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(-u, logmap(p, b), rtol=1e-6, atol=1e-9)


def test_composition_is_the_midpoint_at_first_and_stays_on_the_sphere() -> None:
    torch.manual_seed(3)
    comp = Composition(16).double()
    a, b = unit(40, 16, seed=3), unit(40, 16, seed=4)
    torch.testing.assert_close(comp(a, b), projx(a + b))
    torch.nn.init.normal_(comp.outer.weight, std=3.0)
    c = comp(a, b)
    torch.testing.assert_close(c.norm(dim=-1), torch.ones(40, dtype=torch.float64))
    assert dist(c, projx(a + b)).min() > 1e-3  # it is now more than a mean
    assert not torch.allclose(c, comp(b, a))  # the order matters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_composition_is_finite_where_the_midpoint_is_not_unique(dtype: torch.dtype) -> None:
    comp = Composition(8).to(dtype)
    torch.nn.init.normal_(comp.outer.weight)
    a = unit(5, 8).to(dtype).requires_grad_()
    for b in (a.detach(), -a.detach(), projx(-a.detach() + 1e-6)):
        c = comp(a, b)
        (gradient,) = torch.autograd.grad(c.sum(), a)
        assert bool(c.isfinite().all())
        assert bool(gradient.isfinite().all())
        torch.testing.assert_close(c.norm(dim=-1), torch.ones(5, dtype=dtype))


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 48, 49, 64, 100, 129])
@pytest.mark.parametrize("window", [1, 2, 12, 32, 40, 64])
def test_banded_attention_equals_masked_attention(length: int, window: int) -> None:
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    age = torch.arange(length)[:, None] - torch.arange(length)
    scores = (q @ k.transpose(-1, -2)).masked_fill((age < 0) | (age >= window), -math.inf)
    expected = torch.softmax(scores, -1) @ v
    found = _banded_attention(q, k, v, window)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    wanted = torch.autograd.grad((expected * direction).sum(), (q, k, v))
    for a, b in zip(torch.autograd.grad((found * direction).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("length", [1, 7, 64])
def test_fused_attention_equals_banded_attention(length: int) -> None:
    """The path of CUDA devices, here with torch's own kernel."""
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(_fused_attention(q, k, v, 64), _banded_attention(q, k, v, 64))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_has_its_rate_and_needs_masks(rate: float) -> None:
    x = torch.ones(3, 4001)
    y = dropout(x, rate, Masks.of_step(1, 2))
    share = round(256 * rate) / 256
    assert abs(float((y == 0).float().mean()) - share) < 5 * math.sqrt(share * (1 - share) / x.numel())  # 5 sigma
    assert dropout(x, rate, NONE) is x
    assert dropout(x, 0.0, Masks.of_step(1, 2)) is x


def test_parts_and_places_of_a_model_draw_different_masks() -> None:
    x, own = torch.ones(2, 500), Masks.of_step(1, 2)
    drawn = [dropout(x, 0.5, own.at(part), place) for part in range(4) for place in range(3)]
    assert len({tuple(y.flatten().tolist()) for y in drawn}) == len(drawn)


@pytest.mark.parametrize("shape", [(7,), (3, 5, 33), (2, 1)])
def test_closed_form_gradients_equal_those_of_torch(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for ours, peer in ((rms_norm, lambda x: F.rms_norm(x, x.shape[-1:])), (squared_relu, lambda x: F.relu(x) ** 2)):
        torch.testing.assert_close(ours(x), peer(x))
        g = torch.randn(shape, dtype=torch.float64)
        found, wanted = (torch.autograd.grad((f(x) * g).sum(), x)[0] for f in (ours, peer))
        torch.testing.assert_close(found, wanted)
        assert torch.autograd.gradcheck(ours, x)
        half = 0.1 * x.detach().bfloat16()  # where bfloat16's own epsilon would count
        torch.testing.assert_close(ours(half), peer(half))


def test_the_zero_vector_stays_zero_and_its_gradient_finite() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    y = rms_norm(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, torch.zeros(2, 5))
    assert bool(torch.isfinite(gradient).all())
