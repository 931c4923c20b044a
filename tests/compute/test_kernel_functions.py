"""Tests that the kernels' functions of float32 are accurate, in numpy and on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import LEAST, Array, Device, op, pointwise, tensor, ulps, vulkan  # noqa: F401
from spirv import fast_math
from spirv_machine import Machine

from ebmvk.compute import math_special  # noqa: F401  registers its functions
from ebmvk.compute.emit import kernel_of
from ebmvk.compute.ir import Load
from ebmvk.compute.math import graph_of
from ebmvk.compute.oracle_ops import MEANING
from ebmvk.compute.values import interpret

BOUND = 4.0  # ULP, as specified
SPECIAL = np.float32(
    [0, -0.0, 1, -1, 0.5, -0.5, 2, -2, 3, -3, 1.5, -2.5, 88.72, 88.73, -87.3, -104, 200, -200, np.pi / 2, 1e10, 2**24,
     2**23 + 1, 1e38, -1e38, 3.4e38, 1.2e-38, 1e-30, -1e-30, np.inf, -np.inf, np.nan]
)  # fmt: skip
RANGES = {
    "exp": (-104, 90), "exp2": (-150, 129), "expm1": (-20, 90), "log": (0, 4), "log2": (0, 4), "log10": (0, 4),
    "log1p": (-1, 3), "sigmoid": (-90, 30), "tanh": (-10, 10), "sinh": (-90, 90), "cosh": (-90, 90), "sin": (-100, 100),
    "cos": (-100, 100), "tan": (-100, 100), "atan": (-5, 5), "asin": (-1, 1), "acos": (-1, 1), "erf": (-4, 4),
    "erfc": (-5, 10.5), "erfinv": (-1, 1), "lgamma": (0, 20), "digamma": (0, 20), "sqrt": (0, 10), "rsqrt": (0, 10),
    "reciprocal": (-4, 4),
}  # fmt: skip
POSITIVE = {"lgamma", "digamma"}  # below 0 the error is relative to the terms; see the test for those
PAIRS = ("atan2", "pow", "fmod", "remainder", "div")


def patterns(rng: np.random.Generator, n: int) -> Array:
    """Floats of random bits, with all exponents, denormals, infinities and NaN."""
    return rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32).view(np.float32)


def arguments(name: str, n: int = 10_000) -> tuple[Array, ...]:
    rng = np.random.default_rng(len(name))
    with np.errstate(invalid="ignore"):  # signalling NaN among the random bits
        return _arguments(name, n, rng)


def _arguments(name: str, n: int, rng: np.random.Generator) -> tuple[Array, ...]:
    if name in PAIRS:
        near_one = 1 + rng.uniform(-1e-3, 1e-3, n)
        first = [patterns(rng, n), rng.uniform(-10, 10, n), np.exp(rng.uniform(-80, 80, n)), near_one]
        second = [patterns(rng, n), rng.uniform(-10, 10, n), rng.uniform(-3, 3, n), rng.uniform(-1e5, 1e5, n)]
        grid = np.meshgrid(SPECIAL, SPECIAL)
        pair = [np.concatenate([*columns, grid[k].ravel()]) for k, columns in enumerate((first, second))]
        return tuple(column.astype(np.float32) for column in pair)
    low, high = RANGES[name]
    log_spread = rng.choice([-1, 1], n) * np.exp(rng.uniform(-20, 6, n))
    x = np.concatenate([patterns(rng, n), rng.uniform(low, high, n), log_spread, SPECIAL]).astype(np.float32)
    return (np.abs(x) if name in POSITIVE else x,)


def exact(name: str, *columns: Array) -> Array:
    wide = [column.astype(np.float64) for column in columns]
    with np.errstate(all="ignore"):
        if name == "remainder":  # numpy returns NaN for (finite number, infinity); torch follows Python
            a, b = wide
            other = np.where((a != 0) & (np.signbit(a) != np.signbit(b)), b, a)
            return np.where(np.isinf(b) & np.isfinite(a), other, np.remainder(a, b))
        return np.asarray(MEANING[name](*wide))


def run(name: str, *columns: Array, fused: bool) -> Array:
    graph, result = graph_of(name, len(columns))
    symbols = {str(k): column for k, column in enumerate(columns)}
    return interpret(graph, [result], symbols, lambda inner, *a: run(inner, *a, fused=fused), fused=fused)[0]


def report(name: str, columns: tuple[Array, ...], result: Array) -> None:
    errors = ulps(result, exact(name, *columns))
    worst = int(np.argmax(errors))
    assert errors[worst] <= BOUND, f"{name}{[float(c[worst]) for c in columns]} = {result[worst]}: {errors[worst]} ULP"


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", [*RANGES, *PAIRS])
def test_functions_are_within_four_ulp(name: str, fused: bool) -> None:
    columns = arguments(name)
    report(name, columns, run(name, *columns, fused=fused))


@pytest.mark.parametrize("name", [*RANGES, *PAIRS])
def test_functions_are_within_four_ulp_on_the_device(name: str, vulkan: Device) -> None:  # noqa: F811
    columns = arguments(name)
    inputs = [tensor(len(column)) for column in columns]
    out, loop = pointwise(op(name, *(Load(x.view()) for x in inputs)), (len(columns[0]),))
    # The device may flush denormal arguments, which may change the result to that of 0.
    columns = tuple(np.where(np.abs(c) < 2.0**-126, c * np.float32(0), c).astype(np.float32) for c in columns)
    result = vulkan.run(loop, dict(zip(inputs, columns, strict=True))).values[out]
    report(name, columns, result)


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_gamma_functions_below_zero_are_exact_relative_to_their_terms(name: str) -> None:
    """They use reflection. The error is at most 4 ULP of the sizes of both terms and of 1, because
    1 - x is rounded."""
    x = -np.abs(arguments(name, 40_000)[0])
    x = x[(x > -1e5) & (x != np.rint(x)) & (np.abs(x) > 1e-30)]
    result, want = run(name, x, fused=True), exact(name, x)
    if name == "lgamma":
        term = np.abs(MEANING["lgamma"](np.abs(x.astype(np.float64)))) + 1.2
    else:
        wide = x.astype(np.float64)
        term = np.pi / np.abs(np.tan(np.pi * wide)) + np.abs(MEANING["digamma"](1 - wide)) + 1
    size = np.spacing(np.maximum(np.abs(want), term).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(result - want) / size) <= BOUND


def test_signs_of_zero_survive() -> None:
    """-0 gives -0 for odd functions, as in C."""
    zero = np.float32([-0.0])
    odd: list[Any] = ["expm1", "log1p", "sinh", "tanh", "sin", "tan", "atan", "asin", "erf", "sqrt", "erfinv"]
    for name in odd:
        result = run(name, zero, fused=True)
        assert result[0] == 0, name
        assert np.signbit(result[0]), name


@pytest.mark.parametrize("name", [*RANGES, *PAIRS])
def test_drivers_may_assume_that_no_float_is_nan(name: str) -> None:
    """If each comparison is replaced by the comparison that differs for NaN, no result changes."""
    columns = np.meshgrid(SPECIAL, SPECIAL) if name in PAIRS else [SPECIAL]
    inputs = [tensor(column.size) for column in columns]
    out, loop = pointwise(op(name, *(Load(x.view()) for x in inputs)), (columns[0].size,))
    kernel = kernel_of(loop, LEAST)
    results = []
    for module in (kernel.spirv, fast_math(kernel.spirv)):
        words = {
            x: column.astype(np.float32).reshape(-1).view(np.uint32) for x, column in zip(inputs, columns, strict=True)
        }
        words[out] = np.zeros(columns[0].size, np.uint32)
        Machine(module, [words[t] for t in kernel.tensors], kernel.groups, kernel.group).run()
        results.append(words[out].view(np.float32))
    np.testing.assert_array_equal(*results)


def test_the_error_bound_can_fail() -> None:
    """A result 5 ULP off is reported."""
    exact_values = np.linspace(1.5, 1.9, 5)
    wrong = (exact_values + 5 * 2.0**-23).astype(np.float32)
    assert ulps(wrong, exact_values).max() > BOUND
