"""Vulkan calls that fail, each at every one of its calls: a typed error, the process alive, and nothing stale returned.

The faults are injected into the table of functions that Kompute and the engine call through, so below both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from vulkan_open import open_vulkan, unit

from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError, DeviceLost, OutOfMemory

SUCCESS, TIMEOUT, HOST_MEMORY, DEVICE_MEMORY, LOST = 0, 2, -1, -2, -4

# The functions that may run out of memory while a call is prepared or submitted.
PREPARING = (
    *("vkCreateBuffer", "vkAllocateMemory", "vkBindBufferMemory", "vkMapMemory", "vkCreateShaderModule"),
    *("vkCreateDescriptorSetLayout", "vkCreatePipelineLayout", "vkCreateComputePipelines", "vkCreateDescriptorPool"),
    *("vkAllocateDescriptorSets", "vkCreateCommandPool", "vkAllocateCommandBuffers", "vkBeginCommandBuffer"),
    *("vkEndCommandBuffer", "vkCreateFence", "vkQueueSubmit"),
)


@pytest.fixture
def extension() -> Iterator[object]:
    kernels = open_vulkan()._extension
    yield kernels
    for name in kernels.wrapped_functions():
        kernels.inject_fault(name, 0, SUCCESS)


def work(backend: Vulkan) -> tuple[Tensor, Tensor]:
    """Points, a scoring, a selection, and an operation on rows."""
    points = backend.points(unit(40, 8, 1))
    found = backend.topk(unit(3, 8, 2), points, 5)
    return found.scores, backend.projx(2.0 * unit(3, 8, 3))


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


@pytest.mark.parametrize("function", PREPARING)
def test_out_of_memory_at_every_call(extension: object, function: str) -> None:
    """Each time the device stays usable, and the same work done again gives the same bits."""
    backend = open_vulkan()
    before = backend._extension.calls_of(function)
    want = work(backend)
    calls = backend._extension.calls_of(function) - before
    assert calls > 0
    said = []
    for nth in range(1, calls + 1):
        backend = open_vulkan()
        backend._extension.inject_fault(function, nth, DEVICE_MEMORY)
        try:
            assert same(work(backend), want), nth  # it made room and tried again, and must be right
        except OutOfMemory as error:
            said.append(str(error))
        except DeviceLost:
            said.append("of the empty submission that is waited for: MiB, try:")
            assert function == "vkQueueSubmit", nth
            continue
        assert same(work(backend), want), nth
    assert said
    assert all("MiB" in text and "try:" in text for text in said)  # sizes and advice


@pytest.mark.parametrize("function", ["vkQueueSubmit", "vkWaitForFences"])
def test_a_device_lost_at_every_call(extension: object, function: str) -> None:
    backend = open_vulkan()
    before = backend._extension.calls_of(function)
    want = work(backend)
    said = []
    for nth in range(1, backend._extension.calls_of(function) - before + 1):
        backend = open_vulkan()
        backend._extension.inject_fault(function, nth, LOST)
        try:
            assert same(work(backend), want), nth  # Kompute's second look at a fence that was waited for
        except DeviceLost as error:
            said.append(str(error))
            with pytest.raises(DeviceLost):  # it stays lost
                backend.projx(unit(2, 8, 2))
        assert same(work(open_vulkan()), want), nth
    assert said
    assert all("was lost" in text and "try:" in text for text in said)


@pytest.mark.parametrize(
    ("function", "result", "words"), [("vkQueueSubmit", SUCCESS, "canary"), ("vkWaitForFences", TIMEOUT, "answer")]
)
def test_work_that_is_not_done_is_no_result(extension: object, function: str, result: int, words: str) -> None:
    """A driver that swallows a submission, and a queue that hangs."""
    backend = open_vulkan()
    work(backend)
    points = backend.points(unit(20, 8, 1))
    backend._extension.inject_fault(function, 1, result)
    with pytest.raises(DeviceLost, match=words):
        backend.topk(unit(2, 8, 2), points, 3)
    with pytest.raises(DeviceLost):
        backend.projx(unit(2, 8, 2))


@pytest.mark.parametrize("function", ["vkCreateDevice", "vkCreatePipelineCache", "vkCreateFence"])
def test_a_device_that_cannot_be_opened(extension: object, function: str) -> None:
    open_vulkan()._extension.inject_fault(function, 1, HOST_MEMORY)
    with pytest.raises(DeviceError, match="could not be opened"):
        Vulkan()
    work(open_vulkan())


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True, timeout=120
    )


PRELUDE = """
import os, sys, threading, torch
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceLost
x = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
backend = Vulkan()
points = backend.points(x)
backend.topk(x, points, 3)
"""

LIVES = {
    "left open at exit": "import builtins; builtins.kept = (backend, points)",
    "hung at exit": """
backend._extension.inject_fault("vkWaitForFences", 1, 2)
try:
    backend.topk(x, points, 3)
except DeviceLost:
    pass
""",
    "many at once, in any order": """
many = [Vulkan() for _ in range(6)]
held = [one.points(x) for one in many]
del many[::2], held[1::2], backend
for one in held: one.update(x)
""",
    "threads": """
def use():
    for _ in range(20):
        backend.topk(x, points, 3); backend.points(x); backend.counts()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    "used and dropped after a fork": """
child = os.fork()
if child == 0:
    try:
        backend.topk(x, points, 3)
        os._exit(3)
    except DeviceLost as error:
        del points, backend
        os._exit(0 if "forked" in str(error) else 4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
backend.topk(x, points, 3)
""",
}


@pytest.mark.parametrize("case", LIVES, ids=str)
def test_lives_and_deaths_of_an_engine(case: str) -> None:
    open_vulkan()
    if "fork" in case and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    result = run_python(PRELUDE + LIVES[case])
    assert result.returncode == 0, result.stderr
