"""Vulkan calls that fail, at every call of every operation.

Expected: a typed error, a living process, no leak, and no stale result. Faults are injected into
the table of functions that Kompute and the engine use, so below both.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from op_table import OPERATIONS, same_bits
from torch import Tensor
from vulkan_open import open_pretended, unit

from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError, DeviceLost, EbmvkError, OutOfMemory

SUCCESS, TIMEOUT, HOST_MEMORY, DEVICE_MEMORY, LOST = 0, 2, -1, -2, -4

# The functions of a pipeline, which is made once in the life of an engine; and those of opening a
# device.
PIPELINE = ("vkCreateShaderModule", "vkCreateDescriptorSetLayout", "vkCreatePipelineLayout", "vkCreateComputePipelines")
OPENING = ("vkCreateDevice", "vkCreatePipelineCache")
# Failures of the wait for work that was submitted: the device counts as lost, whatever the driver
# calls the failure.
WAITING = ("vkWaitForFences", "vkResetFences")

Work = Callable[[Vulkan], list[Tensor]]


def upload(backend: Vulkan) -> list[Tensor]:
    """Points that are replaced, then queried."""
    points = backend.points(unit(9, 5, 1))
    points.update(unit(9, 5, 2))
    return [backend.topk(unit(1, 5, 3), points, 9).scores]


WORK: dict[str, Work] = {**{name: op.run for name, op in OPERATIONS.items()}, "points": upload}
# The default run takes one of the operations that make the same Vulkan calls.
LIKE_PROJX = {"proju", "expmap", "logmap", "transp", "dist"}
LIKE_GHMC = {"obabo", "ghmc_two_stage"}
MOST = [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_PROJX | LIKE_GHMC else name for name in WORK]


@pytest.fixture
def extension() -> Iterator[object]:
    kernels = open_pretended()._extension
    yield kernels
    for name in kernels.wrapped_functions():
        kernels.inject_fault(name, 0, SUCCESS)


def functions(extension: object) -> list[str]:
    names: list[str] = extension.wrapped_functions()  # type: ignore[attr-defined]
    return [name for name in names if name not in OPENING]


@dataclass
class Outcome:
    """struck: True if the fault occurred. result: the result, or None if there is an `error`."""

    struck: bool
    result: list[Tensor] | None
    error: type[EbmvkError] | None
    said: str


def attempt(backend: Vulkan, function: str, nth: int, fault: int, work: Work) -> Outcome:
    kernels = backend._extension
    before = kernels.calls_of(function)
    kernels.inject_fault(function, nth, fault)
    result, error, said = None, None, ""
    try:
        result = work(backend)
    except EbmvkError as caught:  # don't keep it, because its frames hold the points
        error, said = type(caught), str(caught)
    kernels.inject_fault(function, 0, SUCCESS)
    return Outcome(kernels.calls_of(function) - before >= nth, result, error, said)


def drop_workspaces(backend: Vulkan) -> None:
    """A failed operation leaves no workspace, so the next one repeats all its Vulkan calls."""
    assert attempt(backend, "vkQueueSubmit", 1, HOST_MEMORY, WORK["projx"]).error is OutOfMemory
    assert backend._engine.allocated == 0


@pytest.mark.parametrize("name", MOST)
def test_out_of_memory_at_every_call_leaves_the_device_usable(extension: object, name: str) -> None:
    """The device stays usable, holds no more memory, and gives the same bits when called again."""
    work = WORK[name]
    want = work(open_pretended())
    met = 0
    for function in functions(extension):
        backend = open_pretended()
        for nth in itertools.count(1):
            if function in PIPELINE:
                backend = open_pretended()
            outcome = attempt(backend, function, nth, (DEVICE_MEMORY, HOST_MEMORY)[nth % 2], work)
            if not outcome.struck:
                assert outcome.result is not None
                break
            where = f"{function} call {nth}: {outcome.said}"
            assert outcome.result is None, where
            if outcome.error is DeviceLost:
                assert function in WAITING, where
                backend = open_pretended()
            else:
                met += 1
                assert outcome.error is OutOfMemory, where
                assert "MiB" in outcome.said, where  # with sizes
                assert "try:" in outcome.said, where  # and with advice
                assert backend._engine.allocated == 0, where
                assert same_bits(work(backend), want), where
            drop_workspaces(backend)
    assert met > 20


def test_old_workspaces_make_room(extension: object) -> None:
    """If an allocation fails, old workspaces are freed and the call succeeds."""
    backend, want = open_pretended(), WORK["projx"](open_pretended())
    for function in ("vkCreateBuffer", "vkAllocateMemory", "vkCreateComputePipelines"):
        WORK["dist"](backend)
        outcome = attempt(backend, function, 1, DEVICE_MEMORY, WORK["projx"])
        assert outcome.struck
        assert outcome.result is not None, outcome.said
        assert same_bits(outcome.result, want)
        backend = open_pretended()


LEAKS = """
from test_vulkan_faults import DEVICE_MEMORY, LOST, WORK, attempt, functions, open_pretended
for name in ("points", "projx", "accumulate"):
    for function in functions(open_pretended()._extension):
        for nth in range(1, 6):
            if not attempt(open_pretended(), function, nth, LOST if nth % 3 == 2 else DEVICE_MEMORY, WORK[name]).struck:
                break
"""


@pytest.mark.slow
def test_no_object_outlives_its_device(extension: object) -> None:
    """The validation layer, placed below everything, reports leaks when a device is closed."""
    open_pretended(validate=True)  # or skip the test
    result = run_python(LEAKS, VK_INSTANCE_LAYERS="VK_LAYER_KHRONOS_validation")
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if "Validation" in line] == []


@pytest.mark.parametrize("name", MOST)
def test_a_device_lost_at_any_call_stays_lost(extension: object, name: str) -> None:
    """It stays lost for all threads; a device that is opened again works."""
    work = WORK[name]
    want = work(open_pretended())
    lost = 0
    for function in ("vkQueueSubmit", *WAITING, "vkGetQueryPoolResults"):
        for nth in itertools.count(1):
            backend = open_pretended()
            outcome = attempt(backend, function, nth, LOST, work)
            if not outcome.struck:
                assert outcome.result is not None
                assert same_bits(outcome.result, want), (function, nth)
                break
            lost += 1
            assert outcome.error is DeviceLost, outcome.said
            assert "was lost" in outcome.said
            assert "try:" in outcome.said
            assert set(
                in_threads(2, lambda backend=backend: attempt(backend, "vkCreateFence", 0, LOST, work).error)
            ) == {  # type: ignore[misc]
                DeviceLost
            }
    assert same_bits(work(open_pretended()), want)
    assert lost >= 3


def in_threads(count: int, work: Callable[[], object]) -> list[object]:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


@pytest.mark.slow
@pytest.mark.parametrize("fault", [HOST_MEMORY, DEVICE_MEMORY, LOST, -3], ids=["host", "device", "lost", "refused"])
@pytest.mark.parametrize("name", WORK)
def test_any_failure_at_any_call_of_a_fresh_engine_is_a_typed_error(extension: object, name: str, fault: int) -> None:
    work = WORK[name]
    want = work(open_pretended())
    for function in functions(extension):
        for nth in itertools.count(1):
            backend = open_pretended()
            outcome = attempt(backend, function, nth, fault, work)
            where = f"{function} call {nth}: {outcome.said}"
            if outcome.result is not None:
                assert same_bits(outcome.result, want), where
                if not outcome.struck:
                    break
                continue
            assert outcome.error is not None, where
            assert issubclass(outcome.error, DeviceError), where
            if outcome.error is not DeviceLost:
                assert fault != LOST, where
                assert backend._engine.allocated == 0, where
                assert same_bits(work(backend), want), where


@pytest.mark.parametrize("name", WORK)
def test_submissions_that_a_driver_ignores_are_detected(extension: object, name: str) -> None:
    """The fence is never signalled."""
    work = WORK[name]
    backend = open_pretended(timeout_seconds=0.2)
    upload_first = name == "points" or "points" in OPERATIONS[name].arguments()
    outcome = attempt(backend, "vkQueueSubmit", 1 + upload_first, SUCCESS, work)
    assert outcome.error is DeviceLost
    assert "did not answer" in outcome.said
    assert attempt(backend, "vkQueueSubmit", 0, SUCCESS, work).error is DeviceLost


SLICES = 4


def sliced() -> tuple[Vulkan, Callable[[Vulkan], list[Tensor]]]:
    """A search whose plan has SLICES submissions, and a device with the points for it."""
    backend = open_pretended(slice_seconds=1e-9, timeout_seconds=2.0)
    points = backend.points(unit(70_000, 4, 1))

    def work(backend: Vulkan) -> list[Tensor]:
        found = backend.topk(unit(1, 4, 2), points, 5)
        return [found.scores, found.ids]

    return backend, work


@pytest.mark.parametrize("nth", range(1, SLICES + 1))
@pytest.mark.parametrize("fault", [HOST_MEMORY, LOST, SUCCESS], ids=["host", "lost", "ignored"])
def test_a_slice_that_fails_waits_for_those_before_it(extension: object, nth: int, fault: int) -> None:
    """The slices before it are still running then: nothing is freed before they are done.

    A slice that the driver ignores leaves its canary unset; the last one has the fence.
    """
    backend, work = sliced()
    before = extension.calls_of("vkQueueSubmit")  # type: ignore[attr-defined]
    want = work(backend)
    assert extension.calls_of("vkQueueSubmit") - before == SLICES  # type: ignore[attr-defined]
    outcome = attempt(backend, "vkQueueSubmit", nth, fault, work)
    assert outcome.result is None
    if fault == HOST_MEMORY:
        assert outcome.error is OutOfMemory, outcome.said
        assert same_bits(work(backend), want)
    else:
        assert outcome.error is DeviceLost, outcome.said
        words = "was lost" if fault == LOST else "canary" if nth < SLICES else "did not answer"
        assert words in outcome.said


@pytest.mark.parametrize("fault", [HOST_MEMORY, LOST], ids=["host", "lost"])
def test_a_failed_wait_for_earlier_slices_loses_the_device(extension: object, fault: int) -> None:
    """The second slice fails, and then the empty submission that waits for the first: the device
    counts as lost.
    """
    backend, work = sliced()
    work(backend)
    kernels = backend._extension
    kernels.inject_fault("vkWaitForFences", 1, fault)
    outcome = attempt(backend, "vkQueueSubmit", 2, HOST_MEMORY, work)
    assert outcome.error is DeviceLost, outcome.said
    assert attempt(backend, "vkQueueSubmit", 0, SUCCESS, work).error is DeviceLost


@pytest.mark.parametrize("answer", [SUCCESS, 1], ids=["ignored", "not ready"])
def test_a_clock_that_does_not_answer_changes_no_result(extension: object, answer: int) -> None:
    for name, work in WORK.items():
        backend, want = open_pretended(), work(open_pretended())
        outcome = attempt(backend, "vkGetQueryPoolResults", 1, answer, work)
        assert outcome.result is not None, (name, outcome.said)
        assert same_bits(outcome.result, want), name


def test_a_failed_update_leaves_no_half_new_points(extension: object) -> None:
    """Of three parts of 16 MiB the second fails: no query sees old and new rows together."""
    old, new = unit(6 << 10, 2048, 1), unit(6 << 10, 2048, 2)
    backend = open_pretended()
    points = backend.points(old)
    query = unit(1, 2048, 3)
    assert points.n == 6 << 10
    for function in ("vkQueueSubmit", "vkCreateCommandPool"):
        outcome = attempt(backend, function, 2, DEVICE_MEMORY, lambda _: [points.update(new)])  # type: ignore[list-item,func-returns-value]
        assert outcome.error is OutOfMemory, function
        with pytest.raises(DeviceError, match="update the points again"):
            backend.topk(query, points, 5)
    points.update(new)
    assert same_bits([backend.topk(query, points, 5).scores], [backend.topk(query, backend.points(new), 5).scores])


def test_a_device_lost_under_many_threads_gives_no_wrong_result(extension: object) -> None:
    """Each call either has the right bits or reports that the device is lost."""
    backend = open_pretended()
    want = {name: work(backend) for name, work in WORK.items()}
    backend._extension.inject_fault("vkQueueSubmit", 60, LOST)

    def use() -> set[object]:
        seen: set[object] = set()
        for _ in range(3):
            for name, work in WORK.items():
                try:
                    seen.add(same_bits(work(backend), want[name]))
                except DeviceLost:
                    seen.add(DeviceLost)
        return seen

    assert set().union(*in_threads(3, use)) == {True, DeviceLost}  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [*OPENING, "vkCreateFence"])
def test_a_device_that_cant_be_opened_is_a_typed_error(extension: object, function: str) -> None:
    open_pretended()._extension.inject_fault(function, 1, HOST_MEMORY)
    with pytest.raises(DeviceError, match="could not be opened"):
        Vulkan()
    WORK["projx"](open_pretended())


PATHS = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent)))


def run_python(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATHS, **more}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True, timeout=280
    )
