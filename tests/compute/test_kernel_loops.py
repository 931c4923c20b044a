"""Tests that generated kernels agree with the oracle, over odd shapes, layouts and limits."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_support import (  # noqa: F401
    LEAST,
    Array,
    Numpy,
    device,
    expected,
    fresh,
    op,
    pointwise,
    tensor,
    validate,
    view,
    vulkan,
)

from ebmvk.compute.emit import POINT_GROUP, POINT_GROUPS, kernel_of, kernels_of
from ebmvk.compute.graft import instructions
from ebmvk.compute.ir import Axis, Const, DType, Expr, Load, LoadAt, Loop, Reduce, Store, Tensor, View
from ebmvk.compute.spirv import Op
from ebmvk.engine.recording import POISON
from ebmvk.errors import ArgumentError

FEW_GROUPS = dataclasses.replace(LEAST, groups=3, groups_yz=4000)
"""Like LEAST, but with so few workgroups in x that even small dispatches use y."""


def number(value: float) -> Const:
    return Const(value, "float32")


def values_of(*tensors: Tensor, seed: int = 0) -> dict[Tensor, Array]:
    rng = np.random.default_rng(seed)
    made: dict[Tensor, Array] = {}
    for t in tensors:
        if t.dtype == "float32":
            made[t] = rng.normal(0, 1, t.shape).astype(np.float32)
        elif t.dtype == "bool":
            made[t] = rng.integers(0, 2, t.shape).astype(bool)
        else:
            made[t] = rng.integers(-50 if t.dtype == "int32" else 0, 50, t.shape).astype(t.dtype)
    return made


def check(device: Numpy, loop: Loop, values: dict[Tensor, Array], folder: Path | None = None, **options: Any) -> Any:  # noqa: F811
    """Runs a loop and compares each tensor. The error of floats may be 8 times the error of numpy
    float32 on the same program, or 2e-6 of the tensor's largest number (16 roundings)."""
    outcome = device.run(loop, values, **options)
    exact, single = expected(loop, values), expected(loop, values, np.float32)
    for t, got in outcome.values.items():
        if t.dtype != "float32":
            np.testing.assert_array_equal(got.astype(exact[t].dtype), exact[t])
            continue
        bits = got.view(np.uint32)
        assert not (bits == POISON)[~np.isnan(exact[t])].any(), "an element was not written"
        np.testing.assert_array_equal(np.isnan(got), np.isnan(exact[t]))
        scale = np.nanmax(np.abs(exact[t]), initial=0)
        bound = max(8 * np.nanmax(np.abs(single[t] - exact[t]), initial=0), 2e-6 * scale)
        assert np.nanmax(np.abs(got - exact[t]), initial=0) <= bound
    if folder is not None:
        for kernel in outcome.kernels:
            validate(kernel.spirv, folder)
    return outcome


# ------------------------------------------------------------------------------ random programs


def strided(rng: np.random.Generator, shape: tuple[int, ...]) -> View:
    """A view of a new tensor: permuted, with random gaps, a random offset and repeated axes."""
    order = rng.permutation(len(shape))
    strides, step = [0] * len(shape), int(rng.integers(1, 3))
    for axis in order:
        if rng.random() < 0.25:
            continue  # stride 0
        strides[axis] = step
        step *= shape[axis]
    offset = int(rng.integers(0, 5))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return view(tensor(max(last + 1 + int(rng.integers(0, 3)), 1)), shape, strides, offset)


def random_expression(rng: np.random.Generator, shape: tuple[int, ...], reduced: int, steps: int) -> list[Expr]:
    """Values of different depth. If there are reduced axes, some are reductions, and some are
    reductions of reductions."""
    pool: list[Expr] = [Load(strided(rng, shape)) for _ in range(int(rng.integers(1, 4)))]
    pool.append(op("mul", op("cast", Axis(int(rng.integers(len(shape))))), number(0.05)))
    for _ in range(steps):
        a, b = (pool[int(rng.integers(len(pool)))] for _ in range(2))
        kind = rng.integers(8 if reduced else 6)
        if kind < 2:
            pool.append(op(str(rng.choice(["add", "sub", "maximum", "minimum"])), a, b))
        elif kind == 2:
            pool.append(op("mul", op("tanh", a), b))
        elif kind == 3:
            pool.append(op("where", op("gt", a, number(0.1), dtype="bool"), a, op("sigmoid", b)))
        elif kind == 4:
            pool.append(op("exp", op("minimum", a, number(1.0))))
        elif kind == 5:
            pool.append(op("div", a, op("add", op("abs", b), number(1.0))))
        else:
            pool.append(Reduce(str(rng.choice(["sum", "max", "min"])), op("tanh", a), "float32"))  # type: ignore[arg-type]
    return pool


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 100))])
def test_random_loops(seed: int, device: Numpy, tmp_path: Path) -> None:  # noqa: F811
    rng = np.random.default_rng(seed)
    shape = tuple(int(rng.choice([1, 2, 3, 5, 7, 8, 13, 32, 33])) for _ in range(int(rng.integers(1, 5))))
    while np.prod(shape) > 30_000:
        shape = shape[1:]
    reduced = int(rng.integers(0, len(shape) + 1))
    pool = random_expression(rng, shape, reduced, int(rng.integers(2, 12)))
    stores = []
    for value in pool[-3:]:
        single = isinstance(value, Reduce)
        t = tensor(*(shape[: len(shape) - reduced] if single else shape))
        stores.append(Store(t.view(), value))
    loop = Loop(shape, reduced, tuple(stores))
    inputs = [t for t in kernel_of(loop, device.limits).tensors if t not in {s.view.tensor for s in stores}]
    options = [None, LEAST, FEW_GROUPS][seed % 3]
    check(device, loop, values_of(*inputs, seed=seed), tmp_path, limits=options)


# ---------------------------------------------------------------------------------- reductions

SHAPES = [((3, 5), 1), ((129, 17), 1), ((5, 127, 3), 2), ((9, 4100), 1), ((40_001,), 1), ((3, 0), 1)]
MORE = [
    ((1, 1), 1), ((1, 7), 1), ((5, 1), 1), ((7, 64), 1), ((33, 100), 1), ((2, 3, 769), 1), ((4, 1025), 1),
    ((1, 5000), 1), ((37,), 1), ((600, 3), 1), ((1, 2, 3, 4, 5), 3), ((200, 1), 1), ((70, 4099), 1), ((3, 2, 2, 9), 2),
]  # fmt: skip
LAYOUTS = ["rows", "columns"]


def laid_out(shape: tuple[int, ...], reduced: int, layout: str, dtype: DType = "float32") -> View:
    """A dense tensor whose last or first axes are the reduced axes."""
    if layout == "rows":
        return tensor(*shape, dtype=dtype).view()
    cut = len(shape) - reduced
    made = tensor(*shape[cut:], *shape[:cut], dtype=dtype)
    whole = made.view().strides
    return view(made, shape, (*whole[reduced:], *whole[:reduced]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "reduced"), [*SHAPES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_sums_and_extremes(shape: tuple[int, ...], reduced: int, layout: str, device: Numpy, tmp_path: Path) -> None:  # noqa: F811
    """All kinds of reductions are in one kernel."""
    x = laid_out(shape, reduced, layout)
    parallel = shape[: len(shape) - reduced]
    kinds = ["sum"] if 0 in shape else ["sum", "max", "min", "argmax", "argmin"]
    stores = []
    for kind in kinds:
        dtype: DType = "int32" if kind.startswith("arg") else "float32"
        t = tensor(*parallel, dtype=dtype)
        stores.append(Store(t.view(), Reduce(kind, Load(x), dtype)))  # type: ignore[arg-type]
    check(device, Loop(shape, reduced, tuple(stores)), values_of(x.tensor), tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "reduced"), [((33, 100), 1), ((2, 70, 30), 2)])
def test_counts_products_and_truths(shape: tuple[int, ...], reduced: int, layout: str, device: Numpy) -> None:  # noqa: F811
    parallel = shape[: len(shape) - reduced]
    flags, counts = laid_out(shape, reduced, layout, "bool"), laid_out(shape, reduced, layout, "int32")
    near_one = laid_out(shape, reduced, layout)
    made: list[tuple[str, Expr, DType]] = [
        ("any", Load(flags), "bool"), ("all", Load(flags), "bool"), ("sum", Load(flags), "int32"),
        ("sum", Load(counts), "int32"), ("max", Load(counts), "int32"), ("argmin", Load(counts), "int32"),
        ("prod", op("add", op("mul", Load(near_one), number(1e-3)), number(1.0)), "float32"),
    ]  # fmt: skip
    stores = tuple(Store(tensor(*parallel, dtype=d).view(), Reduce(k, e, d)) for k, e, d in made)  # type: ignore[arg-type]
    check(device, Loop(shape, reduced, stores), values_of(flags.tensor, counts.tensor, near_one.tensor))


@pytest.mark.parametrize("n", [5, 1000])
def test_the_first_of_equal_extremes_wins_and_nan_counts_as_one(n: int, device: Numpy) -> None:  # noqa: F811
    rng = np.random.default_rng(n)
    x = tensor(6, n)
    data = rng.integers(-2, 3, (6, n)).astype(np.float32)
    data[1, n // 2 :] = np.nan
    data[2] = -np.inf
    data[3] = np.float32([0.0, -0.0])[rng.integers(0, 2, n)]
    data[4, [1, n - 1]] = np.inf, np.nan
    high, low, most = tensor(6, dtype="int32"), tensor(6, dtype="int32"), tensor(6)
    load = Load(x.view())
    stores = (
        Store(high.view(), Reduce("argmax", load, "int32")),
        Store(low.view(), Reduce("argmin", load, "int32")),
        Store(most.view(), Reduce("max", load, "float32")),
    )
    got = device.run(Loop((6, n), 1, stores), {x: data}).values
    np.testing.assert_array_equal(got[high], data.argmax(1))
    np.testing.assert_array_equal(got[low], data.argmin(1))
    np.testing.assert_array_equal(got[most], data.max(1))


@pytest.mark.parametrize(
    ("rows", "length", "layout"), [(1, 1_000_003, "rows"), (3, 200_001, "rows"), (70, 20_011, "columns")]
)
def test_long_rows_are_shared_by_workgroups(rows: int, length: int, layout: str, device: Numpy) -> None:  # noqa: F811
    """A sum of n terms may have an error of 4·sqrt(n)·2^-24 times the sum of the terms' sizes."""
    x = laid_out((rows, length), 1, layout)
    out, norm = tensor(rows), tensor(rows)
    load = Load(x)
    loop = Loop(
        (rows, length),
        1,
        (
            Store(out.view(), Reduce("sum", load, "float32")),
            Store(norm.view(), op("sqrt", Reduce("sum", op("mul", load, load), "float32"))),
        ),
    )
    values = values_of(x.tensor)
    outcome = device.run(loop, values)
    assert len(outcome.kernels) == 2
    data = values[x.tensor].astype(np.float64)
    data = data if layout == "rows" else data.T
    sizes = np.abs(data).sum(1)
    assert (np.abs(outcome.values[out] - data.sum(1)) <= 4 * np.sqrt(length) * 2.0**-24 * sizes).all()
    np.testing.assert_allclose(outcome.values[norm], np.sqrt((data**2).sum(1)), rtol=4e-7)


def softmax(rows: int, length: int) -> tuple[Tensor, Loop]:
    x = tensor(rows, length)
    load = Load(x.view())
    e = op("exp", op("sub", load, Reduce("max", load, "float32")))
    total = Reduce("sum", e, "float32")
    entropy = op("add", op("log", total), Reduce("max", load, "float32"))
    stores = (Store(tensor(rows, length).view(), op("div", e, total)), Store(tensor(rows).view(), entropy))
    return x, Loop((rows, length), 1, stores)


@pytest.mark.parametrize(("rows", "length"), [(3, 5), (50, 65), (7, 768), (2, 150_001), (300, 31)])
def test_softmax(rows: int, length: int, device: Numpy, tmp_path: Path) -> None:  # noqa: F811
    x, loop = softmax(rows, length)
    check(device, loop, values_of(x), tmp_path)


@pytest.mark.parametrize(("rows", "length"), [(3, 5), (70, 128), (7, 769), (5, 3000)])
def test_layer_norm_in_place(rows: int, length: int, device: Numpy) -> None:  # noqa: F811
    """The loop has three stages and weights along the row, and overwrites its input."""
    x, weight, bias, mean = tensor(rows, length), tensor(length), tensor(length), tensor(rows)
    load = Load(x.view())
    scale = number(1 / length)
    m = op("mul", Reduce("sum", load, "float32"), scale)
    d = op("sub", load, m)
    r = op("rsqrt", op("add", op("mul", Reduce("sum", op("mul", d, d), "float32"), scale), number(1e-5)))
    along = [Load(view(t, (rows, length), (0, 1))) for t in (weight, bias)]
    value = op("add", op("mul", op("mul", d, r), along[0]), along[1])
    loop = Loop((rows, length), 1, (Store(x.view(), value), Store(mean.view(), m)))
    outcome = check(device, loop, values_of(x, weight, bias))
    assert "u" in outcome.kernels[-1].access


def test_column_sums_into_parts_of_one_block(device: Numpy) -> None:  # noqa: F811
    """Several stores go to one tensor at offsets, and the elements between them don't change."""
    x, y, block = tensor(20, 6, 48), tensor(20, 6, 48), tensor(200)
    turned = [view(t, (48, 20, 6), (1, 288, 48)) for t in (x, y)]
    stores = tuple(
        Store(view(block, (48,), (1,), offset), Reduce("sum", Load(v), "float32"))
        for offset, v in zip((4, 100), turned, strict=True)
    )
    values = values_of(x, y, block)
    got = device.run(Loop((48, 20, 6), 2, stores), values).values[block]
    want = values[block].copy()
    want[4:52], want[100:148] = values[x].sum((0, 1)), values[y].sum((0, 1))
    np.testing.assert_allclose(got, want, atol=1e-4)
    untouched = np.r_[0:4, 52:100, 148:200]
    np.testing.assert_array_equal(got[untouched], want[untouched])


# ----------------------------------------------------------------------------------- pointwise


@pytest.mark.parametrize("n", [1, 127, 128, 129, 5000, 600_001])
@pytest.mark.parametrize("limits", [None, FEW_GROUPS])
def test_every_point_is_computed_once(n: int, limits: Any, device: Numpy) -> None:  # noqa: F811
    """x += 1 is computed in place, over any number of workgroups."""
    x = tensor(n)
    loop = Loop((n,), 0, (Store(x.view(), op("add", Load(x.view()), number(1.0))),))
    values = values_of(x)
    np.testing.assert_array_equal(device.run(loop, values, limits=limits).values[x], values[x] + np.float32(1))


def test_gathered_rows(device: Numpy) -> None:  # noqa: F811
    """An embedding: rows by index, and an index that is computed."""
    table, index = tensor(11, 5), tensor(7, dtype="int32")
    row = Load(view(index, (7, 5), (1, 0)))
    out, loop = pointwise(LoadAt(table.view(), (op("mod", op("add", row, Const(3, "int32"), dtype="int32"),
                                                    Const(11, "int32"), dtype="int32"), Axis(1))), (7, 5))  # fmt: skip
    values = values_of(table, index)
    got = device.run(loop, values).values[out].reshape(7, 5)
    np.testing.assert_array_equal(got, values[table][(values[index] + 3) % 11])


@pytest.mark.parametrize("shape", [(64, 33), (5, 7, 11), (3, 1, 4, 2)])
def test_transposed_copies(shape: tuple[int, ...], device: Numpy, tmp_path: Path) -> None:  # noqa: F811
    x = tensor(*shape)
    turned = view(x, shape[::-1], x.view().strides[::-1])
    out, loop = pointwise(Load(turned), shape[::-1])
    values = values_of(x)
    got = check(device, loop, values, tmp_path).values[out]
    np.testing.assert_array_equal(got, values[x].T.reshape(-1))


def test_nothing_is_dispatched_for_empty_loops() -> None:
    x = tensor(0, 3)
    assert (
        kernels_of(Loop((0, 3), 1, (Store(tensor(0).view(), Reduce("sum", Load(x.view()), "float32")),)), LEAST, fresh)
        == ()
    )
    y = tensor(3, 0)
    assert kernels_of(Loop((3, 0), 1, (Store(y.view(), Load(y.view())),)), LEAST, fresh) == ()


# ------------------------------------------------------------------------ bits, bytes and limits


def test_runs_give_the_same_bits(device: Numpy) -> None:  # noqa: F811
    x, loop = softmax(9, 5000)
    long, total = tensor(400_000), tensor()
    whole = Loop((400_000,), 1, (Store(total.view(), Reduce("sum", Load(long.view()), "float32")),))
    for each, source in ((loop, x), (whole, long)):
        values = values_of(source)
        first, second = (device.run(each, values).values for _ in range(2))
        for t in first:
            np.testing.assert_array_equal(first[t].view(np.uint32), second[t].view(np.uint32))


def test_equal_loops_give_equal_modules() -> None:
    """Modules are shared by content, so they must not contain the tensors' numbers."""
    for rows, length in ((3, 5), (50, 4096), (1, 300_000)):
        first, second = (kernels_of(softmax(rows, length)[1], LEAST, fresh) for _ in range(2))
        assert [k.spirv for k in first] == [k.spirv for k in second]


def test_least_limits_are_kept() -> None:
    for rows, length in ((3, 5), (50, 4096), (1, 300_000), (3, 100_000)):
        for kernel in kernels_of(softmax(rows, length)[1], LEAST, fresh):
            assert kernel.group <= LEAST.group


def test_too_many_tensors_are_an_error() -> None:
    total: Expr = Load(tensor(4).view())
    for _ in range(16):
        total = op("add", total, Load(tensor(4).view()))
    with pytest.raises(ArgumentError, match="18 tensors"):
        kernel_of(pointwise(total, (4,))[1], LEAST)


def test_deep_sharing_is_computed_once() -> None:
    """x doubled 200 times has 2^200 leaves and 200 additions."""
    value: Expr = Load(tensor(4).view())
    for _ in range(200):
        value = op("add", value, value)
    assert len(kernel_of(pointwise(value, (4,))[1], LEAST).spirv) < 20_000


@pytest.mark.parametrize("width", [512, *(pytest.param(width, marks=pytest.mark.slow) for width in (128, 256))])
def test_vector_widths_of_lavapipe(width: int) -> None:
    """Runs a few of these tests in new processes, with subgroups of 4, 8 and 16."""
    chosen = "vulkan and (softmax or layer_norm or first_of_equal or column_sums)"
    environment = {**os.environ, "LP_NATIVE_VECTOR_WIDTH": str(width)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]


def test_what_is_the_same_at_all_points_is_loaded_before_them() -> None:
    """The points are in a loop, if an invocation takes several of them, or under a condition."""
    for points, entry in ((POINT_GROUP * POINT_GROUPS + 1, Op.LOOP_MERGE), (5, Op.SELECTION_MERGE)):
        row, one = tensor(points), tensor(1)
        before = []
        for of in (Load(row.view()), op("mul", Load(row.view()), Load(view(one, (points,), (0,))))):
            kernel = kernel_of(pointwise(of, (points,))[1], LEAST)
            found = [code for _, code, _ in instructions(array("I", kernel.spirv))]
            before.append(found[: found.index(entry)].count(Op.LOAD))
        assert before[1] == before[0] + 1
