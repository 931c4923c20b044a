"""`--device auto` measures steps on the CPU and on a device, within a small part of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ebmvk.errors import DeviceLost, EbmvkError, NonFinite, OutOfMemory
from ebmvk.training import choosing
from ebmvk.training.choosing import COMPILING, SHARE, STEPS, chosen

LONG = 10_000  # steps


class Fake:
    """Steps that take a given time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.taken = 0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(steps: Any, take: Callable[[Any], object]) -> float:
        take(steps)
        steps.taken += 1
        return float(steps.seconds)

    monkeypatch.setattr(choosing, "timed", timed)


def never() -> Any:
    raise AssertionError("these steps must not be made")


@pytest.mark.parametrize(("cpu", "vulkan", "where"), [(1.0, 0.4, "vulkan"), (1.0, 1.7, "cpu"), (1.0, 1.0, "cpu")])
def test_the_faster_one_trains(cpu: float, vulkan: float, where: str) -> None:
    """If both take equally long, the CPU trains. The choice names both times and keeps them."""
    host, device = Fake(cpu), Fake(vulkan)
    found = chosen(lambda: host, lambda: device, lambda _: None, LONG)  # type: ignore[arg-type, return-value]
    assert (found.where, found.cpu, found.vulkan) == (where, cpu, vulkan)
    assert (host.taken, device.taken) == (STEPS + 1, STEPS + 1)
    assert f"{vulkan:.3g} s on the Vulkan device and {cpu:.3g} s on the CPU" in str(found)
    assert found.record()["where"] == where


def test_a_short_run_is_not_kept_waiting() -> None:
    """If few steps are left, nothing is measured. If little time is left, one step on the CPU
    is."""
    few = int(STEPS / SHARE)
    found = chosen(never, never, lambda _: None, few)
    assert found.where == "cpu"
    assert f"{few} steps left" in str(found)
    host = Fake(0.9 * COMPILING / SHARE / LONG)
    found = chosen(lambda: host, never, lambda _: None, LONG)  # type: ignore[arg-type, return-value]
    assert (found.where, host.taken, found.vulkan) == ("cpu", 1, None)
    assert "measuring the device isn't worth it" in str(found)


@pytest.mark.parametrize("error", [OutOfMemory("no room", hint="-"), DeviceLost("gone", hint="-")])
def test_a_device_that_fails_is_not_chosen(error: EbmvkError) -> None:
    def fail() -> Any:
        raise error

    host = Fake(1.0)
    found = chosen(lambda: host, fail, lambda _: None, LONG)  # type: ignore[arg-type, return-value]
    assert found.where == "cpu"
    assert f"the Vulkan device can't train it ({error.what})" in str(found)


def test_a_step_that_fails_on_the_processor_is_left_to_the_run() -> None:
    def fail(_: Any) -> None:
        raise NonFinite("the loss is not finite", hint="-")

    found = chosen(lambda: Fake(1.0), never, fail, LONG)  # type: ignore[arg-type, return-value]
    assert found.where == "cpu"
    assert "the loss is not finite" in str(found)
