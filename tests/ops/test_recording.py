"""Recordings: a caller's own kernels over ranges of memory, with the right barriers, one submission
and one wait, and typed errors."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_vulkan_faults import run_python
from vulkan_open import guarded, open_vulkan

from ebmvk.engine import recording
from ebmvk.engine.recording import POISON, Memory, Recorder, Recording
from ebmvk.errors import ArgumentError, DeviceLost, OutOfMemory

Words = NDArray[np.uint32]
LOST, HOST_MEMORY, DEVICE_MEMORY = -4, -1, -2  # VkResult

AFFINE = """
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint FACTOR = 1;
layout(push_constant) uniform Push { uint n, add; };
layout(binding = 0) readonly buffer X { uint x[]; };
layout(binding = 1) writeonly buffer Y { uint y[]; };
void main() {
  uint i = gl_GlobalInvocationID.x;
  if (i < n) y[i] = FACTOR * x[i] + add;
}
"""
"""y = FACTOR x + add, for n words."""

PLACES = """
#version 450
layout(local_size_x = 1) in;
layout(binding = 0) buffer Y { uint y[]; };
void main() {
  uvec3 at = gl_WorkGroupID, all = gl_NumWorkGroups;
  y[(at.z * all.y + at.y) * all.x + at.x] += 1 + at.x + 100 * at.y + 10000 * at.z;
}
"""
"""Each workgroup adds its own number to its own word."""

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


@functools.cache
def compiled(source: str) -> bytes:
    compiler = shutil.which("glslc")
    if compiler is None:
        pytest.skip("no glslc to compile the test's shaders: apt install glslc")
    command = [compiler, "--target-env=vulkan1.2", "-O", "-fshader-stage=compute", "-o", "-", "-"]
    return subprocess.run(command, input=source.encode(), check=True, capture_output=True).stdout


def affine(recorder: Recorder, factor: int = 3) -> Any:
    return recorder.module(compiled(AFFINE), "rw", push_words=2, group=64, constants=[factor])


def push(*words: int) -> bytes:
    return np.array(words, np.uint32).tobytes()


def words(n: int, seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, 1 << 32, n, np.uint32)


def groups(n: int) -> tuple[int, int, int]:
    return (n + 63) // 64, 1, 1


@pytest.fixture(scope="module")
def checked() -> Iterator[Recorder]:
    """With guard bands, poison and validation, which must be silent at the end."""
    for backend in guarded():
        yield Recorder(backend)


@pytest.mark.parametrize("n", [0, 1, 3, 63, 64, 65, 1000, 4097])
def test_a_kernel_writes_its_range_and_nothing_else(checked: Recorder, n: int) -> None:
    place = checked.alignment
    memory = checked.memory(5 * 4 * 4352)
    x, y = (memory, place, 4 * n), (memory, 4 * 4352 * 2, 4 * n)
    record = checked.recording()
    source = record.upload(x)
    record.kernel(affine(checked), [x, y], push(n, 7), groups(n))
    target = record.download(y)
    everything = record.download((memory, 0, memory.nbytes))
    record.finish()
    for seed in range(3):
        values, found, all_words = words(n, seed), np.empty(n, np.uint32), np.empty(memory.nbytes // 4, np.uint32)
        record.run({source: values}, {target: found, everything: all_words})
        assert np.array_equal(found, 3 * values + 7)
        all_words[place // 4 :][:n] = POISON
        all_words[4352 * 2 :][:n] = POISON
        assert (all_words == POISON).all()


def test_workgroups_in_three_dimensions_all_run(checked: Recorder) -> None:
    x, y, z = 5, 3, 2
    memory = checked.memory(4 * x * y * z)
    record, whole = checked.recording(), (memory, 0, memory.nbytes)
    record.fill(whole, 0)
    record.kernel(checked.module(compiled(PLACES), "u"), [whole], groups=(x, y, z))
    target = record.download(whole)
    record.finish()
    found = np.empty((z, y, x), np.uint32)
    record.run({}, {target: found})
    at = np.indices((z, y, x))
    assert np.array_equal(found, 1 + at[2] + 100 * at[1] + 10000 * at[0])


def test_random_commands_in_one_memory_wait_for_each_other(checked: Recorder) -> None:
    """What the device computes is what the host computes in order, and the synchronisation checks
    find no hazard."""
    chance, step = random.Random(5), checked.alignment // 4
    size, kernel = 12 * step, affine(checked)
    memory = checked.memory(4 * size)
    for seed in range(15):
        want = words(size, seed)
        record = checked.recording()
        source = record.upload((memory, 0, 4 * size))
        uploaded = want.copy()
        for _ in range(12):
            a, b = chance.sample(range(12), 2)
            n = chance.randint(1, step * (abs(a - b) if max(a, b) < 11 else 1))
            n = min(n, size - step * max(a, b))
            x, y = (memory, 4 * step * a, 4 * n), (memory, 4 * step * b, 4 * n)
            old = want[step * a :][:n].copy()
            match chance.choice(("kernel", "copy", "fill")):
                case "kernel":
                    record.kernel(kernel, [x, y], push(n, 1), groups(n))
                    want[step * b :][:n] = 3 * old + 1
                case "copy":
                    record.copy(x, y)
                    want[step * b :][:n] = old
                case "fill":
                    record.fill(y, seed)
                    want[step * b :][:n] = seed
        target = record.download((memory, 0, 4 * size))
        record.finish()
        found = np.empty_like(want)
        record.run({source: uploaded}, {target: found})
        assert np.array_equal(found, want)


def chain(recorder: Recorder, links: int, *, dependent: bool, cut: float | None = None) -> tuple[Recording, int, int]:
    """A recording of kernels that each read what the one before wrote; or of independent ones."""
    step = recorder.alignment
    memory = recorder.memory(step * 2 * (links + 1))
    record, kernel = recorder.recording(), affine(recorder)
    source = record.upload((memory, 0, 4))
    for i in range(links):
        at, to = (step * i, step * (i + 1)) if dependent else (0, step * (links + 1 + i))
        record.kernel(kernel, [(memory, at, 4), (memory, to, 4)], push(1, i), (1, 1, 1))
        if cut is not None:
            record.cut(cut)
    target = record.download((memory, step * links if dependent else step * (links + 1), 4))
    record.finish()
    return record, source, target


def test_only_kernels_that_share_bytes_wait() -> None:
    recorder = Recorder(open_vulkan())
    counts = []
    for dependent in (False, True):
        record, source, _ = chain(recorder, 20, dependent=dependent)
        ran = record.run({source: words(1)})
        assert ran.dispatches == 20
        counts.append(ran.barriers)
    assert counts[1] == counts[0] + 19


def test_a_run_is_one_submission_with_one_wait() -> None:
    backend = open_vulkan()
    record, source, target = chain(Recorder(backend), 7, dependent=True)
    calls = backend._extension.calls_of
    for _ in range(3):
        before = [calls(name) for name in ("vkQueueSubmit", "vkWaitForFences")]
        ran = record.run({source: words(1)}, {target: np.empty(1, np.uint32)})
        assert [calls(name) for name in ("vkQueueSubmit", "vkWaitForFences")] == [before[0] + 1, before[1] + 1]
        assert (ran.submissions, ran.copies, ran.bytes_up, ran.bytes_down) == (1, 2, 4, 4)


def result_of(made: tuple[Recording, int, int], value: Words) -> tuple[int, recording.Ran]:
    record, source, target = made
    found = np.empty(1, np.uint32)
    ran = record.run({source: value}, {target: found})
    return int(found[0]), ran


def test_slow_segments_are_submitted_alone_and_the_bits_stay_the_same() -> None:
    recorder = Recorder(open_vulkan(slice_seconds=1.0, validate=True))
    value = words(1)
    want, whole = result_of(chain(recorder, 9, dependent=True), value)
    assert whole.submissions == 1
    made = chain(recorder, 9, dependent=True, cut=0.6)
    seen = [result_of(made, value) for _ in range(12)]
    assert {found for found, _ in seen} == {want}
    assert [ran.submissions for _, ran in seen[:2]] == [9, 9], "the last segment takes no time as far as known"
    assert seen[-1][1].submissions == 1, "the measured times are short"
    assert len(seen[0][1].segment_seconds) == 10
    assert recorder.backend._engine.take_messages() == []


def test_equal_modules_are_compiled_once() -> None:
    recorder = Recorder(open_vulkan())
    calls = recorder.backend._extension.calls_of
    before = calls("vkCreateComputePipelines")
    for factor in (3, 3, 5, 3, 5):
        affine(recorder, factor)
    assert calls("vkCreateComputePipelines") == before + 2


def test_a_kernel_of_the_table_can_be_recorded(checked: Recorder) -> None:
    rows, width = 5, 8
    memory = checked.memory(4096)
    params, x, y = (memory, 0, 16), (memory, 1024, 4 * rows * width), (memory, 2048, 4 * rows * width)
    record = checked.recording()
    sources = record.upload((memory, 0, 4)), record.upload(x)
    record.kernel(checked.kernel("sphere_projx", 64), [params, x, y], push(width // 4), (rows, 1, 1))
    target = record.download(y)
    record.finish()
    values, found = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32), np.empty((rows, width))
    found = found.astype(np.float32)
    record.run({sources[0]: np.array([rows], np.uint32), sources[1]: values}, {target: found})
    wide = values.astype(np.float64)
    assert np.allclose(found, wide / np.linalg.norm(wide, axis=1, keepdims=True), rtol=1e-6)  # a few roundings
    with pytest.raises(ValueError, match="unknown kernel"):
        checked.kernel("no_such_kernel", 64)


def test_memory_is_written_and_read_in_pieces(checked: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "STAGING", 100)
    memory = checked.memory(1000)
    pieces = [(0, words(30, 1)), (120, words(1, 2)), (200, words(170, 3)), (996, words(1, 4)), (996, words(0))]
    assert memory.write(pieces) == 4 * 202
    found = [(offset, np.empty_like(array)) for offset, array in pieces]
    memory.read(found)
    for (_, want), (_, got) in zip(pieces, found, strict=True):
        assert np.array_equal(want, got)
    with pytest.raises(ValueError, match="of a memory of 1000"):
        memory.write([(997, words(1))])


def test_objects_are_freed_in_any_order() -> None:
    backend = open_vulkan(validate=True)
    recorder = Recorder(backend)
    before = recorder.allocated
    made = [chain(recorder, 3, dependent=True) for _ in range(4)]
    kept = Recorder(backend).memory(10_000)
    del recorder, made[::2], backend
    value = words(1)
    assert len({result_of(one, value)[0] for one in made}) == 1
    engine = kept._recorder._engine
    del made
    assert engine.allocated >= 10_000
    del kept
    assert engine.allocated == before
    assert engine.take_messages() == []


# ------------------------------------------------------------------------------------------ errors


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
