"""Recordings: a caller's own kernels over ranges of memory, with the right barriers, one submission
and one wait, and typed errors."""

from __future__ import annotations

import random

import numpy as np
import pytest
from recordings import affine, chain, compiled, push, result_of, words
from vulkan_open import open_vulkan

from ebmvk.engine import recording
from ebmvk.engine.recording import POISON, Recorder

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


def groups(n: int) -> tuple[int, int, int]:
    return (n + 63) // 64, 1, 1


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
