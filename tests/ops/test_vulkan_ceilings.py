"""The measurement of a Vulkan device's limits, under validation and guard bands."""

from __future__ import annotations

import pytest
from vulkan_open import open_vulkan

from ebmvk.errors import OutOfMemory


def test_every_submission_is_timed_and_stays_inside_its_buffers() -> None:
    vulkan = open_vulkan(validate=True, guard=True)
    for seconds in (
        vulkan.copy_seconds(1 << 12, 3, 2),
        vulkan.arithmetic_seconds(65, 3, 2),  # one row more than a workgroup has
        vulkan.product_seconds(5, 131, 6, 2),  # not a multiple of any tile
    ):
        assert len(seconds) == 2
        assert all(second > 0 for second in seconds)
    assert vulkan._engine.damaged_guards() == ""
    assert vulkan._engine.take_messages() == []


def test_more_rounds_take_longer() -> None:
    """The compiler must not drop the arithmetic: 256 times the work takes over 8 times as long."""
    vulkan = open_vulkan()
    few, many = (min(vulkan.arithmetic_seconds(4096, rounds, 3)) for rounds in (64, 64 * 256))
    assert many > 8 * few


def test_a_too_large_copy_raises_out_of_memory() -> None:
    vulkan = open_vulkan(memory_limit=1 << 20)
    with pytest.raises(OutOfMemory, match="copy_seconds"):
        vulkan.copy_seconds(1 << 21, 1, 1)
