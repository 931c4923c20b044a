"""Tests that each operation of the table agrees with the oracle, on each device and in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import LEAST, Array, Numpy, device, expected, op, pointwise, tensor, ulps, vulkan  # noqa: F401
from test_kernel_functions import SPECIAL

from ebmvk.compute.emit import kernel_of
from ebmvk.compute.ir import Const, DType, Expr, Load, Loop, Op, Store, Tensor
from ebmvk.compute.math import FUNCTIONS
from ebmvk.compute.ops import KINDS, OPS, TYPED
from ebmvk.compute.oracle_ops import MEANING
from ebmvk.errors import ArgumentError

INTEGERS = np.array([0, 1, -1, 2, -2, 3, 7, -7, 31, 1000, -1000, 2**31 - 1, -(2**31), 65537, -65537], np.int64)


def column(dtype: DType, n: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, n).astype(bool)
    if dtype == "float32":
        values = np.concatenate([SPECIAL[np.abs(SPECIAL) != 1.2e-38], rng.normal(0, 100, n)]).astype(np.float32)
        return rng.permutation(values)[:n]
    values = np.concatenate([INTEGERS, rng.integers(-(2**31), 2**31, n)])
    return (
        rng.permutation(values)[:n].astype(np.int64).astype(np.int32).view(np.uint32 if dtype == "uint32" else np.int32)
    )


def cases() -> list[tuple[str, tuple[DType, ...], DType]]:
    """All operations, each with all types that it takes."""
    found: list[tuple[str, tuple[DType, ...], DType]] = []
    for name, operation in OPS.items():
        if name in FUNCTIONS and name not in {"maximum", "minimum", "div", "sqrt", "reciprocal"}:
            continue  # test_kernel_functions.py tests these
        takes, gives = operation.signature.split("->")
        letters = [letter for letter in dict.fromkeys(takes + gives) if len(KINDS[letter]) > 1]
        choices: list[dict[str, DType]] = [{}]
        for letter in letters:
            choices = [{**choice, letter: dtype} for choice in choices for dtype in KINDS[letter]]
        for choice in choices:
            types = [choice.get(letter, KINDS[letter][0]) for letter in [*takes, gives]]
            found.append((name, tuple(types[:-1]), types[-1]))
    return found


def arguments_of(name: str, types: tuple[DType, ...], n: int = 300) -> list[Array]:
    columns = [column(dtype, n, seed) for seed, dtype in enumerate(types)]
    if name in {"shl", "shr"}:
        columns[1] = columns[1] % np.asarray(32, columns[1].dtype)
    if name in {"floordiv", "mod", "div"} and types[0] != "float32":
        columns[1] = np.where(columns[1] == 0, 3, columns[1]).astype(columns[1].dtype)
        overflow = (columns[0] == -(2**31)) & (columns[1] == -1)
        columns[0] = np.where(overflow, 5, columns[0]).astype(columns[0].dtype)
    if name == "abs" and types[0] == "int32":
        columns[0] = np.where(columns[0] == -(2**31), 5, columns[0]).astype(np.int32)
    return columns


@pytest.mark.parametrize(("name", "types", "result"), cases())
def test_operations_agree_with_the_oracle(
    name: str,
    types: tuple[DType, ...],
    result: DType,
    device: Numpy,  # noqa: F811
) -> None:
    columns = arguments_of(name, types)
    inputs = [tensor(len(columns[0]), dtype=dtype) for dtype in types]
    out, loop = pointwise(op(name, *(Load(x.view()) for x in inputs), dtype=result), (len(columns[0]),))
    values: dict[Tensor, Array] = dict(zip(inputs, columns, strict=True))
    if name == "cast" and types[0] == "float32" and result in {"int32", "uint32"}:
        values[inputs[0]] = np.clip(np.nan_to_num(columns[0]), 0 if result == "uint32" else -2e9, 2e9).astype(
            np.float32
        )
    got, want = device.run(loop, values).values[out], expected(loop, values, np.float32)[out]
    if result == "float32":
        # Results are rounded once. On a Vulkan device division may be 2.5 ULP off, and sqrt 3 ULP.
        bound = 4 if name in {"div", "sqrt", "reciprocal"} else 0
        errors = ulps(got, expected(loop, values)[out] if bound else want)
        if name == "fma":  # a device may round the product too
            with np.errstate(all="ignore"):
                errors = np.minimum(errors, ulps(got, columns[0] * columns[1] + columns[2]))
        assert errors.max() <= bound
    else:
        np.testing.assert_array_equal(got.astype(want.dtype), want)


def test_the_oracle_and_the_kernels_have_the_same_operations() -> None:
    """The oracle and the kernels know the same operations."""
    assert set(MEANING) | TYPED == set(OPS)


def test_unknown_operations_are_named() -> None:
    with pytest.raises(ArgumentError, match="'gammainc'"):
        kernel_of(pointwise(op("gammainc", Const(1.0, "float32")), (3,))[1], LEAST)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (op("exp", Const(1, "int32")), "int32 -> float32"),
        (op("add", Const(1, "int32"), Const(1.0, "float32")), "'add'"),
        (Op("lt", (Const(1, "int32"), Const(1, "int32")), "int32"), "'lt'"),
        (op("where", Const(1, "int32"), Const(1.0, "float32"), Const(1.0, "float32")), "'where'"),
        (op("add", Const(1.0, "float32")), "'add'"),
    ],
)
def test_wrong_types_are_refused(value: Expr, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        kernel_of(pointwise(value, (3,))[1], LEAST)


def test_nan_is_found_without_float_comparisons(device: Numpy) -> None:  # noqa: F811
    """Comparisons with NaN are false except for `ne`, so where(x > 0, a, b) gives b."""
    x = tensor(4)
    nan = Load(x.view())
    one = Const(1.0, "float32")
    outs = [pointwise(op(name, nan, one, dtype="bool"), (4,)) for name in ("lt", "le", "gt", "ge", "eq", "ne")]
    loop = Loop((4,), 0, tuple(Store(made.stores[0].view, made.stores[0].value) for _, made in outs))
    results = device.run(loop, {x: np.float32([np.nan, -np.nan, 0.5, 1])}).values
    got = [results[out].tolist() for out, _ in outs]
    assert got == [[0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 0]]
