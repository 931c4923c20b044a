"""Recordings that fail: mistakes of the caller, limits of the device, and drivers that refuse."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import (
    AFFINE,
    DEVICE_MEMORY,
    HOST_MEMORY,
    LOST,
    Words,
    affine,
    chain,
    compiled,
    push,
    result_of,
    words,
)
from test_vulkan_faults import run_python
from vulkan_open import open_vulkan

from ebmvk.engine.recording import Memory, Recorder
from ebmvk.errors import ArgumentError, DeviceLost, OutOfMemory

SHARED = """
#version 450
layout(local_size_x = 64) in;
layout(binding = 0) buffer Y { uint y[]; };
shared uint room[5000];
void main() { room[gl_LocalInvocationID.x] = 1; barrier(); y[0] = room[0]; }
"""

LONG = """
#version 450
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 64) in;
layout(binding = 0) buffer Y { uint y[]; };
void main() { y[0] = uint(uint64_t(y[0]) * uint64_t(y[1]) >> 32); }
"""


def mistakes(recorder: Recorder, memory: Memory) -> dict[str, tuple[str, Any]]:
    record, kernel, step = recorder.recording(), affine(recorder), recorder.alignment
    x, y = (memory, 0, 64), (memory, step, 64)
    fits = (push(1, 0), (1, 1, 1))
    return {
        "outside": ("of a memory of", lambda: record.kernel(kernel, [(memory, memory.nbytes - 60, 64), y], *fits)),
        "huge": ("of a memory of", lambda: record.fill((memory, 2**63, 2**63), 0)),
        "overlap": ("overlaps binding 0", lambda: record.kernel(kernel, [x, (memory, 0, 64)], *fits)),
        "self_copy": ("overlap", lambda: record.copy(x, (memory, 60, 64))),
        "sizes": ("64 bytes to 60", lambda: record.copy(x, (memory, step, 60))),
        "words": ("whole words", lambda: record.fill((memory, 2, 8), 0)),
        "bindings": ("binds 2 ranges, not 1", lambda: record.kernel(kernel, [x], *fits)),
        "push": ("8 bytes of push constants, not 4", lambda: record.kernel(kernel, [x, y], push(1), (1, 1, 1))),
        "no_module": ("not SPIR-V", lambda: recorder.module(b"12345678" * 5, "rw")),
        "cut_off": ("cut off", lambda: recorder.module(compiled(AFFINE)[:-4], "rw", 2)),
        "letters": ("letters are r, w and u", lambda: recorder.module(compiled(AFFINE), "rx", 2)),
        "too_few": ("binds more than the 1", lambda: recorder.module(compiled(AFFINE), "r", 2)),
        "none": ("binds no storage", lambda: recorder.module(compiled(AFFINE), "", 2)),
    }


MISTAKES = [
    "outside",
    "huge",
    "overlap",
    "self_copy",
    "sizes",
    "words",
    "bindings",
    "push",
    "no_module",
    "cut_off",
    "letters",
    "too_few",
    "none",
]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_caller_is_a_value_error(checked: Recorder, name: str) -> None:
    text, wrong = mistakes(checked, checked.memory(4096))[name]
    with pytest.raises(ValueError, match=text):
        wrong()


def test_wrong_arrays_are_value_errors_and_change_nothing(checked: Recorder) -> None:
    memory = checked.memory(64)
    record = checked.recording()
    source, target = record.upload((memory, 0, 16)), record.download((memory, 0, 16))
    record.finish()
    values, found = words(4), np.empty(4, np.uint32)
    record.run({source: values}, {target: found})
    for up, down, text in (
        ({source: words(3)}, {}, "has 16 bytes, and the array has 12"),
        ({}, {}, "has no source"),
        ({target: values}, {}, "isn't an upload"),
        ({source: values}, {source: found}, "isn't a download"),
        ({source: words(8)[::2]}, {}, "contiguous"),
    ):
        with pytest.raises(ValueError, match=text):
            record.run(up, down)
    with pytest.raises(RuntimeError, match="nothing can be added"):
        record.fill((memory, 0, 4), 0)
    again = np.empty(4, np.uint32)
    memory.read([(0, again)])
    assert np.array_equal(again, values)


def test_what_exceeds_the_device_names_the_limit() -> None:
    backend = open_vulkan(pretend="smallest", shard_bytes=1 << 20)
    recorder = Recorder(backend)
    memory, record = recorder.memory(3 << 20), recorder.recording()
    kernel = affine(recorder)
    x, y = (memory, 0, 64), (memory, 256, 64)
    long, fits = (memory, 1 << 20, (1 << 20) + 4), push(1, 0)
    for text, wrong in (
        ("129 invocations", lambda: recorder.module(compiled(AFFINE), "rw", 2, 129)),
        ("20000 bytes of shared memory", lambda: recorder.module(compiled(SHARED), "u")),
        ("132 bytes of push constants", lambda: recorder.module(compiled(AFFINE), "rw", 33)),
        ("capability 11", lambda: recorder.module(compiled(LONG), "u")),
        ("full subgroups", lambda: recorder.module(compiled(AFFINE), "rw", 2, 64, subgroup=True)),
        ("65536 x 1 x 1 workgroups", lambda: record.kernel(kernel, [x, y], fits, (65536, 1, 1))),
        ("1 x 1 x 65536 workgroups", lambda: record.kernel(kernel, [x, y], fits, (1, 1, 65536))),
        ("weights: binding 1.*1048580 bytes", lambda: record.kernel(kernel, [x, long], fits, what="weights")),
    ):
        with pytest.raises(ArgumentError, match=text):
            wrong()
    with pytest.raises(ValueError, match="isn't a multiple of 256"):
        record.kernel(kernel, [x, (memory, 128, 64)], fits)


def test_memory_that_the_device_does_not_have_is_a_typed_error() -> None:
    recorder = Recorder(open_vulkan(memory_limit=1 << 20))
    with pytest.raises(OutOfMemory, match=r"weights \(2097152 bytes\).*limit"):
        recorder.memory(2 << 20, "weights")
    with pytest.raises(OutOfMemory):
        recorder.memory(1 << 61)
    memory = recorder.memory(1 << 19)
    record = recorder.recording()
    record.upload((memory, 0, 1 << 19))
    record.upload((memory, 0, 1 << 19))
    with pytest.raises(OutOfMemory, match="recording commands"):
        record.finish()
    result_of(chain(recorder, 3, dependent=True), words(1))


@pytest.mark.parametrize("function", ["vkAllocateMemory", "vkCreateDescriptorPool", "vkAllocateCommandBuffers"])
def test_an_allocation_that_fails_once_is_tried_again(function: str) -> None:
    """Before the second try, the workspaces of other operations are freed."""
    backend = open_vulkan()
    want = result_of(chain(Recorder(backend), 3, dependent=True), words(1))[0]
    backend._extension.inject_fault(function, 1, DEVICE_MEMORY)
    assert result_of(chain(Recorder(backend), 3, dependent=True), words(1))[0] == want


CALLS = [
    "vkCreateBuffer", "vkAllocateMemory", "vkBindBufferMemory", "vkMapMemory", "vkCreateShaderModule",
    "vkCreateDescriptorSetLayout", "vkCreatePipelineLayout", "vkCreateComputePipelines", "vkCreateDescriptorPool",
    "vkAllocateDescriptorSets", "vkCreateQueryPool", "vkCreateCommandPool", "vkAllocateCommandBuffers",
    "vkBeginCommandBuffer", "vkEndCommandBuffer", "vkQueueSubmit",
]  # fmt: skip


@pytest.mark.parametrize("function", CALLS)
def test_every_call_of_the_driver_may_fail(function: str) -> None:
    """A typed error or, after another try, the right result; and the device can be used again."""
    recorder = Recorder(open_vulkan())
    value, calls = words(1), recorder.backend._extension.calls_of
    want, started = 243 * int(value[0]) & 0xFFFFFFFF, calls(function)
    for nth in range(1, 9):
        with contextlib.suppress(OutOfMemory):
            recorder.backend._extension.inject_fault(function, nth, DEVICE_MEMORY)
            assert scaled(recorder, value, nth) == want
        recorder.backend._extension.inject_fault(function, 0, 0)
        assert scaled(recorder, value, nth + 100) == want
    assert calls(function) > started


def scaled(recorder: Recorder, value: Words, constant: int) -> int:
    """243 times the value, by five kernels; `constant` makes new pipelines."""
    step = recorder.alignment
    memory, record = recorder.memory(6 * step), recorder.recording()
    kernel = recorder.module(compiled(AFFINE), "rw", 2, 64, [3, constant])
    source = record.upload((memory, 0, 4))
    for i in range(5):
        record.kernel(kernel, [(memory, step * i, 4), (memory, step * (i + 1), 4)], push(1, 0))
    target = record.download((memory, 5 * step, 4))
    record.finish()
    found = np.empty(1, np.uint32)
    record.run({source: value}, {target: found})
    return int(found[0])


def test_every_submission_may_be_refused() -> None:
    recorder = Recorder(open_vulkan())
    made, value = chain(recorder, 3, dependent=True), words(1)
    want = result_of(made, value)[0]
    recorder.backend._extension.inject_fault("vkQueueSubmit", 1, HOST_MEMORY)
    with pytest.raises(OutOfMemory, match="running a program"):
        result_of(made, value)
    assert made[0].intact
    assert result_of(made, value)[0] == want


def test_a_run_that_ends_halfway_is_not_intact() -> None:
    recorder = Recorder(open_vulkan(slice_seconds=1.0))
    made, value = chain(recorder, 3, dependent=True, cut=0.6), words(1)
    recorder.backend._extension.inject_fault("vkQueueSubmit", 2, HOST_MEMORY)
    with pytest.raises(OutOfMemory):
        result_of(made, value)
    assert not made[0].intact


@pytest.mark.parametrize("function", ["vkQueueSubmit", "vkWaitForFences"])
def test_a_lost_device_stays_lost(function: str) -> None:
    recorder = Recorder(open_vulkan())
    made = chain(recorder, 3, dependent=True)
    recorder.backend._extension.inject_fault(function, 1, LOST)
    for _ in range(2):
        with pytest.raises(DeviceLost):
            result_of(made, words(1))
    assert not made[0].intact
    with pytest.raises(DeviceLost):
        recorder.memory(64)
    with pytest.raises(DeviceLost):
        affine(recorder, 11)
    with pytest.raises(DeviceLost):
        chain(recorder, 3, dependent=True)


def test_threads_share_a_device_and_a_recording() -> None:
    recorder = Recorder(open_vulkan())
    shared, wrong = chain(recorder, 5, dependent=True), []

    def use(seed: int) -> None:
        own = chain(recorder, 5, dependent=True)
        for i in range(20):
            value = words(1, 100 * seed + i)
            if result_of(own, value)[0] != result_of(shared, value)[0]:
                wrong.append(value)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKED = """
import os
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceLost
from test_recording import Recorder, chain, result_of, words
recorder = Recorder(Vulkan())
made, value = chain(recorder, 3, dependent=True), words(1)
want = result_of(made, value)[0]
child = os.fork()
if child == 0:
    uses = lambda: result_of(made, value), lambda: recorder.memory(64), lambda: chain(recorder, 3, dependent=True)
    for use in uses:
        try:
            use()
            os._exit(1)
        except DeviceLost as error:
            assert "forked" in str(error)
    del made, recorder
    assert result_of(chain(Recorder(Vulkan()), 3, dependent=True), value)[0] == want
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert result_of(made, value)[0] == want
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_forked_process_gets_a_typed_error() -> None:
    open_vulkan()
    result = run_python(FORKED)
    assert result.returncode == 0, result.stderr


def test_pipelines_of_modules_are_kept_on_disk(tmp_path: Path) -> None:
    for _ in range(2):
        backend = open_vulkan(cache_dir=str(tmp_path))
        result_of(chain(Recorder(backend), 1, dependent=True), words(1))
        del backend
    assert [path.stat().st_size > 0 for path in tmp_path.iterdir()] == [True]
