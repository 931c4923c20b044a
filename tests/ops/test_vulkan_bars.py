"""topk in blocks: the k-th best so far is a bar for the scores of the next block.

Scores are mostly biases, so that they are exact and have any order.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from vulkan_open import ORACLE, open_vulkan, unit

from ebmvk.engine.vulkan import Vulkan

N = 6001  # a first block of 2,048 points, and a second one
K = 20
TILINGS = ("direct", "matvec", "slim", "square")
# 64 KiB for one binding: a block has 1,024 points for up to 8 queries, and there are two shards.
# A graphics card sorts short lists, where a processor searches.
OPTIONS: dict[str, dict[str, int | str]] = {"usual": {}, "blocks": {"shard_bytes": 1 << 16}, "gpu": {"pretend": "gpu"}}


@pytest.fixture(scope="module", params=list(OPTIONS))
def vulkan(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    backend = open_vulkan(validate=True, guard=True, **OPTIONS[request.param])
    yield backend
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []


def ranked(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, ties by the lower id; -0 is 0 and NaN is below everything."""
    plain = torch.where(scores.isnan(), -torch.inf, scores + 0.0)
    order = plain.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def check(backend: Vulkan, bias: Tensor, k: int = K, rows: int = 3) -> None:
    """Asserts the right order for every tiling, with the biases as scores."""
    points = backend.points(unit(len(bias), 4, 1))
    want = ranked(bias.expand(rows, -1), k)
    weights = torch.zeros(len(bias)).numpy(), bias.numpy()
    for tiling in TILINGS:
        backend._engine.set_scoring(getattr(backend._extension.Scoring, tiling))
        # The extension itself, because the arguments of a backend must not be NaN
        scores, ids = backend._engine.topk(unit(rows, 4, 2).numpy(), points.native, k, *weights)
        backend._engine.set_scoring(backend._extension.Scoring.automatic)
        assert torch.equal(torch.from_numpy(ids).long(), want[1]), tiling
        found = torch.from_numpy(scores)
        assert torch.equal(found.nan_to_num(-torch.inf), want[0]), tiling
        assert not bool(torch.signbit(found[found == 0]).any()), tiling


def test_scores_in_any_order_are_ranked_right(vulkan: Vulkan) -> None:
    """Ascending scores all pass the bar; of descending ones none does."""
    ascending = torch.arange(N) / 64 - 40
    chance = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    for bias in (ascending, ascending.flip(0), ascending[chance]):
        check(vulkan, bias)


def test_ties_across_blocks_go_to_the_lower_id(vulkan: Vulkan) -> None:
    """Few values, so that the k-th best and the bar are among many equal ones."""
    g = torch.Generator().manual_seed(4)
    for values in (1, 2, 5, 300):
        check(vulkan, torch.randint(-values, values, (N,), generator=g).float())


def test_zeros_of_both_signs_tie(vulkan: Vulkan) -> None:
    """The bar is 0 or -0, and so are most of the scores after it."""
    g = torch.Generator().manual_seed(5)
    for best in (K - 1, K, 40):
        bias = torch.where(torch.rand(N, generator=g) < 0.5, 0.0, -0.0)
        bias[torch.randperm(N, generator=g)[:best]] = 1.0
        check(vulkan, bias)


def test_scores_that_are_nan_come_last(vulkan: Vulkan) -> None:
    """NaN of both signs, in the first block and later, beside infinities and the lowest numbers."""
    g = torch.Generator().manual_seed(6)
    bias = torch.full((N,), torch.nan)
    bias[torch.rand(N, generator=g) < 0.5] *= -1
    ends = torch.tensor([torch.inf, -torch.finfo().max, 1e-42, -1e-42])
    for numbers in (3, K, N // 2):
        some = torch.randperm(N, generator=g)[:numbers]
        mixed = bias.clone()
        mixed[some] = ends[torch.randint(4, (numbers,), generator=g)]
        points = vulkan.points(unit(N, 4, 1))
        queries, scale = unit(2, 4, 2).numpy(), torch.zeros(N).numpy()
        scores, ids = vulkan._engine.topk(queries, points.native, K, scale, mixed.numpy())
        want = ranked(mixed.expand(2, -1), K)
        known = min(numbers, K)
        assert torch.equal(torch.from_numpy(ids)[:, :known].long(), want[1][:, :known])
        assert torch.equal(torch.from_numpy(scores)[:, :known], want[0][:, :known])
        left = torch.from_numpy(ids)[:, known:].long()  # NaN: ties, so the lowest ids
        assert torch.equal(left, mixed.isnan().nonzero()[: K - known, 0].expand(2, -1))


def test_blocks_give_the_bits_of_the_oracle_and_of_each_other(vulkan: Vulkan) -> None:
    """Odd dimensions, several k, and other numbers of rows than a tile has; k = 600 is more than is
    sorted at once. Points have four coordinates of 1/2 or -1/2, so that sums are exact."""
    g = torch.Generator().manual_seed(7)
    for rows, d, k in ((1, 4, 1), (5, 9, 64), (33, 13, 7), (3, 5, 600)):
        places = torch.rand(N, d, generator=g).argsort(1)[:, :4]
        mu = torch.zeros(N, d).scatter_(1, places, torch.randint(2, places.shape, generator=g) - 0.5)
        queries = torch.randint(-9, 10, (rows, d), generator=g).float()
        want = ranked((queries.double() @ mu.double().T).float(), k)  # exact sums
        for storage in ("float32", "float16"):
            found = vulkan._engine.topk(queries.numpy(), points_of(vulkan, mu, storage), k, None, None)
            assert torch.equal(torch.from_numpy(found[0]), want[0])
            assert torch.equal(torch.from_numpy(found[1]).long(), want[1])


def points_of(backend: Vulkan, mu: Tensor, storage: str) -> object:
    return backend.points(mu, storage).native  # type: ignore[arg-type]


def test_float16_first_gives_the_bits_of_float32_in_blocks(vulkan: Vulkan) -> None:
    """Bounds have bars too: the same bits as float32, and random rows are proved."""
    queries, mu = unit(5, 33, 8), unit(9000, 33, 9)  # a first block of 4,096 for the 80 best
    points = vulkan.points(mu)
    found = []
    for coarse in (False, True):
        vulkan._engine.set_coarse(coarse)
        found.append(vulkan.topk(queries, points, 64))
    rows, unproved = vulkan._engine.coarse_count()
    vulkan._engine.set_coarse(None)
    assert (rows, unproved) == (5, 0)
    assert torch.equal(found[0].scores, found[1].scores)
    assert torch.equal(found[0].ids, found[1].ids)
    want = ORACLE.topk(queries, ORACLE.points(mu), 64)
    assert float((found[0].scores.double() - want.scores).abs().max()) < 1e-6  # float32 sums


def test_a_second_search_starts_without_bars(vulkan: Vulkan) -> None:
    """Programs are used again; what a search leaves behind must not count in the next one."""
    points = vulkan.points(unit(N, 4, 1))
    high, low = torch.arange(N).float(), -torch.arange(N).float()
    queries = unit(2, 4, 2)
    for bias in (high, low, high):
        found = vulkan.topk(queries, points, K, scale=torch.zeros(N), bias=bias)
        assert torch.equal(found.ids, ranked(bias.expand(2, -1), K)[1])
