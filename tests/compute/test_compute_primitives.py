"""Tests that torch's operations, lowered and run by the oracle in float64, equal torch in float64.

Each case is one function with many results over odd shapes, because a trace takes longer than a
run.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ebmvk.compute import oracle
from ebmvk.compute.capture import graph_of
from ebmvk.compute.fuse import fuse
from ebmvk.compute.lower import lower
from ebmvk.errors import UnsupportedOperation

SHAPES = ((), (7,), (2, 1, 9), (0, 3))


def check(function, inputs, *, tolerance=1e-9):
    """Compares the lowered function, plain and fused, with torch. Infinities and NaN must agree."""
    program = lower(graph_of(function, inputs))
    arrays = [value.double().numpy() if value.is_floating_point() else value.numpy() for value in inputs]
    expected = function(*(value.double() if value.is_floating_point() else value for value in inputs))
    for made in (program, fuse(program)):
        results = oracle.run(made, arrays)
        assert len(results) == len(expected)
        for number, (got, want) in enumerate(zip(results, expected, strict=True)):
            np.testing.assert_allclose(
                got, want.detach().numpy(), rtol=tolerance, atol=tolerance, err_msg=f"result {number}", strict=False
            )
            assert got.shape == tuple(want.shape), number


def gradients(function, inputs, *, tolerance=1e-9):
    """Checks the function's results and the gradients of a weighted sum of them."""

    def both(*values):
        leaves = [value.detach().requires_grad_() if value.is_floating_point() else value for value in values]
        results = [result for result in function(*leaves) if result.is_floating_point()]
        weights = [torch.cos(torch.arange(r.numel(), dtype=r.dtype)).reshape(r.shape) for r in results]
        total = sum((result * weight).sum() for result, weight in zip(results, weights, strict=True))
        wanted = [leaf for leaf in leaves if leaf.is_floating_point()]
        return [*(result.detach() for result in results), *torch.autograd.grad(total, wanted)]

    check(both, inputs, tolerance=tolerance)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def whole(high, *shape, low=0, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


UNARY = (
    "exp exp2 expm1 sin cos tan tanh atan sinh cosh sigmoid erf erfc neg abs sign floor ceil trunc round relu "
    "square reciprocal isnan isinf isfinite frac"
)
POSITIVE = "log log2 log10 log1p sqrt rsqrt lgamma digamma"


@pytest.mark.parametrize("names", [UNARY, POSITIVE], ids=["all", "positive"])
def test_functions_of_one_number(names):
    positive = names == POSITIVE
    inputs = [normal(*shape).abs() + 0.1 if positive else 2 * normal(*shape) for shape in SHAPES]
    # erfinv, asin and acos are in the gradients below: they need numbers between -1 and 1.
    check(lambda *xs: [getattr(torch, name)(x) for name in names.split() for x in xs], inputs)


def test_functions_of_one_number_keep_special_values():
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0])
    names = "exp tanh sigmoid relu sign abs neg isnan isinf sqrt log floor trunc reciprocal erf"
    check(lambda x: [getattr(torch, name)(x) for name in names.split()], [special])


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "leaky relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "tanh": torch.tanh,
    "asin": lambda x: torch.asin(torch.tanh(x) / 2),
    "acos": lambda x: torch.acos(torch.tanh(x) / 2),
    "erfinv": lambda x: torch.erfinv(torch.tanh(x) / 2),
    "power 3": lambda x: x**3,
    "power 1.5": lambda x: (x.abs() + 0.1) ** 1.5,
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "softmax": lambda x: torch.softmax(x, -1),
    "log softmax, first axis": lambda x: torch.log_softmax(x, 0),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "var": lambda x: torch.var(x, -1, correction=0),
    "std": lambda x: torch.std(x, -1),
    "amax": lambda x: torch.amax(x, -1),
    "max": lambda x: torch.max(x, -1)[0],
    "cumsum": lambda x: torch.cumsum(x, 0),
    "norm": torch.linalg.vector_norm,
    "sorted": lambda x: torch.sort(x, descending=True)[0],
    "largest": lambda x: torch.topk(x, 2, -1)[0],
    "flip": lambda x: torch.flip(x, (0,)) * x,
    "roll": lambda x: torch.roll(x, 2, -1) * x,
    "repeat": lambda x: x.repeat(2, *(1 for _ in range(x.dim() - 1))) ** 2,
    "repeat interleave": lambda x: x.repeat_interleave(3, -1) ** 2,
}


@pytest.mark.parametrize(
    "names",
    [pytest.param(sorted(ACTIVATIONS)[part::4], marks=[pytest.mark.slow] if part else []) for part in range(4)],
)
def test_functions_and_their_gradients(names):
    def all_of(*xs):
        return [ACTIVATIONS[name](x) for name in names for x in xs]

    gradients(all_of, [normal(7), normal(2, 3, 4)])


def test_two_numbers_broadcast_as_in_torch():
    pairs = [((), (3,)), ((3, 1), (4,)), ((2, 3), (2, 3)), ((5, 1, 2), (1, 3, 1)), ((0, 2), (2,))]
    inputs = [normal(*shape, seed=seed) for pair in pairs for seed, shape in enumerate(pair)]
    functions = [
        torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.fmod,
        torch.remainder, torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.copysign, torch.hypot,
        lambda a, b: torch.add(a, b, alpha=2.5), lambda a, b: torch.pow(a.abs() + 0.1, b),
        lambda a, b: torch.div(a, b, rounding_mode="floor"), lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        lambda a, b: torch.where(a > b, a, 2.0), lambda a, b: torch.lerp(a, b, 0.3), lambda a, b: 3 - a * b,
        lambda a, b: a.masked_fill(b > 0, -1e9), lambda a, b: torch.addcmul(a, a, b, value=0.5),
    ]  # fmt: skip
    check(lambda *xs: [f(a, b) for f in functions for a, b in zip(xs[::2], xs[1::2], strict=True)], inputs)


def test_integers_and_logic():
    a, b, c = whole(50, 3, 4, low=-50), whole(9, 4, low=1), whole(2, 3, 1).bool()

    def function(a, b, c):
        integers = [
            a + b, a - b, a * b, a // b, a % b, torch.div(a, b, rounding_mode="trunc"), -a, a.abs(), a & b, a | b,
            a ^ b, ~a, a << 2, a >> 1, torch.maximum(a, b), a.clamp(-3, 5), a**2, torch.sign(a), a.sum(1), a.prod(0),
            a.amax(0), a.argmin(1), torch.cumsum(a, 1), a.float() / b, a / b, a.int() + 1, torch.where(c, a, b),
        ]  # fmt: skip
        logical = [~c, c & (a > 0), c | (a > 0), c ^ (a > 0), torch.logical_not(a), c.any(), c.all(0), (a > 0).any(1),
                   c.sum(), c * a, c.float(), a.bool(), a == b, a.float() < b]  # fmt: skip
        return integers + logical

    # torch divides integers in float32.
    check(function, [a, b, c], tolerance=1e-6)


def test_reductions_along_any_axes():
    def function(x, y):
        found = [x.sum(), x.mean(), x.amax(), x.amin(), x.prod(), x.max(), x.argmax(), x.argmin(), y.sum(0), y.sum()]
        for dims in (0, 1, -1, (0, 2), (1, 2), (0, 1, 2)):
            for keep in (False, True):
                found += [x.sum(dims, keep), x.mean(dims, keep), x.amax(dims, keep), x.amin(dims, keep)]
                found += [torch.var(x, dims, keepdim=keep), *torch.var_mean(x, dims, correction=0, keepdim=keep)]
        for dim in (0, 1, 2):
            found += [*x.max(dim), *x.min(dim, keepdim=True), x.argmax(dim), x.argmin(dim, True), x.prod(dim)]
        return found

    check(function, [normal(3, 4, 5), normal(0, 2)])


def test_reductions_of_one_number_are_not_joined_with_longer_rows():
    def function(x, y, w):
        loss = F.cross_entropy(x, y, w, reduction="sum")  # a sum of one number, from sums over eight
        return [loss, torch.amax(x, 0).sum().prod(), *torch.logsumexp(x, 0).max(0), x.sum().mean()]

    check(function, [normal(8), whole(8), normal(8).abs()])


def test_equal_values_give_the_lower_position():
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    program = lower(graph_of(lambda x: [x.argmax(1), x.argmin(1), torch.topk(x, 2)[1], torch.sort(x)[1]], [x]))
    first, last, largest, order = oracle.run(program, [x.numpy()])
    assert first.tolist() == [1, 0]
    assert last.tolist() == [3, 0]
    assert largest.tolist() == [[1, 2], [0, 1]]
    assert order.tolist() == [[3, 0, 1, 2], [0, 1, 2, 3]]


def test_views_and_joins():
    def function(x, y):
        return [
            x.t() + 1, x.transpose(0, 1).reshape(5, 3), x.permute(1, 0).contiguous().view(-1), x[1:, ::2], x[:, -1],
            x[None, :, None], x.expand(2, 3, 5) * 2, x.unfold(1, 3, 2), y.diagonal(0, 0, 1), y.movedim(0, 2).flatten(),
            *x.split(2, 1), *x.chunk(2, 0), *y.unbind(1), torch.cat([x, x * 2], 0), torch.cat([x.t(), x.t()], 1),
            torch.stack([x, x + 1], 1), F.pad(x, (1, 2)), F.pad(x, (-1, 0, 2, -1), value=3.0), x.flip(1),
            x.squeeze(), x.unsqueeze(0).squeeze(0), y.reshape(3, -1).t().reshape(-1), x.view(15)[3:9].view(2, 3),
            torch.tril(x), torch.triu(x, 1), x.new_zeros(2, 2) + x[0, 0], x.T.clone(), y.swapaxes(0, 2)[1],
            torch.cat([y.permute(2, 0, 1).reshape(4, 9), x.new_ones(1, 9)], 0), torch.outer(x[0], x[1]),
        ]  # fmt: skip

    check(function, [normal(3, 5), normal(3, 3, 4)])


def test_made_numbers():
    def function(x):
        n = x.shape[0]
        return [
            torch.arange(n) + x, torch.arange(3, 20, 4) * x[0], torch.arange(0.5, 3.0, 0.25) + x[1],
            torch.full((2, n), 7.5) * x, torch.zeros(n) + x, torch.ones_like(x), torch.full_like(x, 3) * x,
            torch.eye(n) * x, torch.linspace(0, 1, n) * x, torch.empty(0) + x[:0], torch.tensor([1.0, 2.0]) * x[:2],
            torch.arange(n, dtype=torch.float64).cos().float() * x,
        ]  # fmt: skip

    # torch makes the constants of the last two results in float32 or float64, as the step asks.
    check(function, [normal(6)], tolerance=1e-6)


def test_reading_and_writing_at_indices():
    def function(x, i, j, v, deep):
        return [
            x[i], x[:, j], x[i, j], x[i[:, None], j], deep[:, i, :], deep[i, :, j], deep[..., -1], x[-i - 1],
            F.embedding(i, x), x.index_select(1, j), torch.gather(x, 1, i[:, None]), torch.gather(x, 0, v),
            torch.take_along_dim(x, v, 0), torch.scatter(x, 1, i[:, None], 7.0), torch.scatter(x, 0, v, x),
            torch.scatter_add(x, 0, v, x * 2), torch.scatter_add(x, 1, v[:, :2], x),
            x.index_put((i,), x[:4] * 3, accumulate=True), x.index_put((i, j), x[0, 0], accumulate=True),
            deep.index_put((torch.arange(2), torch.arange(2)), deep[:2, 0]), x.index_add(0, i, x[:4]),
            torch.index_copy(x, 1, torch.tensor([2, 0]), x[:, :2]), x.index_fill(0, torch.tensor([1]), 4.0),
            x.slice_scatter(x[:2] * 0, 0, 1, 3), x.select_scatter(x[:, 0] * 2, 1, 3),
            x.slice_scatter(x[:, :2], 1, 1, 4, 2), F.one_hot(i, 5).float() * 2,
        ]  # fmt: skip

    def unique(n, m):
        return torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in range(m)], 1)

    inputs = [normal(5, 4), whole(4, 4), whole(4, 4, seed=1), unique(4, 4), normal(4, 4, 4)]
    inputs[0] = inputs[0][:4].contiguous()
    check(function, inputs)


def test_sums_of_one_row_with_and_without_an_axis_of_one_element():
    """They can be one loop, because both have the same number of terms."""
    check(lambda x, y: [(x * 2).sum(), (x * y).sum(1)], [normal(1, 9), normal(1, 9, seed=1)])


def test_writing_into_a_tensor_of_no_axes():
    """Indices and sources may have no axes or one axis."""

    def function(x, y, i, several):
        return [
            torch.scatter_add(x, 0, i, x * 2), torch.scatter_add(x, 0, several, y), torch.scatter(x, 0, i, 7.0),
            torch.scatter(x, 0, several[:1], y[:1]), torch.scatter(x, 0, several[:0], y[:0]),
        ]  # fmt: skip

    check(function, [normal(), normal(3), torch.tensor(0), torch.zeros(3, dtype=torch.int64)])


def test_gradients_at_indices():
    def function(x, i, j):
        return [
            F.embedding(i, x), F.embedding(i, x * 2, padding_idx=1), x[i, i % 3], x[:, j] ** 2,
            torch.gather(x, 1, i[:, None]), torch.gather(x, 0, j[None]), x[1:3] * x[0], x.unfold(0, 2, 1),
            torch.cat([x, x], 1)[:, ::3], F.pad(x, (1, 1)), torch.gather(x[0, 0], 0, j[:1] * 0),
        ]  # fmt: skip

    gradients(function, [normal(5, 4), whole(4, 5), whole(4, 3)])


LOSSES = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "smoothed": {"label_smoothing": 0.1},
    "ignored": {"ignore_index": 2},
}


def test_cross_entropy_and_its_gradient():
    def function(x, y, deep, z):
        flat = [F.cross_entropy(x, y, **options) for options in LOSSES.values()]
        logs, other = torch.log_softmax(x, 1), x.detach() * 2
        return [
            *flat, F.cross_entropy(deep, z), F.nll_loss(logs, y, torch.arange(5).to(x.dtype) + 1),
            F.mse_loss(x, other), F.binary_cross_entropy_with_logits(x, torch.sigmoid(other)),
            F.kl_div(logs, torch.softmax(other, 1), reduction="batchmean"), F.huber_loss(x, other + 1),
        ]  # fmt: skip

    gradients(function, [normal(6, 5), whole(5, 6), normal(2, 4, 3), whole(4, 2, 3)])


def test_products_and_their_gradients():
    def function(a, b, x, y, v):
        return [
            a @ b, (b.t() @ a.t()) * 2, torch.addmm(v[:3], a, b, beta=0.5, alpha=2), torch.mv(a, v), v @ v, x @ y,
            torch.baddbmm(y[:, :2, :2], x, y[..., :2]), x @ v, torch.einsum("bij,bjk->bki", x, y),
            F.linear(a, b.t(), v[:3]),
            torch.bmm(x.transpose(1, 2), x), F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
            torch.matmul(x[:, None], y[None, :]), torch.tensordot(x, y, dims=([2], [1])),
        ]  # fmt: skip

    gradients(function, [normal(2, 5), normal(5, 3), normal(3, 2, 5), normal(3, 5, 4), normal(5)])


def test_products_over_an_empty_axis():
    def function(a, b, c):
        return [a @ b, torch.addmm(c, a, b, beta=0.2), torch.addmm(c, a, b, beta=0), a.sum(1), b.prod(0), a.any(1)]

    check(function, [normal(2, 0), normal(0, 3), normal(2, 3)])


def test_convolutions_and_their_gradients():
    def function(x, w, each, image, kernel):
        return [
            F.conv1d(x, w), F.conv1d(x, w, padding=2, stride=2), F.conv1d(x, w, dilation=2, padding=3, stride=3),
            F.conv1d(x, each, groups=4, padding=1), F.conv2d(image, kernel, kernel[:, 0, 0, 0], (2, 1), (1, 0)),
        ]  # fmt: skip

    gradients(function, [normal(2, 4, 9), normal(6, 4, 3), normal(8, 1, 3), normal(2, 2, 6, 5), normal(3, 2, 3, 2)])


def test_lists_of_tensors():
    def function(a, b, s):
        lists, others = [a * 1, b * 1], [a + 1, b - 1]
        torch._foreach_mul_(lists, 0.9)
        torch._foreach_add_(lists, others, alpha=0.1)
        torch._foreach_addcmul_(lists, others, others, value=0.5)
        torch._foreach_lerp_(lists, others, 0.3)
        torch._foreach_mul_(lists, s)
        roots = torch._foreach_sqrt(torch._foreach_abs(lists))
        torch._foreach_addcdiv_(lists, others, torch._foreach_add(roots, 1e-3), value=-0.1)
        scaled = torch._foreach_div(lists, [2.0, 4.0])
        return [*lists, *scaled, *torch._foreach_norm(lists), *torch._foreach_maximum(lists, 0.1),
                *torch._foreach_pow(roots, 2), *torch._foreach_neg(lists)]  # fmt: skip

    check(function, [normal(3, 4), normal(5), torch.tensor(1.5)])


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: [torch.rand(3) + x], "aten.rand.default"),
        (lambda x: [F.dropout(x, 0.5)], "dropout|bernoulli|rand"),
        (lambda x: [x.double()], "a result of float64"),
        (lambda x: [torch.linalg.cholesky(x.outer(x))], "cholesky"),
    ],
)
def test_what_is_missing_is_named(function, named):
    with pytest.raises(UnsupportedOperation, match=named):
        lower(graph_of(function, [torch.ones(3)]))
