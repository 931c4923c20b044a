"""Compares sorts, top-k, running sums and sums by index with torch and float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from call_support import Operand, run_call
from vulkan_open import open_pretended, open_vulkan

from ebmvk.engine.recording import Limits, Recorder
from ebmvk.errors import ArgumentError

Array = np.ndarray[Any, Any]
UNIT = 2.0**-24  # half of a unit in the last place of 1
LENGTHS = (1, 2, 3, 7, 33, 100, 1023, 1024, 1025, 2500)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder(open_pretended())


def kinds(limits: Limits) -> tuple[Limits, ...]:
    small = replace(limits, kind="discrete", group=128, shared_bytes=min(limits.shared_bytes, 16384), groups_yz=2)
    return limits, small


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Values with many ties; floats include NaN, infinity and zeros of both signs."""
    if kind == "int32":
        return rng.integers(-5, 5, shape).astype(np.int32)
    some = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5], np.float32)
    return np.where(rng.random(shape) < 0.5, rng.choice(some, shape), rng.standard_normal(shape)).astype(np.float32)


def bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.uint32)


def check_sorted(recorder: Recorder, limits: Limits, x: Operand, k: int, descending: bool) -> None:
    wanted, order = torch.sort(
        torch.from_numpy(np.ascontiguousarray(x.view)), dim=-1, descending=descending, stable=True
    )
    for name, count, constants in (
        ("sort", x.view.shape[-1], {"descending": descending}),
        ("topk", k, {"largest": descending}),
    ):
        shape = (*x.view.shape[:-1], count)
        found = Operand.of(np.zeros(shape, x.view.dtype)), Operand.of(np.zeros(shape, np.int32))
        run_call(recorder, name, [x], found, constants, limits)
        np.testing.assert_array_equal(found[1].view, order[..., :count].numpy(), err_msg=f"{name} {shape}")
        np.testing.assert_array_equal(bits(found[0].view), bits(wanted[..., :count].numpy()))


@pytest.mark.parametrize("kind", ["float32", "int32"])
@pytest.mark.parametrize("descending", [False, True])
def test_sorts_and_the_largest_are_torch_s(recorder: Recorder, kind: str, descending: bool) -> None:
    rng = np.random.default_rng(1)
    for n in LENGTHS:
        for limits in kinds(recorder.limits):
            x = Operand.of(values(rng, (int(rng.integers(1, 4)), n), kind))
            check_sorted(recorder, limits, x, int(rng.integers(1, n + 1)), descending)


def test_rows_of_views_are_sorted(recorder: Recorder) -> None:
    """The views are columns, rows with gaps, and three axes that don't merge."""
    memory = values(np.random.default_rng(2), (4 * 3 * 5 * 40,), "float32")
    cube = memory.reshape(4, 3, 5, 40)
    for view in (cube[0, 0].T, cube[:, 0, 1:, 3:30], cube.transpose(2, 0, 3, 1)[:, :, 5:]):
        check_sorted(recorder, recorder.limits, Operand(memory, view), 2, True)


def test_long_rows_are_sorted(recorder: Recorder) -> None:
    rng = np.random.default_rng(3)
    x = Operand.of(rng.standard_normal((1, 65537)).astype(np.float32))
    check_sorted(recorder, recorder.limits, x, 64, True)


def test_a_k_above_the_length_of_rows_is_refused(recorder: Recorder) -> None:
    found = Operand.of(np.zeros((1, 5), np.float32)), Operand.of(np.zeros((1, 5), np.int32))
    with pytest.raises(ArgumentError, match="k = 5, and rows have 4 values"):
        run_call(recorder, "topk", [Operand.of(np.zeros((1, 4), np.float32))], found)


def test_running_sums_are_those_of_float64(recorder: Recorder) -> None:
    rng = np.random.default_rng(4)
    for n in (*LENGTHS, 65537):
        for limits in kinds(recorder.limits):
            memory = rng.standard_normal(2 * n * 3).astype(np.float32)
            x = Operand(memory, memory.reshape(2, n, 3)[:, :, 1])
            out = Operand.of(np.zeros((2, n), np.float32))
            again = Operand.of(np.zeros((2, n), np.float32))
            run_call(recorder, "scan_sum", [x], [out], limits=limits)
            run_call(recorder, "scan_sum", [x], [again], limits=limits)
            assert out.memory.tobytes() == again.memory.tobytes()
            exact, size = (np.cumsum(part.astype(np.float64), axis=-1) for part in (x.view, np.abs(x.view)))
            assert (np.abs(out.view - exact) <= 4 * np.sqrt(np.arange(1, n + 1)) * UNIT * size).all(), n
            whole = Operand.of(rng.integers(-9, 9, (1, n)).astype(np.int32))
            sums = Operand.of(np.zeros((1, n), np.int32))
            run_call(recorder, "scan_sum", [whole], [sums], limits=limits)
            np.testing.assert_array_equal(sums.view, np.cumsum(whole.view, axis=-1, dtype=np.int32))


def test_rows_too_long_for_the_driver_s_loops_are_refused(recorder: Recorder) -> None:
    x = Operand.of(np.zeros((1, 4000), np.float32))
    out = Operand.of(np.zeros((1, 4000), np.float32))
    with pytest.raises(ArgumentError, match="rows of 4000 values"):
        run_call(recorder, "scan_sum", [x], [out], limits=replace(recorder.limits, loop_rounds=5))


@pytest.mark.parametrize("count", [0, 1, 5, 100, 768, 2049, 5000])
def test_sums_by_index_are_those_of_float64(recorder: Recorder, count: int) -> None:
    """Results have few or many rows, some indices are out of range, and the source is transposed.
    Each result is computed twice, with the same bits."""
    rng = np.random.default_rng(count)
    for limits in kinds(recorder.limits):
        for width, rows in ((1, 1), (7, 3), (33, 3000)):
            source = rng.standard_normal((width, count)).astype(np.float32)
            turned = Operand(source.reshape(-1), source.T)
            index = rng.integers(-2, rows + 2, count).astype(np.int32)
            outs = [Operand.of(np.zeros((rows, width), np.float32)) for _ in range(2)]
            for out in outs:
                run_call(recorder, "index_add", [turned, Operand.of(index)], [out], limits=limits)
            assert outs[0].memory.tobytes() == outs[1].memory.tobytes()
            wanted, size = np.zeros((2, rows, width))
            inside = (index >= 0) & (index < rows)
            np.add.at(wanted, index[inside], source.T[inside])
            np.add.at(size, index[inside], np.abs(source.T[inside]))
            bound = 4 * np.sqrt(max(count, 1)) * UNIT * size
            assert (np.abs(outs[0].view - wanted) <= bound).all(), (width, rows)


@pytest.mark.slow
def test_the_validation_layers_accept_row_kernels() -> None:
    recorder = Recorder(open_vulkan(validate=True))
    rng = np.random.default_rng(6)
    check_sorted(recorder, recorder.limits, Operand.of(values(rng, (2, 2500), "float32")), 5, True)
    test_running_sums_are_those_of_float64(recorder)
    test_sums_by_index_are_those_of_float64(recorder, 5000)
