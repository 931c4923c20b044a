"""Compares the kernels of matrix products with float64, over odd shapes, strides and limits."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from call_support import Operand, planned_call, run_call
from vulkan_open import open_pretended, open_vulkan

from ebmvk.compute import index_add, matmul, row_kernels
from ebmvk.compute.matmul_tiles import CARD, SHORT, Tile, chosen
from ebmvk.engine.recording import Limits, Recorder

Array = np.ndarray[Any, Any]
UNIT = 2.0**-24  # half of a unit in the last place of 1
CASES = 4


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder(open_pretended())


def devices(limits: Limits) -> dict[str, Limits]:
    """Limits under which the same device chooses other kernels."""
    lanes = 8 if limits.subgroup == 8 else 0
    return {
        "own": replace(limits, subgroup=lanes),
        "card": replace(limits, kind="discrete"),
        "least": replace(limits, kind="discrete", group=128, shared_bytes=min(limits.shared_bytes, 16384)),
        "no subgroups": replace(limits, kind="cpu", subgroup=0),
        "short loops": replace(limits, kind="cpu", subgroup=0, loop_rounds=128),
        "few workgroups": replace(limits, kind="discrete", groups_yz=3),
    }


def strided(rng: np.random.Generator, shape: Sequence[int], repeats: bool = True) -> Operand:
    """A random view of random numbers, with permuted axes, gaps and an offset. With `repeats`, some
    leading axes have stride 0."""
    order = list(range(len(shape)))
    if rng.random() < 0.4:
        order[-2:] = order[:-3:-1]
    if rng.random() < 0.3:
        order = [int(axis) for axis in rng.permutation(len(shape))]
    sizes = [shape[axis] for axis in order]
    once = [repeats and axis < len(shape) - 2 and rng.random() < 0.3 for axis in order]
    gaps = rng.integers(0, 3, len(shape)) * (rng.random() < 0.4)
    full = [1 if one else size + int(gap) for size, one, gap in zip(sizes, once, gaps, strict=True)]
    first = int(rng.integers(0, 5))
    memory = rng.standard_normal(first + int(np.prod(full))).astype(np.float32)
    cut = tuple(slice(0, 1 if one else size) for size, one in zip(sizes, once, strict=True))
    view = np.broadcast_to(memory[first:].reshape(full)[cut], sizes)
    return Operand(memory, np.transpose(view, np.argsort(order)))


def random_case(rng: np.random.Generator) -> tuple[list[Operand], Operand, dict[str, float]]:
    """Operands, a place for the result, and constants."""
    batch = [int(size) for size in rng.integers(1, 4, rng.integers(0, 4))]
    rows, columns = (int(rng.choice([rng.integers(1, 5), rng.integers(1, 140)])) for _ in range(2))
    inner = int(rng.choice([0, 1, 3, 4, 5, 8, 15, 16, 17, 31, 64, 100, 257]))
    inputs = [strided(rng, (*batch, rows, inner)), strided(rng, (*batch, inner, columns))]
    constants: dict[str, float] = {}
    if rng.random() < 0.5:
        added = strided(rng, (*batch, rows, columns))
        if rng.random() < 0.4:  # a bias
            added = Operand(added.memory, np.broadcast_to(added.view[..., :1, :], (*batch, rows, columns)))
        inputs.append(added)
        constants["beta"] = float(rng.choice([0.0, 0.5, -1.0, 1.0]))
    if rng.random() < 0.5:
        constants["alpha"] = float(rng.choice([0.5, -2.0, 0.375]))
    return inputs, strided(rng, (*batch, rows, columns), repeats=False), constants


def exact(inputs: Sequence[Operand], constants: dict[str, float]) -> tuple[Array, Array]:
    """The product in float64, and the bound of its error: 4 sqrt(K) 2^-24 |A||B|, plus the same
    factor times the added tensor's size."""
    a, b = (operand.view.astype(np.float64) for operand in inputs[:2])
    alpha, beta = constants.get("alpha", 1.0), constants.get("beta", 1.0)
    result, size = alpha * (a @ b), abs(alpha) * (np.abs(a) @ np.abs(b))
    if len(inputs) > 2:
        added = beta * inputs[2].view.astype(np.float64)
        result, size = result + added, size + np.abs(added)
    return result, 4 * np.sqrt(max(a.shape[-1], 1)) * UNIT * size


@pytest.mark.parametrize("name", ["own", "card", "least", "no subgroups", "short loops", "few workgroups"])
def test_products_of_any_strides_are_those_of_float64(recorder: Recorder, name: str) -> None:
    check_products(recorder, name, CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "card", "least", "no subgroups", "short loops", "few workgroups"])
def test_many_products_are_those_of_float64(recorder: Recorder, name: str) -> None:
    check_products(recorder, name, 200)


def check_products(recorder: Recorder, name: str, cases: int) -> None:
    limits = devices(recorder.limits)[name]
    rng = np.random.default_rng(len(name))
    for case in range(cases):
        inputs, out, constants = random_case(rng)
        ran = run_call(recorder, "matmul", inputs, [out], constants, limits)
        wanted, bound = exact(inputs, constants)
        where = f"case {case}: {[operand.view.shape for operand in inputs]}, {constants}"
        assert (np.abs(out.view - wanted) <= bound).all(), where
        assert ran.untouched(), where


LARGE = [tile for tile in CARD if tile.rows * tile.columns == 64]  # these take seconds to compile
BOTH = [(False, False), (True, True)]


@pytest.mark.parametrize("tile", [tile for tile in CARD if tile not in LARGE], ids=str)
@pytest.mark.parametrize("turned", BOTH, ids=str)
def test_small_tiles_give_products_of_both_layouts(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tile: Tile, turned: tuple[bool, bool]
) -> None:
    check_tile(recorder, monkeypatch, tile, turned)


@pytest.mark.slow
@pytest.mark.parametrize("tile", CARD, ids=str)
@pytest.mark.parametrize("turned", [*BOTH, (False, True), (True, False)], ids=str)
def test_every_tile_gives_products_of_every_layout(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tile: Tile, turned: tuple[bool, bool]
) -> None:
    check_tile(recorder, monkeypatch, tile, turned)


def check_tile(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tile: Tile, turned: tuple[bool, bool]) -> None:
    """Tests rows and columns that are multiples of four or not, whole and short slices of sums, and
    sums in one part or two."""
    if tile.group > recorder.limits.group or tile.shared_bytes > recorder.limits.shared_bytes:
        pytest.skip("this device doesn't allow the tile")
    rng = np.random.default_rng(7)
    for rows, columns, inner, parts in ((132, 136, 40, 1), (67, 131, 37, 1), (68, 64, 101, 2)):
        monkeypatch.setattr(matmul, "chosen", lambda *_, parts=parts: (tile, parts))
        a, b = (
            rng.standard_normal(shape[::-1] if back else shape).astype(np.float32)
            for shape, back in zip(((rows, inner), (inner, columns)), turned, strict=True)
        )
        inputs = [
            Operand(array.reshape(-1), array.T if back else array) for array, back in zip((a, b), turned, strict=True)
        ]
        out = Operand.of(np.zeros((rows, columns), np.float32))
        run_call(recorder, "matmul", inputs, [out])
        wanted, bound = exact(inputs, {})
        assert (np.abs(out.view - wanted) <= bound).all(), (rows, columns, inner, parts)


@pytest.mark.parametrize("name", ["card", "no subgroups"])
def test_long_sums_are_cut_into_parts_and_repeat_their_bits(recorder: Recorder, name: str) -> None:
    """The product is like a gradient of weights over many tokens. torch's error sets the bound."""
    limits = devices(recorder.limits)[name]
    rng = np.random.default_rng(3)
    a, b = (Operand.of(rng.standard_normal((5000, width)).astype(np.float32)) for width in (24, 40))
    turned = Operand(a.memory, a.view.T)
    outs = [Operand.of(np.zeros((24, 40), np.float32)) for _ in range(2)]
    for out in outs:
        ran = run_call(recorder, "matmul", [turned, b], [out], {"alpha": 0.5}, limits)
        assert [step.kernel for step in ran.planned.steps][1:] == ["matmul_join"]  # type: ignore[union-attr]
    assert outs[0].memory.tobytes() == outs[1].memory.tobytes()
    wanted, bound = exact([turned, b], {"alpha": 0.5})
    own = 0.5 * (torch.from_numpy(a.view).T @ torch.from_numpy(b.view)).numpy()
    errors = np.abs(outs[0].view - wanted)
    assert (errors <= np.maximum(2 * np.abs(own - wanted).max(), bound)).all()


def test_values_that_are_not_finite_stay_in_their_rows(recorder: Recorder) -> None:
    """Rows, columns and terms that only fill up a tile don't affect the others."""
    for name in ("card", "no subgroups"):
        a, b = np.ones((70, 21), np.float32), np.ones((21, 33), np.float32)
        a[3, 20], b[20, 7] = np.inf, np.nan
        out = Operand.of(np.zeros((70, 33), np.float32))
        run_call(recorder, "matmul", [Operand.of(a), Operand.of(b)], [out], {}, devices(recorder.limits)[name])
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(out.view, a @ b)


def test_a_batch_that_shares_b_is_one_product() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 6, 8)).astype(np.float32), rng.standard_normal((8, 5)).astype(np.float32)
    shared = Operand(b.reshape(-1), np.broadcast_to(b, (4, 8, 5)))
    out = Operand.of(np.zeros((4, 6, 5), np.float32))
    planned, _ = planned_call("matmul", [Operand.of(a), shared], [out], {}, least_limits())
    (step,) = planned.steps
    assert step.groups[2] == 1  # type: ignore[union-attr]
    assert planned.flops == 2 * 4 * 6 * 8 * 5


def test_empty_products_need_no_dispatch() -> None:
    for shape_a, shape_b in (((0, 3), (3, 2)), ((2, 0, 3), (2, 3, 4)), ((0, 2, 3), (0, 3, 4))):
        a, b = np.zeros(shape_a, np.float32), np.zeros(shape_b, np.float32)
        out = Operand.of(np.zeros((*shape_a[:-1], shape_b[-1]), np.float32))
        planned, _ = planned_call("matmul", [Operand.of(a), Operand.of(b)], [out], {}, least_limits())
        assert planned.steps == ()


def least_limits() -> Limits:
    return Limits(128, 65535, 65535, 16384, 1 << 27, 16, 128, 256, 0, 65535, "other")


def test_every_tile_is_chosen_for_some_shape() -> None:
    card = replace(least_limits(), kind="discrete", group=1024, shared_bytes=32768)
    shapes = ((4096, 4096, 512), (64, 16384, 512), (96, 96, 128), (2, 4096, 512), (4096, 2, 512), (64, 64, 2))
    assert {chosen(*shape, 1, card)[0] for shape in shapes} == {*CARD, SHORT}


def test_push_constants_stand_in_the_manifest_s_order() -> None:
    manifest = tomllib.loads((Path(__file__).parents[2] / "shaders/kernels.toml").read_text(encoding="utf-8"))
    for kernel, names in (matmul.PUSH | row_kernels.PUSH | index_add.PUSH).items():
        assert tuple(line.split()[0] for line in manifest[kernel]["push"]) == names, kernel
        assert len(names) <= 32, f"{kernel}: devices have at least 128 bytes"


@pytest.mark.slow
def test_the_validation_layers_accept_products() -> None:
    recorder = Recorder(open_vulkan(validate=True))
    rng = np.random.default_rng(5)
    for name, limits in devices(recorder.limits).items():
        inputs, out, constants = random_case(rng)
        run_call(recorder, "matmul", inputs, [out], constants, limits)
        wanted, bound = exact(inputs, constants)
        assert (np.abs(out.view - wanted) <= bound).all(), name
