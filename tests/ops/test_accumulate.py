"""accumulate: the oracle's statistics, exact sparse counts, conservation of mass, the same bits
every time.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from op_problems import nmse, unit
from torch import Tensor

from ebmvk.engine import Accumulated, Backend
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError

Shares = tuple[Tensor, Tensor, Tensor, Tensor, int]


def shares(b: int, k: int, d: int, n: int, vocabulary: int = 7) -> Shares:
    """Some responsibilities are 0, and some rows list a splat twice."""
    g = torch.Generator().manual_seed(b + k + d)
    r = torch.rand(b, k, generator=g)
    r[::2, k // 2] = 0
    ids, tokens = torch.randint(0, n, (b, k), generator=g), torch.randint(0, vocabulary, (b,), generator=g)
    return unit(b, d, generator=g), ids, r, tokens, n


def same_bits(a: Accumulated, b: Accumulated) -> bool:
    pairs = ((a.mass, b.mass), (a.resultant, b.resultant), (a.splat_token, b.splat_token), (a.counts, b.counts))
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (1, 1, 2, 1), (5, 3, 33, 200), (67, 9, 65, 13), (129, 8, 640, 64)])
def test_statistics_match_the_oracle(backend: Backend, oracle: Reference, shape: tuple[int, int, int, int]) -> None:
    problem = shares(*shape)
    got, want = backend.accumulate(*problem), oracle.accumulate(*problem)
    assert got.mass.shape == (shape[3],)
    assert got.resultant.shape == (shape[3], shape[2])
    assert torch.equal(got.splat_token.cpu(), want.splat_token)
    for name in ("mass", "resultant", "counts"):
        assert nmse(getattr(got, name), getattr(want, name)) <= 1e-11, name  # sums of tens of floats


def test_counts_match_a_loop(backend: Backend) -> None:
    x, ids, r, tokens, n = shares(41, 5, 6, 9)
    table: defaultdict[tuple[int, int], float] = defaultdict(float)
    for row in range(41):
        for j in range(5):
            if float(r[row, j]) > 0:
                table[int(ids[row, j]), int(tokens[row])] += float(r[row, j])
    got = backend.accumulate(x, ids, r, tokens, n)
    assert [tuple(pair) for pair in got.splat_token.tolist()] == sorted(table)
    torch.testing.assert_close(got.counts.double().cpu(), torch.tensor([table[key] for key in sorted(table)]).double())


def test_mass_is_conserved(backend: Backend) -> None:
    x, ids, r, tokens, n = shares(200, 6, 17, 31)
    got = backend.accumulate(x, ids, r, tokens, n)
    by_splat = torch.zeros(n).index_add(0, got.splat_token[:, 0].cpu(), got.counts.cpu())
    torch.testing.assert_close(by_splat, got.mass.cpu())
    torch.testing.assert_close(got.mass.sum().cpu(), r.sum())
    assert bool((got.counts > 0).all())


def test_calls_repeat_bit_for_bit(backend: Backend) -> None:
    problem = shares(300, 8, 40, 3)  # hundreds of rows per splat
    assert all(same_bits(backend.accumulate(*problem), backend.accumulate(*problem)) for _ in range(3))


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        ("x", 0, torch.ones(4, 3)),
        ("ids", 1, torch.full((4, 2), 5)),
        ("ids", 1, torch.full((4, 2), -1)),
        ("responsibilities", 2, torch.full((4, 2), -0.5)),
        ("responsibilities", 2, torch.full((4, 2), torch.nan)),
        ("tokens", 3, torch.zeros(3, dtype=torch.int64)),
        ("tokens", 3, torch.full((4,), -2)),
        ("tokens", 3, torch.zeros(4)),
        ("n", 4, 0),
    ],
)
def test_bad_arguments_are_refused(backend: Backend, name: str, position: int, value: Tensor | int) -> None:
    arguments = [*shares(4, 2, 3, 5)]
    arguments[position] = value
    with pytest.raises(ArgumentError, match=rf"^{name}\b"):
        backend.accumulate(*arguments)  # type: ignore[arg-type]
