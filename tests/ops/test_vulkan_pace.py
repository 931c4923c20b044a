"""How much work a submission holds: learned from runs, and never stuck at a slow one."""

from __future__ import annotations

import pytest
from vulkan_open import open_vulkan, unit

vulkan = pytest.importorskip("ebmvk._vulkan", reason="the Vulkan extension is not built")

SLICE = 0.2  # seconds
ASSUMED = 1e10  # FLOP/s
ROW = 3e4  # FLOP of one row of a small problem


def rows(pace: object) -> int:
    """The number of rows of a slice."""
    return pace.units("kernel", ROW)  # type: ignore[attr-defined,no-any-return]


def new_pace() -> object:
    return vulkan.Pace(ASSUMED, SLICE)


def test_the_first_run_of_a_program_teaches_nothing() -> None:
    """It may include a second of compilation."""
    pace = new_pace()
    before = rows(pace)
    assert before == int(ASSUMED * SLICE / ROW)
    pace.learn("kernel", 100 * ROW, 1.0, True)
    assert rows(pace) == before
    pace.learn("kernel", 1e9, 0.05, False)
    assert rows(pace) == int(2e10 * SLICE / ROW)


def test_a_short_slow_run_teaches_nothing() -> None:
    """A run of a few rows is mostly its submission, however fast the device is."""
    pace = new_pace()
    before = rows(pace)
    for _ in range(100):
        pace.learn("kernel", 10 * ROW, 1e-3, False)
    assert rows(pace) == before


def test_a_slow_device_gets_smaller_slices_down_to_a_floor() -> None:
    pace = new_pace()
    seen = [rows(pace)]
    for _ in range(50):
        pace.learn("kernel", seen[-1] * ROW, 30.0, False)
        seen.append(rows(pace))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == int(ASSUMED / 16 * SLICE / ROW)


def test_one_fast_run_of_a_single_row_ends_the_slow_slices() -> None:
    pace = new_pace()
    for _ in range(50):
        pace.learn("kernel", 1e9, 30.0, False)
    pace.learn("kernel", ROW, ROW / 1e11, False)
    assert rows(pace) == pytest.approx(1e11 * SLICE / ROW, rel=1e-6)


def test_kernels_have_speeds_of_their_own() -> None:
    pace = new_pace()
    pace.learn("other", 1e12, 1.0, False)
    assert rows(pace) == int(ASSUMED * SLICE / ROW)


class Small:
    """A device with 256 points of 64 dimensions: a query is 33,000 FLOP, and 2,048 queries fit one
    slice easily."""

    def __init__(self) -> None:
        self.backend = open_vulkan(slice_seconds=2.0)
        self.points = self.backend.points(unit(256, 64, 2))
        self.queries = unit(2048, 64, 1)
        self.counted = 0

    def topk(self) -> int:
        """Makes one call; returns the number of its dispatches."""
        self.backend.topk(self.queries, self.points, 3)
        before, self.counted = self.counted, self.backend.counts()["topk"].dispatches
        return self.counted - before


def test_a_device_that_was_busy_recovers() -> None:
    """A clock that adds 30 s to each submission of ten calls, as if another program kept the device
    busy."""
    fresh, busy = Small(), Small()
    usual = [fresh.topk() for _ in range(3)][-1]
    busy.backend._engine.throttle(30.0)
    slowed = [busy.topk() for _ in range(10)][-1]
    busy.backend._engine.throttle(0.0)
    after = [busy.topk() for _ in range(3)]
    assert usual < slowed  # or the clock has no effect
    assert after[-1] == usual, after
