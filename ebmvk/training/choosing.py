"""`--device auto`: times a few steps on the CPU and on the Vulkan device, and chooses the faster.

This doesn't change the run: the steps work on copies of the weights, with the batch of the next
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from ebmvk.errors import EbmvkError
from ebmvk.report.tables import duration
from ebmvk.training.stepping import Steps

STEPS = 3
"""Steps that are timed on each device, after one that warms up."""
SHARE = 0.05
"""About the part of the run that measuring may take."""
COMPILING = 30.0
"""About the seconds that compiling a step for a device takes. They can't be known before."""

Take = Callable[[Steps], object]
"""A function that takes a step, the same one each time."""


@dataclass(frozen=True)
class Choice:
    """Where the layers are trained, and why.

    where: cpu or vulkan. why: part of a sentence, for people. cpu, vulkan: median seconds of a
    step, None if not measured. seconds: what measuring took.
    """

    where: str
    why: str
    cpu: float | None = None
    vulkan: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        place = "the Vulkan device" if self.where == "vulkan" else "the CPU"
        return f"on {place}: {self.why}"

    def record(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return asdict(self)


def chosen(host: Callable[[], Steps], device: Callable[[], Steps], take: Take, left: int) -> Choice:
    """Where to train.

    A run so short that measuring would take more than `SHARE` of it stays on the CPU.

    Args:
        host, device: make the `Steps` to time, with copies of the weights.
        take: takes a step.
        left: the number of steps that the run has left.
    """
    began = time.perf_counter()

    def spent() -> float:
        return time.perf_counter() - began

    if left * SHARE < STEPS + 1:
        return Choice("cpu", f"with {left} steps left, measuring the device isn't worth it")
    try:
        with torch.random.fork_rng(devices=[]):
            steps = host()
            first = timed(steps, take)
            if first * left * SHARE < COMPILING:
                return Choice(
                    "cpu",
                    f"the run takes only about {duration(first * left)} there, so measuring the device isn't worth it",
                    first, seconds=spent(),
                )  # fmt: skip
            cpu = median(timed(steps, take) for _ in range(STEPS))
    except EbmvkError as error:  # the run's own first step will say more
        return Choice("cpu", f"a step failed there ({error.what})", seconds=spent())
    try:
        steps = device()
        timed(steps, take)  # compiles
        vulkan = median(timed(steps, take) for _ in range(STEPS))
    except EbmvkError as error:
        return Choice("cpu", f"the Vulkan device can't train it ({error.what})", cpu, seconds=spent())
    why = f"a step takes {vulkan:.3g} s on the Vulkan device and {cpu:.3g} s on the CPU (medians of {STEPS}"
    why += f", measured in {duration(spent())})"
    return Choice("vulkan" if vulkan < cpu else "cpu", why, cpu, vulkan, spent())


def timed(steps: Steps, take: Take) -> float:
    """The seconds that a step takes."""
    began = time.perf_counter()
    take(steps)
    return time.perf_counter() - began
