"""The sort of entries on the device and the segments that it finds, against NumPy's stable sort."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from vulkan_open import guarded, open_vulkan

from ebmvk.engine.vulkan import Vulkan

Words = NDArray[np.uint32]

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "gpu": {"pretend": "gpu"},  # workgroups as for a GPU
    "smallest": {"pretend": "smallest"},
}
NONE = 0xFFFFFFFF

# Empty, one, primes; around an invocation's share of 8 or 256, and around workgroups of both kinds;
# more entries than llvmpipe lets a loop have iterations.
SIZES = (0, 1, 2, 7, 8, 9, 255, 257, 511, 512, 513, 1021, 2047, 2048, 2049, 4099, 65_521, 65_537, 300_007)
# Keys of 1, 1, 7, 16 and 31 bits.
BELOW = (1, 2, 97, 50_000, 2**31 - 1)


@pytest.fixture(scope="module", params=VARIANTS)
def vulkan(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    """With guard bands, poisoned buffers and the validation layers."""
    yield from guarded(**VARIANTS[request.param])


def random_keys(count: int, below: int) -> Words:
    """The highest key occurs."""
    keys = np.random.default_rng(count + below).integers(0, below, count, dtype=np.uint32)
    keys[count // 2 : count // 2 + 1] = below - 1
    return keys


def check(backend: Vulkan, keys: Words, tokens: Words | None = None, per_token: int = 0, limit: int = NONE) -> None:
    """Compares order, starts, keys and tokens with NumPy's."""
    none = np.zeros(0, dtype=np.uint32)
    order, starts, segment_keys, segment_tokens = backend._engine.probe_sort(
        keys, none if tokens is None else tokens, per_token, limit
    )
    own = np.zeros_like(keys) if tokens is None else tokens[np.arange(len(keys)) // per_token]
    want = np.lexsort((own, keys))  # stable, by the key first
    np.testing.assert_array_equal(order, want)
    pairs = np.stack((keys[want], own[want]), axis=1)[keys[want] < limit]
    if not len(pairs):
        assert len(starts) == len(segment_keys) == 0
        return
    first = np.concatenate(([True], (pairs[1:] != pairs[:-1]).any(axis=1)))
    np.testing.assert_array_equal(starts, [*first.nonzero()[0], len(pairs)])
    np.testing.assert_array_equal(segment_keys, pairs[first, 0])
    if tokens is not None:
        np.testing.assert_array_equal(segment_tokens, pairs[first, 1])


@pytest.mark.parametrize("count", SIZES)
def test_entries_are_sorted_as_numpy_sorts_them(vulkan: Vulkan, count: int) -> None:
    for below in BELOW:
        check(vulkan, random_keys(count, below))


@pytest.mark.parametrize("count", [7, 2049, 65_537])
def test_equal_keys_keep_the_order_of_the_entries(vulkan: Vulkan, count: int) -> None:
    for key in (0, 5, 2**31 - 2):
        check(vulkan, np.full(count, key, dtype=np.uint32))


@pytest.mark.parametrize("count", [9, 2048, 65_521])
def test_sorted_keys_stay_and_reversed_keys_turn_around(vulkan: Vulkan, count: int) -> None:
    keys = np.arange(count, dtype=np.uint32)
    check(vulkan, keys)
    check(vulkan, keys[::-1].copy())


@pytest.mark.parametrize(("rows", "k"), [(1, 1), (3, 7), (31, 64), (1021, 65)])
def test_pairs_of_key_and_token_make_segments(vulkan: Vulkan, rows: int, k: int) -> None:
    for below, vocabulary in ((1, 2**31 - 1), (3, 5), (50_000, 1)):
        check(vulkan, random_keys(rows * k, below), random_keys(rows, vocabulary), k)


@pytest.mark.parametrize("count", [1, 9, 2049, 65_537])
def test_keys_from_the_limit_on_belong_to_no_segment(vulkan: Vulkan, count: int) -> None:
    keys = random_keys(count, 10)
    for limit in (0, 1, 5, 9, 10):
        check(vulkan, keys, limit=limit)
        check(vulkan, keys, random_keys(count, 3), 1, limit=limit)


def test_the_sort_repeats_bit_for_bit(vulkan: Vulkan) -> None:
    keys = random_keys(5000, 40)
    none = np.zeros(0, dtype=np.uint32)
    first = vulkan._engine.probe_sort(keys, none, 0, NONE)
    for _ in range(3):
        again = vulkan._engine.probe_sort(keys, none, 0, NONE)
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def unsorted() -> list[str]:
    """Faults of sorts on this process' device, which test_vulkan_profiles.py asks for at
    every width of subgroups."""
    wrong = []
    for name, options in VARIANTS.items():
        backend = open_vulkan(guard=True, **options)
        try:
            for count in (1, 513, 4099, 65_537):
                for below in BELOW:
                    check(backend, random_keys(count, below))
            check(backend, random_keys(1021 * 65, 50), random_keys(1021, 30), 65, limit=40)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
        if damaged := backend._engine.damaged_guards():
            wrong.append(f"{name}: {damaged}")
    return wrong
