"""The CPU kernels on every instruction set of this processor, and with any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from op_problems import candidates, nmse, schedule

from ebmvk.engine import select
from ebmvk.engine.dropout import dropout, words_of
from ebmvk.engine.reference import Reference


@pytest.fixture
def kernels(cpu_kernels: Any) -> Iterator[Any]:
    target, threads = cpu_kernels.target(), cpu_kernels.threads()
    yield cpu_kernels
    cpu_kernels.use_target(target)
    cpu_kernels.set_threads(threads)


def results(seed: int = 0) -> list[torch.Tensor]:
    """One call of each operation with its own kernel, at sizes that leave remainders."""
    backend, p = select("cpu"), candidates(29, 21, 75, seed=seed)
    points = backend.points(p.points)
    top = backend.topk(p.v, points, 13)
    force = backend.energy_score(p.x, points, *p.lists)
    run = backend.langevin(p.x, p.v, points, *p.lists, schedule(3, 4), seed=1)
    more = backend.langevin(p.x, p.v, points, *p.lists, schedule(3, 4), seed=1, scheme="ghmc")
    slopes = backend.energy_score_backward(p.x, points, *p.lists, force.energy, p.v)
    sums = backend.accumulate(p.x, p.ids, force.responsibilities, p.ids[:, 0].contiguous(), len(p.points))
    return [
        *(top.scores, top.ids, force.energy, force.score, run.x, run.v, backend.logmap(p.x, run.x), more.x, more.v),
        *(slopes.x, slopes.points, slopes.logw, sums.mass, sums.resultant, sums.splat_token, sums.counts),
        backend.vmf_sample(p.x, p.kappa[:, 0].contiguous(), seed=seed),
    ]


def test_every_instruction_set_matches_the_oracle(kernels: Any, oracle: Reference) -> None:
    p = candidates(29, 21, 75)
    points = oracle.points(p.points)
    truth = oracle.langevin(p.x, p.v, points, *p.lists, schedule(3, 4), seed=1)
    ids = oracle.topk(p.v, points, 13).ids
    force = oracle.energy_score(p.x, points, *p.lists)
    slopes = oracle.energy_score_backward(p.x, points, *p.lists, force.energy, p.v)
    for target in kernels.targets():
        kernels.use_target(target)
        assert kernels.target() == target
        got = results()
        assert torch.equal(got[1], ids), target
        assert nmse(got[4], truth.x) <= 1e-9, target
        assert nmse(got[5], truth.v) <= 1e-9, target
        assert nmse(got[9], slopes.x) <= 1e-7, target  # second-order terms may cancel: 6e-14 seen
        assert nmse(got[10], slopes.points) <= 1e-7, target


def test_every_processor_has_a_target(kernels: Any) -> None:
    assert kernels.targets()[-1] == "plain"
    with pytest.raises(ValueError, match="no instruction set"):
        kernels.use_target("abacus")


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(kernels: Any, threads: int) -> None:
    kernels.set_threads(1)
    want = results()
    kernels.set_threads(threads)
    assert kernels.threads() == threads
    assert all(torch.equal(a, b) for a, b in zip(results(), want, strict=True))


def test_calls_from_several_threads_take_turns(kernels: Any) -> None:
    kernels.set_threads(2)
    want = [results(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(results, range(6)))
    for a, b in zip(got, want, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _naps(tasks: Path) -> int:
    """How often the threads of this process, except this one, have gone to sleep."""
    others = [task for task in tasks.iterdir() if int(task.name) != threading.get_native_id()]
    lines = [line for task in others for line in (task / "status").read_text("ascii").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def test_a_single_task_wakes_no_thread(kernels: Any) -> None:
    """On a busy machine the call would wait for each thread that it wakes."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("asks Linux's /proc how often threads slept")
    kernels.set_threads(8)
    x = torch.ones(64)
    result = dropout(x, words_of(1, 2, 0), 3, 128)
    before = _naps(tasks)
    for _ in range(300):
        assert torch.equal(dropout(x, words_of(1, 2, 0), 3, 128), result)
    assert _naps(tasks) - before < 300  # 7 threads would sleep again after nearly each call


def test_a_forked_process_can_compute(kernels: Any) -> None:
    """As in a data loader: the child has the pool's memory, but not its threads."""
    import os

    kernels.set_threads(2)
    want = results()
    child = os.fork()
    if child == 0:
        same = all(torch.equal(a, b) for a, b in zip(results(), want, strict=True))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_extension_guards_its_memory(kernels: Any) -> None:
    """Even without the argument checks, wrong sizes and ids raise errors."""
    p = candidates(3, 4, 8)
    arrays = [t.numpy() for t in (p.x, p.points, *p.lists)]
    kernels.energy_score(*arrays)
    for position in range(1, 6):
        short = [*arrays]
        short[position] = short[position][..., :-1].copy()
        if position == 5:
            short[5] = short[5][:2].copy()
        if position in (1, 2, 3, 4, 5):
            with pytest.raises(ValueError, match="shape"):
                kernels.energy_score(*short)
    wrong = [*arrays]
    wrong[2] = wrong[2] + 1000
    with pytest.raises(IndexError):
        kernels.energy_score(*wrong)
    with pytest.raises(TypeError):
        kernels.energy_score(arrays[0].astype("float64"), *arrays[1:])
