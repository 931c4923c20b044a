"""Calls that run out of memory raise a typed error, which doesn't keep the arguments of the call in
memory.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from vulkan_open import open_vulkan, unit

from ebmvk.engine.api import Backend
from ebmvk.engine.cpu import Cpu
from ebmvk.engine.reference import Reference
from ebmvk.errors import OutOfMemory


def fail(*_: object, **__: object) -> None:
    raise MemoryError


def failing(name: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend whose topk runs out of memory."""
    if name == "vulkan":
        return open_vulkan()
    if name == "cpu":
        cpu = Cpu()
        monkeypatch.setattr(cpu, "_ops", type("Ops", (), {"topk": fail, "use_coarse": lambda: False}))
        return cpu
    monkeypatch.setattr(torch, "topk", fail)
    return Reference()


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", ["cpu", "reference", "vulkan"])
def test_points_of_a_failed_call_are_freed_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch, without_collector: None
) -> None:
    """They must not wait until Python collects cycles, because device memory has run out."""
    queries, rows = unit(3, 5, 1), unit(9, 5, 2)
    backend = failing(name, monkeypatch)

    def call() -> weakref.ref[object]:
        points = backend.points(rows)
        if name == "vulkan":  # only now, because an upload is a submission, too
            backend._extension.inject_fault("vkQueueSubmit", 1, -1)  # type: ignore[attr-defined]
        try:  # pytest.raises would keep the frames
            backend.topk(queries, points, 2)
        except OutOfMemory:
            return weakref.ref(points)
        raise AssertionError("nothing was raised")

    assert call()() is None
    if name != "vulkan":
        assert backend.counts() == {}
