"""Philox against its published vectors; its normals against the normal law; kernels against the
reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_problems import nmse
from scipy import stats

from ebmvk.engine import philox

# Random123 1.14, kat_vectors, philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_random_numbers_match_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], result: tuple[int, ...]
) -> None:
    words = philox.philox4x32(tuple(torch.tensor(word) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == result


def test_words_have_the_layout_of_every_backend() -> None:
    """Words of (step, chain, quad, stream) under (seed lo, seed hi), as every backend has to lay
    them out.
    """
    words = philox.words(0xA409382285A308D3, torch.tensor([7]), torch.tensor([9]), 3, stream=2)
    counter = tuple(torch.tensor(word) for word in (7, 9, 1, 2))
    direct = philox.philox4x32(counter, (0x85A308D3, 0xA4093822))  # type: ignore[arg-type]
    assert words[0, 1].tolist() == [int(word) for word in direct]


def test_uniforms_stay_within_0_and_1() -> None:
    u = philox.to_uniform(torch.tensor([0, 1, 2**32 - 1]), torch.float32)
    assert float(u[0]) == 2.0**-33
    assert float(u[2]) == 1 - 2.0**-24


@pytest.mark.parametrize("d", [1, 2, 3, 4, 63, 64, 65, 127, 128, 129, 640])
def test_kernels_draw_the_same_normals(cpu_kernels: Any, d: int) -> None:
    before = cpu_kernels.target()
    steps, chains = torch.arange(2**32 - 3, 2**32)[:, None], torch.arange(5, 9)
    want = philox.normals(2**64 - 5, steps, chains, d, stream=3, dtype=torch.float64)
    for target in cpu_kernels.targets():
        cpu_kernels.use_target(target)
        got = torch.from_numpy(cpu_kernels.normals(2**64 - 5, 2**32 - 3, 3, 5, 4, 3, d))
        assert nmse(got, want) <= 1e-12, target  # 5e-15 was measured
    cpu_kernels.use_target(before)


def test_kernel_normals_are_normal(cpu_kernels: Any) -> None:
    n = 1 << 21
    z = torch.from_numpy(cpu_kernels.normals(1, 0, n // 4096, 0, 16, 0, 256)).flatten().double()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    for cut in (2.0, 3.0, 4.0, 4.5):
        expected = n * 2 * stats.norm.sf(cut)
        seen = int((z.abs() > cut).sum())
        assert abs(seen - expected) < 5 * expected**0.5, cut  # Poisson, 5 sigma
    # Moments to 5 standard errors: sqrt(1, 2, 15, 96 / n).
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5 * (variance / n) ** 0.5, power
    assert float(z.abs().max()) < 6.77  # sqrt(2 * 33 ln 2): the tail ends with the bits of u


def test_neighbouring_coordinates_are_independent(cpu_kernels: Any) -> None:
    z = torch.from_numpy(cpu_kernels.normals(3, 0, 64, 0, 64, 0, 64)).double()
    n = z.numel()
    for dim in range(3):
        product = (z * z.roll(1, dims=dim)).mean()
        assert abs(float(product)) < 5 / n**0.5, dim
        squares = ((z**2 - 1) * (z.roll(1, dims=dim) ** 2 - 1)).mean()
        assert abs(float(squares)) < 5 * 2 / n**0.5, dim
