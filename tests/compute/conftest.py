"""Tests of the compiler use the helpers of tests/ops."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "ops"))


@pytest.fixture(scope="module")
def extension() -> None:
    """Skips a test if the Vulkan extension is missing, because it arranges the arena of a plan."""
    from vulkan_open import open_vulkan

    open_vulkan()


@pytest.fixture(scope="module")
def recorder() -> Iterator[Any]:
    """A device with guard bands, poison and validation. At the end they must have found no error.

    lavapipe compiles kernels at their first run, which may take long on a busy machine. So a minute
    of work is submitted at once, and the number of submissions doesn't depend on the load.
    """
    from vulkan_open import open_vulkan

    from ebmvk.engine.recording import Recorder

    made = Recorder(open_vulkan(validate=True, guard=True, timeout_seconds=900.0, slice_seconds=60.0))
    yield made
    assert made.backend._engine.damaged_guards() == ""
    assert made.backend._engine.take_messages() == []
