"""Tests that random numbers on the device equal those of engine/philox.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ebmvk.compute import expr, oracle
from ebmvk.compute.capture import graph_of
from ebmvk.compute.compiled import Compiled
from ebmvk.compute.ir import Loop, Program, Store, Tensor
from ebmvk.compute.lower import lower
from ebmvk.compute.primitives_noise import random_byte
from ebmvk.engine import philox
from ebmvk.engine.dropout import words_of
from ebmvk.engine.normals import normals
from ebmvk.engine.philox import philox4x32, to_uniform
from ebmvk.engine.recording import Recorder


@pytest.mark.parametrize(
    ("shape", "seed", "step", "row"),
    [((3, 7, 5), 12345678901234567890, 4, 0), ((2, 9), 7, 2**32 - 1, 11), ((5,), 0, 0, 3), ((2, 40000), 9, 1, 3000000)],
)
def test_bytes_of_dropout_are_philox(shape, seed, step, row):
    place = 0xFFFFFFF0
    words = np.array([seed & 0xFFFFFFFF, seed >> 32, step, row], np.uint32).view(np.int32)
    source, target = Tensor(0, (4,), "int32"), Tensor(1, shape, "int32")
    value = expr.cast_to(random_byte(shape, source.view(), place), "int32")
    program = Program([source], {}, [Loop(shape, 0, (Store(target.view(), value),))], [target.view()], [source.view()])
    (got,) = oracle.run(program, [words])

    first = row * (int(np.prod(shape)) // shape[0])
    element = first + torch.arange(int(np.prod(shape)))
    counter = (torch.full_like(element, step), torch.full_like(element, place), element // 16 & 0xFFFFFFFF,
               torch.full_like(element, 0xFFFFFFFD))  # fmt: skip
    drawn = torch.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), -1)
    chosen = drawn[torch.arange(len(element)), element % 16 // 4]
    expected = chosen >> 8 * (element % 4) & 255
    np.testing.assert_array_equal(got, expected.reshape(shape).numpy())


ROWS = [[0, 1, 2], [7, 7, 3, 2**31 - 1], []]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("d", "seed", "step"), [(1, 0, 0), (6, 2**63 + 5, 2**32 - 1), (129, 12345678901234567890, 9)])
def test_normals_of_a_device_are_those_of_philox(
    rows: list[int], d: int, seed: int, step: int, recorder: Recorder
) -> None:
    """The oracle is float64, from the same float32 uniforms. Angles of up to 2 pi have an error of
    2 pi 2^-24, radii are at most 6.8, and each function has an error of a few ULP."""
    words, chosen = words_of(seed, step, 0), torch.tensor(rows, dtype=torch.int64)
    u = to_uniform(philox.words(seed, torch.tensor(step), chosen, -(-d // 4), philox.STREAM_NORMALS), torch.float32)
    exact = philox.box_muller(u.double())[:, :d]
    drawn = normals(words, chosen, d)
    assert drawn.shape == (len(rows), d)
    program = lower(graph_of(lambda words, chosen: [normals(words, chosen, d)], [words, chosen]))
    run = Compiled(recorder, program).run({0: words.numpy(), 1: chosen.to(torch.int32).numpy()})
    for found in (drawn.numpy(), run.outputs[0]):
        np.testing.assert_allclose(found, exact.numpy(), rtol=8 * 2.0**-24, atol=6.8 * 2 * math.pi * 2.0**-24)


def test_normals_of_rows_do_not_depend_on_the_other_rows() -> None:
    words, rows = words_of(5, 0, 0), torch.tensor([4, 0, 9, 4])
    together = normals(words, rows, 10)
    assert torch.equal(together, torch.cat([normals(words, row[None], 10) for row in rows]))
    assert torch.equal(
        together[0], philox.normals(5, torch.tensor(0), torch.tensor(4), 10, stream=philox.STREAM_NORMALS)
    )
