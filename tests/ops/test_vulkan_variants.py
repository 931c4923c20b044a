"""The variants of Vulkan kernels: every shader, every tiling, and float16 first in topk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from vulkan_open import ORACLE, mixture, nmse, open_vulkan, schedule, tangent, unit

from ebmvk.engine import checks, selftest
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError, OutOfMemory

OUT_OF_DEVICE_MEMORY = -2  # VkResult
TILINGS = ("direct", "matvec", "slim", "square")
SHARD = 10240  # bytes: 64 rows of 33 floats, 128 of 33 halves


def checked(**options: bool | int | str) -> Iterator[Vulkan]:
    """With guard bands, poisoned buffers and the validation layers, which must stay silent."""
    backend = open_vulkan(validate=True, guard=True, **options)
    yield backend
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []


@pytest.fixture(scope="module")
def vulkan() -> Iterator[Vulkan]:
    yield from checked()


@pytest.fixture(scope="module", params=["usual", "portable", "shards", "smallest"])
def variant(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    options = {"portable": {"portable": True}, "shards": {"shard_bytes": SHARD}, "smallest": {"pretend": "smallest"}}
    yield from checked(**options.get(request.param, {}))


def run_everything(backend: Vulkan, tilings: tuple[str, ...]) -> None:
    assert [check for check in selftest.run(backend) if not check.ok] == []
    mu, x = unit(300, 33, 1), unit(9, 33, 2)
    law = mixture(9, 7, 300, 3)
    for storage in ("float32", "float16"):
        points = backend.points(mu, storage)  # type: ignore[arg-type]
        truth = ORACLE.points(mu, storage)  # type: ignore[arg-type]
        for tiling in tilings:
            backend._engine.set_scoring(getattr(backend._extension.Scoring, tiling))
            assert nmse(backend.topk(x, points, 5).scores, ORACLE.topk(x, truth, 5).scores) < 1e-9
        backend._engine.set_scoring(backend._extension.Scoring.automatic)
        assert nmse(backend.energy_score(x, points, *law).score, ORACLE.energy_score(x, truth, *law).score) < 1e-9
        cotangents = torch.ones(9), unit(9, 33, 5)
        got = backend.energy_score_backward(x, points, *law, *cotangents)
        assert nmse(got.x, ORACLE.energy_score_backward(x, truth, *law, *cotangents).x) < 1e-9
        for scheme, resident in itertools.product(INTEGRATORS, (False, True)):
            backend._engine.set_resident(resident)
            arguments, settings = (x, tangent(x, 4)), {"seed": 1, "scheme": scheme}
            end = backend.langevin(*arguments, points, *law, schedule((2,)), **settings)  # type: ignore[arg-type]
            want = ORACLE.langevin(*arguments, truth, *law, schedule((2,)), **settings)  # type: ignore[arg-type]
            assert nmse(end.x, want.x) < 1e-9
    run_tensors(backend, x, mu, law)
    backend._engine.set_coarse(True)
    assert nmse(backend.topk(x, backend.points(mu), 5).scores, ORACLE.topk(x, ORACLE.points(mu), 5).scores) < 1e-9
    backend._engine.set_coarse(None)
    backend._engine.set_resident(None)
    backend._engine.time_fma(1, 1, 1)
    backend._engine.probe(0, torch.zeros(1, 4).numpy().view("uint32"), torch.zeros(1, 4).numpy().view("uint32"))


def run_tensors(backend: Vulkan, x: Tensor, mu: Tensor, law: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Runs the shaders that only operations on tensors of the device use."""
    ids, *weights = law
    points = backend.points(mu)
    points.update(mu[:1], ids=torch.tensor([0]))
    kept = backend.tensor(weights[0])  # with a pitch that isn't the weights'
    arguments = (x, tangent(x, 4), points, ids, kept, *weights[1:], schedule((2,)))
    end = backend.langevin(*arguments, seed=1)  # type: ignore[arg-type]
    want = ORACLE.langevin(*arguments[:2], ORACLE.points(mu), *law, schedule((2,)), seed=1)
    assert nmse(end.x.torch(), want.x) < 1e-9  # type: ignore[attr-defined]
    log_p = torch.zeros(9, 300).log_softmax(1)
    chain = backend.candidate_law(log_p, ids)
    given = (x, points, ids, chain.logp, chain.log_rest, torch.ones(9), torch.zeros(9), log_p)
    tokens = backend.decode(*given, seed=1, first_chain=0, choice_stream=4, rest_stream=5)
    assert bool((tokens < 300).all())
    shares, said = weights[1] / 60, torch.arange(9)
    summed = backend.accumulate(backend.tensor(x), ids, shares, said, 300)  # type: ignore[arg-type]
    assert nmse(summed.resultant.torch(), ORACLE.accumulate(x, ids, shares, said, 300).resultant) < 1e-9  # type: ignore[attr-defined]
    start = backend.chain_start(9, x.shape[1], seed=1, first_chain=0, x_stream=4, v_stream=1, temperature=1.0)
    assert nmse(start.x.torch().norm(dim=1), torch.ones(9)) < 1e-9


def test_every_shader_of_the_manifest_is_run() -> None:
    """A variant that is added there but used by nothing here fails this test."""
    used = set()
    # Scoring kernels are the same without subgroups
    for options, tilings in (({}, TILINGS), ({"portable": True}, ())):
        for backend in checked(shard_bytes=SHARD, **options):
            run_everything(backend, tilings)
            used |= set(backend._engine.used_kernels())
    # tests/compute runs the kernels of training steps
    training = {path.stem for path in (Path(__file__).parents[2] / "shaders/nn").glob("*.comp")}
    assert used == {kernel for kernel in backend._extension.kernels() if kernel[0] not in training}


def problem(rows: int, d: int, n: int, scaled: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(rows + d + n)
    weights = {"scale": torch.randn(n, generator=g), "bias": torch.randn(n, generator=g)} if scaled else {}
    return torch.randn(rows, d, generator=g), unit(n, d, 7), weights


# Around a quad, 8 quads of a stage, tiles of 4, 8, 32, 128 queries and 64, 128 points.
TILED = [(1, 2, 1, 1), (3, 5, 63, 9), (7, 33, 65, 64), (9, 31, 129, 7), (33, 6, 127, 127), (129, 37, 130, 3)]


@pytest.mark.parametrize("shape", TILED, ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_every_tiling_gives_the_same_bits(
    vulkan: Vulkan, storage: str, scaled: bool, shape: tuple[int, int, int, int]
) -> None:
    """Every tiling also gives the oracle's scores."""
    rows, d, n, k = shape
    queries, mu, weights = problem(rows, d, n, scaled)
    points = vulkan.points(mu, storage)  # type: ignore[arg-type]
    want = ORACLE.topk(queries, ORACLE.points(mu, storage), k, **weights)  # type: ignore[arg-type]
    results = []
    for tiling in TILINGS:
        vulkan._engine.set_scoring(getattr(vulkan._extension.Scoring, tiling))
        results.append(vulkan.topk(queries, points, k, **weights))
    vulkan._engine.set_scoring(vulkan._extension.Scoring.automatic)
    assert nmse(results[0].scores, want.scores) < 1e-9  # float32 sums, as elsewhere
    for result in results[1:]:
        assert torch.equal(result.scores, results[0].scores)
        assert torch.equal(result.ids, results[0].ids)


def test_the_tiling_depends_on_the_device() -> None:
    def classes(**options: str) -> list[tuple[int, str]]:
        backend = open_vulkan(**options)
        return backend._extension.tilings(backend.capabilities)  # type: ignore[no-any-return]

    assert [words.split()[0] for _, words in classes()] == ["direct"]
    assert classes(pretend="gpu") == [(1, "matvec 1x64"), (8, "slim 32x128"), (64, "square 128x128")]
    assert classes(pretend="smallest") == [(1, "matvec 1x64"), (8, "matvec 8x64")]


def test_a_tiling_that_does_not_fit_is_refused() -> None:
    backend = open_vulkan(pretend="smallest")
    backend._engine.set_scoring(backend._extension.Scoring.square)
    with pytest.raises(ArgumentError, match="square"):
        backend.topk(unit(2, 8, 1), backend.points(unit(9, 8, 2)), 3)


def both(backend: Vulkan, queries: Tensor, mu: Tensor, k: int, **weights: Tensor) -> int:
    """topk with and without float16 first, of queries on the host and on the device: asserts equal
    bits.

    Returns the number of unproved rows of each.
    """
    points = backend.points(mu)
    backend._engine.set_coarse(False)
    want = backend.topk(queries, points, k, **weights)
    backend._engine.set_coarse(True)
    unproved = []
    for given in (queries, backend.tensor(queries)):
        rows, before = backend._engine.coarse_count()
        got = backend.topk(given, points, k, **weights)  # type: ignore[arg-type]
        after_rows, after = backend._engine.coarse_count()
        assert after_rows - rows == len(queries)
        assert torch.equal(torch.as_tensor(np.asarray(got.scores)), want.scores)
        assert torch.equal(torch.as_tensor(np.asarray(got.ids)), want.ids)
        unproved.append(after - before)
    backend._engine.set_coarse(None)
    assert unproved[0] == unproved[1]
    return unproved[0]


@pytest.mark.parametrize("shape", [*TILED, (5, 65, 400, 20)], ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_float16_first_gives_the_bits_of_float32(
    variant: Vulkan, scaled: bool, shape: tuple[int, int, int, int]
) -> None:
    rows, d, n, k = shape
    queries, mu, weights = problem(rows, d, n, scaled)
    queries *= torch.logspace(-6, 6, rows)[:, None]
    both(variant, queries, mu, k, **weights)


def test_random_rows_are_proved(vulkan: Vulkan) -> None:
    """Uniform points at d = 640, the hardest ones without structure."""
    assert both(vulkan, unit(6, 640, 1), unit(2048, 640, 2), 32) == 0


def test_points_too_close_for_float16_fall_back(vulkan: Vulkan) -> None:
    mu = unit(1, 64, 1) + 1e-5 * torch.randn(600, 64, generator=torch.Generator().manual_seed(2))
    assert both(vulkan, unit(7, 64, 3), torch.nn.functional.normalize(mu, dim=1), 32) == 7


def test_unproved_rows_leave_the_others_as_they_are(vulkan: Vulkan) -> None:
    """Half of the queries look at a cluster, the others away from it."""
    g = torch.Generator().manual_seed(3)
    centre = unit(1, 64, 1)
    cluster = torch.nn.functional.normalize(centre + 1e-5 * torch.randn(300, 64, generator=g), dim=1)
    queries = torch.cat((unit(4, 64, 4) + 3 * centre, unit(5, 64, 5) - 3 * centre))[torch.randperm(9, generator=g)]
    assert both(vulkan, queries, torch.cat((unit(800, 64, 6), cluster)), 16) == 4


def test_ties_of_copies_go_to_the_lower_id(vulkan: Vulkan) -> None:
    """With 30 copies of each of 20 rows, ties go to the lower id and are never proved."""
    assert both(vulkan, unit(5, 24, 1), unit(20, 24, 2).repeat(30, 1), 70) == 5


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-30, checks.LARGEST])
def test_extreme_queries_give_the_same_bits(vulkan: Vulkan, value: float) -> None:
    queries = torch.zeros(3, 32)
    queries[1, 5] = value
    queries[2] = value * unit(1, 32, 1)[0]
    both(vulkan, queries, unit(500, 32, 2), 16)


def test_extreme_weights_and_subnormals_give_the_same_bits(vulkan: Vulkan) -> None:
    """Axes with coordinates subnormal in float16; mostly a bias of -inf; weights far from 1."""
    mu = torch.cat((torch.eye(48), -torch.eye(48), unit(500, 48, 4)))
    mu[:96] += 1e-6 * torch.randn(96, 48, generator=torch.Generator().manual_seed(5))
    bias = torch.full((len(mu),), -torch.inf)
    bias[::50] = 0.0
    queries = unit(6, 48, 6)
    both(vulkan, queries, mu, 40, bias=bias)
    for size in (1e-20, 1.0, checks.LARGEST):
        both(vulkan, queries, mu, 40, scale=size * torch.ones(len(mu)))


def test_rescoring_all_points_proves_every_row(vulkan: Vulkan) -> None:
    # 26 would be rescored, but there are only 20
    assert both(vulkan, torch.zeros(3, 9), unit(20, 9, 1), 10) == 0


def test_replaced_rows_are_rounded_again(vulkan: Vulkan) -> None:
    old, new, queries = unit(200, 33, 1), unit(200, 33, 2), unit(4, 33, 3)
    points = vulkan.points(old)
    vulkan._engine.set_coarse(True)
    vulkan.topk(queries, points, 9)
    points.update(new)
    got = vulkan.topk(queries, points, 9)
    vulkan._engine.set_coarse(None)
    assert torch.equal(got.ids, ORACLE.topk(queries, ORACLE.points(new), 9).ids)


def test_a_gpu_uses_float16_when_it_pays_off() -> None:
    """From the eighth call, for few queries and much data, and only if there is memory for it."""
    mu, queries = unit(8192, 256, 1), unit(2, 256, 2)
    backend = open_vulkan(pretend="gpu")
    points = backend.points(mu)
    results = [backend.topk(queries, points, 5) for _ in range(7)]
    assert backend._engine.coarse_count()[0] == 0
    backend._extension.inject_fault("vkAllocateMemory", 1, OUT_OF_DEVICE_MEMORY)
    results += [backend.topk(queries, points, 5) for _ in range(8)]
    assert backend._engine.coarse_count()[0] == 0
    results += [backend.topk(queries, points, 5) for _ in range(2)]
    assert backend._engine.coarse_count()[0] == 4
    assert all(torch.equal(result.scores, results[0].scores) for result in results)
    backend.topk(unit(64, 256, 3), points, 5)  # here arithmetic is the limit
    # These points fit into a cache
    backend.topk(queries, backend.points(mu[:4096].contiguous()), 5)
    assert backend._engine.coarse_count()[0] == 4
    usual = open_vulkan()
    points = usual.points(mu)
    for _ in range(9):
        usual.topk(queries, points, 5)
    assert usual._engine.coarse_count()[0] == 0


def test_float16_points_take_half_the_memory() -> None:
    mu = unit(16384, 64, 1)  # 4 MiB, and another 4 to upload them
    limited = open_vulkan(memory_limit=6 << 20)
    with pytest.raises(OutOfMemory, match="limit"):
        limited.points(mu)
    assert limited.points(mu, "float16").n == 16384
