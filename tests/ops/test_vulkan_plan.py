"""Plans: barriers by byte range, few submissions, one wait, and memory shared by lifetime."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_table import OPERATIONS, Shape, same_bits
from torch import Tensor
from vulkan_open import mixture, open_vulkan, schedule, tangent, unit

from ebmvk.engine.vulkan import Vulkan

Range = tuple[int, int, int, bool]
"""Buffer, begin, end, and True if the bytes are written."""


@functools.cache
def kernels() -> Any:
    """The extension; skips the test without a device."""
    return open_vulkan()._extension


def barriers_between(commands: list[list[Range]]) -> list[bool]:
    found: list[bool] = kernels().barriers_between(commands)
    return found


def test_disjoint_ranges_of_a_buffer_need_no_barrier() -> None:
    copies = [[(1, 16 * i, 16 * i + 16, False), (1, 1000 + 16 * i, 1016 + 16 * i, True)] for i in range(9)]
    assert barriers_between(copies) == [False] * 9


@pytest.mark.parametrize(
    ("first", "second", "wanted"), [(True, False, True), (False, True, True), (True, True, True), (False, False, False)]
)
def test_a_shared_byte_needs_a_barrier_if_one_of_the_two_writes(first: bool, second: bool, wanted: bool) -> None:
    assert barriers_between([[(1, 0, 17, first)], [(1, 16, 32, second)]]) == [False, wanted]
    assert barriers_between([[(1, 0, 16, first)], [(1, 16, 32, second)]]) == [False, False]
    assert barriers_between([[(1, 0, 17, first)], [(2, 16, 32, second)]]) == [False, False]


def test_barriers_are_those_of_a_byte_by_byte_simulation() -> None:
    chance = random.Random(7)
    for _ in range(300):
        commands = []
        for _ in range(chance.randint(1, 12)):
            begins = [(chance.randint(1, 2), chance.randint(0, 30)) for _ in range(chance.randint(1, 3))]
            commands.append([(b, at, at + chance.randint(1, 8), chance.random() < 0.4) for b, at in begins])
        assert barriers_between(commands) == simulated(commands), commands


def simulated(commands: list[list[Range]]) -> list[bool]:
    touched: dict[tuple[int, int], bool] = {}
    needed = []
    for command in commands:
        bytes_of = [((buffer, at), writes) for buffer, begin, end, writes in command for at in range(begin, end)]
        needed.append(any(byte in touched and (writes or touched[byte]) for byte, writes in bytes_of))
        if needed[-1]:
            touched = {}
        for byte, writes in bytes_of:
            touched[byte] = touched.get(byte, False) or writes
    return needed


def moved(backend: Vulkan, words: int, moves: list[tuple[int, int, int]]) -> tuple[list[int], int]:
    """The buffer after the moves, and the number of barriers."""
    before = backend.counts()["move_words"].barriers if "move_words" in backend.counts() else 0
    result = backend._engine.move_words(list(range(words)), moves)
    return result, backend.counts()["move_words"].barriers - before


def test_moves_within_a_buffer_match_the_host() -> None:
    """Random moves give what the host computes, and the synchronisation checks find no hazard."""
    backend = open_vulkan(validate=True, guard=True)
    chance = random.Random(3)
    for _ in range(40):
        moves = []
        while len(moves) < 12:
            a, b, n = chance.randint(0, 60), chance.randint(0, 60), chance.randint(1, 4)
            if abs(a - b) >= n:  # the two ranges of one copy must not overlap
                moves.append((a, b, n))
        want = list(range(64))
        for a, b, n in moves:
            want[b : b + n] = want[a : a + n]
        assert moved(backend, 64, moves)[0] == want
    assert backend._engine.take_messages() == []


def test_only_moves_that_overlap_wait_for_each_other() -> None:
    backend = open_vulkan()
    _, one = moved(backend, 64, [(0, 32, 1)])
    _, apart = moved(backend, 64, [(i, 32 + i, 1) for i in range(20)])
    _, chain = moved(backend, 64, [(i, i + 1, 1) for i in range(20)])
    assert apart == one
    assert chain == one + 19


SHAPE = Shape(5, 33, 9, 40)


def submissions_of(backend: Vulkan, work: Callable[[], object]) -> tuple[int, int]:
    """Submissions and waits, as the driver sees them."""
    calls = backend._extension.calls_of
    before = calls("vkQueueSubmit"), calls("vkWaitForFences")
    work()
    return calls("vkQueueSubmit") - before[0], calls("vkWaitForFences") - before[1]


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_one_submission(name: str) -> None:
    """The first call as well as later ones. The counts say what the driver sees."""
    backend, op = open_vulkan(), OPERATIONS[name]
    arguments = op.arguments(SHAPE)
    if "points" in arguments:
        arguments["points"] = backend.points(arguments["points"])
    for call in range(1, 4):
        submissions, waits = submissions_of(backend, lambda: op.run(backend, arguments))
        assert submissions == waits <= 1
        count = backend.counts()[op.method]
        assert (count.calls, count.submissions) == (call, call * submissions)


def test_a_search_for_1024_queries_is_one_submission() -> None:
    """Unless it takes longer than a slice. The first call also learns the speed of the kernels."""
    backend = open_vulkan(slice_seconds=1e3)
    points = backend.points(unit(3000, 32, 1))
    queries = unit(1024, 32, 2)
    backend.topk(queries, points, 64)
    assert submissions_of(backend, lambda: backend.topk(queries, points, 64)) == (1, 1)


def test_blocks_of_queries_are_one_submission() -> None:
    """More queries than one block has lists: 64 MiB hold the lists of 1,024 for 8,192 points."""
    backend = open_vulkan(slice_seconds=1e3)
    mu = unit(9000, 4, 1)
    points, queries = backend.points(mu), unit(1100, 4, 2)
    for _ in range(2):  # the speed is learned from a program's second run
        backend.topk(queries, points, 3)
    results = []
    assert submissions_of(backend, lambda: results.append(backend.topk(queries, points, 3))) == (1, 1)
    some = torch.arange(0, 1100, 37)
    (whole,) = results
    fresh = open_vulkan()
    part = fresh.topk(queries[some].contiguous(), fresh.points(mu), 3)
    assert same_bits([whole.scores[some], whole.ids[some]], [part.scores, part.ids])


def test_slices_are_submitted_together_with_one_wait() -> None:
    backend = open_vulkan(slice_seconds=1e-9)
    points = backend.points(unit(70_000, 4, 1))  # a first block, and three of 32,768
    query = unit(1, 4, 2)
    for _ in range(3):
        assert submissions_of(backend, lambda: backend.topk(query, points, 5)) == (4, 1)


def test_slices_of_a_chain_are_submitted_together() -> None:
    """One step fits into a slice. After the speed is known, a plan has many of them."""
    x = unit(1, 640, 1)
    steps = 40

    def run(backend: Vulkan) -> list[Tensor]:
        found = backend.langevin(
            x, tangent(x, 2), backend.points(unit(50, 640, 3)), *mixture(1, 64, 50, 4), schedule((steps,)), seed=5
        )
        return [found.x, found.v]

    backend = open_vulkan(slice_seconds=1e-9)
    run(backend)
    submissions, waits = submissions_of(backend, lambda: run(backend))
    assert submissions == steps + 1  # and the upload of the points
    assert waits <= 1 + math.ceil(steps / 15)
    assert same_bits(run(backend), run(open_vulkan()))


def test_bytes_are_those_of_the_arguments_and_results() -> None:
    rows, k, d, n = 8, 4, 16, 40
    backend = open_vulkan()
    x, points = unit(rows, d, 1), backend.points(unit(n, d, 2))
    backend.energy_score(x, points, *mixture(rows, k, n, 3))
    count = backend.counts()["energy_score"]
    assert count.bytes_up == 4 * rows * (d + 3 * k + 1)
    assert count.bytes_down == 4 * rows * (d + k + 2)
    backend.topk(x, points, k)
    count = backend.counts()["topk"]
    assert count.bytes_up == 4 * rows * d + 2 * 16  # weights, which aren't used here
    assert count.bytes_down == 4 * rows * 2 * k
    backend.topk(x, points, k)
    assert backend.counts()["topk"].bytes_up == 2 * count.bytes_up


def test_each_section_has_its_own_time_stamps() -> None:
    backend = open_vulkan(slice_seconds=1e-9, validate=True)
    points = backend.points(unit(70_000, 4, 1))
    before = backend._extension.calls_of("vkGetQueryPoolResults")
    if not before:
        pytest.skip("the device's queue has no clock")
    backend.topk(unit(1, 4, 2), points, 5)
    assert backend._extension.calls_of("vkGetQueryPoolResults") - before == 4
    assert backend._engine.take_messages() == []


def arranged(tensors: list[tuple[int, int, int]], alignment: int) -> tuple[list[int], int]:
    found: tuple[list[int], int] = kernels().arrange(tensors, alignment)
    return found


def test_tensors_that_live_at_the_same_time_never_overlap() -> None:
    chance = random.Random(11)
    for _ in range(300):
        alignment = chance.choice((1, 16, 64, 256))
        tensors = []
        for _ in range(chance.randint(0, 25)):
            first = chance.randint(0, 20)
            tensors.append((chance.choice((0, 1, 40, 256, 1000)), first, first + chance.randint(0, 6)))
        offsets, size = arranged(tensors, alignment)
        assert all(offset % alignment == 0 for offset in offsets)
        assert size == max((at + one[0] for at, one in zip(offsets, tensors, strict=True)), default=0)
        for (a, one), (b, two) in itertools.combinations(zip(offsets, tensors, strict=True), 2):
            together = one[1] <= two[2] and two[1] <= one[2]
            assert not together or a + one[0] <= b or b + two[0] <= a
        padded = [(bytes_ + alignment - 1) // alignment * alignment for bytes_, _, _ in tensors]
        assert size <= sum(padded)
        live = (sum(t[0] for t in tensors if t[1] <= node <= t[2]) for node in range(27))
        assert size >= max(live, default=0)


def test_tensors_that_follow_one_another_share_memory() -> None:
    assert arranged([(100, i, i) for i in range(9)], 1) == ([0] * 9, 100)
    assert arranged([(64, i, i + 1) for i in range(9)], 1)[1] == 128
    assert arranged([(64, 0, 9) for _ in range(9)], 1)[1] == 9 * 64


@pytest.mark.parametrize(("tensors", "alignment"), [([(1, 2, 1)], 1), ([(1, 0, 0)], 0)])
def test_impossible_lifetimes_are_refused(tensors: list[tuple[int, int, int]], alignment: int) -> None:
    with pytest.raises(ValueError, match="arena"):
        arranged(tensors, alignment)
