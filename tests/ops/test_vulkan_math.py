"""The shaders' functions on this device are accurate, and Philox gives known answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from vulkan_open import open_vulkan

from ebmvk.engine.vulkan import Vulkan

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def vulkan() -> Vulkan:
    return open_vulkan()


def evaluate(vulkan: Vulkan, function: int, *columns: NDArray[np.float32]) -> NDArray[np.float32]:
    arguments = np.zeros((len(columns[0]), 4), np.uint32)
    for column, values in enumerate(columns):
        arguments[:, column] = values.astype(np.float32).view(np.uint32)
    return vulkan._engine.probe(function, arguments, np.zeros_like(arguments)).view(np.float32)


def ulps(result: NDArray[np.float32], exact: Array) -> float:
    """The largest error in units of the last place of the exact value."""
    return float(np.max(np.abs(result.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))))


def span(low: float, high: float, n: int = 20_000) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(low, high, n).astype(np.float32)


def logspan(low: float, high: float, n: int = 20_000) -> NDArray[np.float32]:
    return np.exp(np.random.default_rng(2).uniform(np.log(low), np.log(high), n)).astype(np.float32)


def near_one() -> NDArray[np.float32]:
    return np.float32(1) - np.float32(2.0**-24) * np.arange(1, 2000, dtype=np.float32)


# Bounds in ULP: twice the errors on lavapipe, because other devices may fuse multiply-adds or not.
@pytest.mark.parametrize(
    ("function", "exact", "arguments", "bound"),
    [
        (0, np.exp, span(-87, 88.5), 2.0),
        (0, np.exp, span(-1e-3, 1e-3), 2.0),
        (1, np.log, logspan(1e-37, 1e38), 2.0),
        (1, np.log, near_one(), 2.0),
        (4, lambda x: np.sinc(x / np.pi), span(0, 3), 4.0),
        (4, lambda x: np.sinc(x / np.pi), logspan(1e-20, 0.2), 2.0),
        (6, lambda x: 1 / np.sqrt(x), logspan(1e-30, 1e30), 2.0),
    ],
)
def test_elementary_functions_are_accurate(
    vulkan: Vulkan, function: int, exact: Callable[[Array], Array], arguments: NDArray[np.float32], bound: float
) -> None:
    assert ulps(evaluate(vulkan, function, arguments)[:, 0], exact(arguments.astype(np.float64))) <= bound


@pytest.mark.parametrize(("function", "turn", "arguments"), [(2, 1.0, span(-100, 100)), (3, 2 * np.pi, span(0, 1))])
def test_cosine_and_sine_are_accurate(
    vulkan: Vulkan, function: int, turn: float, arguments: NDArray[np.float32]
) -> None:
    """Absolute errors, because both cross zero: 1.5e-7 is 2.5 ULP at 1."""
    result = evaluate(vulkan, function, arguments).astype(np.float64)
    angle = turn * arguments.astype(np.float64)
    assert np.max(np.abs(result[:, 0] - np.cos(angle))) < 1.5e-7
    assert np.max(np.abs(result[:, 1] - np.sin(angle))) < 1.5e-7


def test_the_arc_tangent_is_accurate(vulkan: Vulkan) -> None:
    y, x = span(-2, 2), span(-2, 2)[::-1].copy()
    y[:4], x[:4] = (0, 0, 1, -1), (1, -1, 0, 0)
    result = evaluate(vulkan, 5, y, x)[:, 0]
    assert ulps(result[4:], np.arctan2(y[4:].astype(np.float64), x[4:].astype(np.float64))) <= 5
    assert np.allclose(result[:4], [0, np.pi, np.pi / 2, -np.pi / 2], rtol=0, atol=2e-7)


def test_functions_have_the_right_limits(vulkan: Vulkan) -> None:
    assert evaluate(vulkan, 0, np.float32([-200, 200]))[:, 0].tolist() == [0.0, np.inf]
    assert evaluate(vulkan, 1, np.float32([0]))[0, 0] == -np.inf
    assert evaluate(vulkan, 4, np.float32([0]))[0, 0] == 1
    assert evaluate(vulkan, 5, np.float32([0]), np.float32([0]))[0, 0] == 0


def test_philox_gives_the_published_numbers(vulkan: Vulkan) -> None:
    """The numbers in the authors' kat_vectors, for philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    counter = np.array([[0, 0, 0, 0], [ones] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint32)
    key = np.array([[0, 0, 0, 0], [ones, ones, 0, 0], [0xA4093822, 0x299F31D0, 0, 0]], np.uint32)
    expected = np.array(
        [
            [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ],
        np.uint32,
    )
    assert np.array_equal(vulkan._engine.probe(7, counter, key), expected)


def test_normals_have_the_normal_law(vulkan: Vulkan) -> None:
    """Kolmogorov-Smirnov test of 262,144 normals, and their tails; the seed is fixed."""
    stats = pytest.importorskip("scipy.stats")
    counter = np.zeros((1 << 16, 4), np.uint32)
    counter[:, 0] = np.arange(1 << 16)
    key = np.tile(np.array([[2024, 7, 0, 0]], np.uint32), (1 << 16, 1))
    values = vulkan._engine.probe(8, counter, key).view(np.float32).ravel().astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > 0.01
    expected = 2 * stats.norm.sf(4) * values.size  # 16.6
    assert abs(np.sum(np.abs(values) > 4) - expected) < 4 * np.sqrt(expected)
    assert np.abs(values).max() > 4.2
