"""Random bits on the device are those of engine/philox.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ebmvk.compute import expr, oracle
from ebmvk.compute.ir import Loop, Program, Store, Tensor
from ebmvk.compute.primitives_noise import random_byte
from ebmvk.engine.philox import philox4x32


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
