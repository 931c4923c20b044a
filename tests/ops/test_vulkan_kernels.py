"""What only the Vulkan engine has: bounds, shards, slices, kernel variants, validation layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from vulkan_open import ORACLE, mixture, nmse, open_vulkan, schedule, tangent, unit

from ebmvk.engine.api import LangevinResult, Points, Schedule
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError

# float32 against float64: measured 1e-13 and less; 1e-9 is what the design asks of a float32
# kernel.
FLOAT32 = 1e-9


@pytest.fixture(scope="module")
def vulkan() -> Iterator[Vulkan]:
    """Every test here runs with guard bands, poisoned buffers and the validation layers."""
    backend = open_vulkan(validate=True, guard=True)
    yield backend
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []


@pytest.fixture(scope="module", params=["portable", "shards", "gpu", "smallest"])
def variant(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    """Other kernels for the same operations: without subgroups, with tiny shards, for other
    devices.

    Shards have 16 rows of 8 floats; the devices are a GPU and one with the least that Vulkan
    allows.
    """
    options = {
        "portable": {"portable": True},
        "shards": {"shard_bytes": 16 * 40 * 4},
        "gpu": {"pretend": "gpu"},
        "smallest": {"pretend": "smallest"},
    }[request.param]
    backend = open_vulkan(validate=True, guard=True, **options)
    yield backend
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []


def run_langevin(backend: Vulkan, points: Points, rows: int, d: int, k: int, rows_from: int = 0) -> LangevinResult:
    x = unit(rows, d, 1)
    v = tangent(x, 2)
    ids, logw, kappa, background = mixture(rows, k, points.n, 3)
    part = slice(rows_from, None)
    return backend.langevin(
        *(tensor[part].contiguous() for tensor in (x, v)),
        points,
        *(tensor[part].contiguous() for tensor in (ids, logw, kappa, background)),
        schedule(),
        seed=2**63 + 5,
        first_step=7,
        first_chain=11 + rows_from,
    )


def check_langevin(backend: Vulkan, rows: int, d: int, k: int, n: int) -> None:
    mu = unit(n, d, 4)
    got = run_langevin(backend, backend.points(mu), rows, d, k)
    want = run_langevin(ORACLE, ORACLE.points(mu), rows, d, k)
    assert nmse(got.x, want.x) < FLOAT32
    assert nmse(got.v, want.v) < FLOAT32
    assert nmse(got.diagnostics.energy, want.diagnostics.energy) < FLOAT32
    assert nmse(got.diagnostics.kinetic_temperature, want.diagnostics.kinetic_temperature) < FLOAT32
    # A difference of energies near 100, each rounded to 1e-5: absolute.
    assert (got.diagnostics.energy_error - want.diagnostics.energy_error).abs().max() < 1e-4
    assert got.diagnostics.tangency.max() < 2e-6


# Odd dimensions end inside a quad; 2 and 3 are less than one; 1029 needs many quads per invocation.
@pytest.mark.parametrize(
    ("rows", "d", "k", "n"), [(1, 2, 1, 1), (3, 3, 7, 5), (5, 33, 33, 50), (2, 640, 64, 70), (2, 1029, 130, 131)]
)
def test_langevin_follows_the_oracle(vulkan: Vulkan, rows: int, d: int, k: int, n: int) -> None:
    check_langevin(vulkan, rows, d, k, n)


def test_all_variants_of_langevin_follow_the_oracle(variant: Vulkan) -> None:
    check_langevin(variant, rows=5, d=33, k=9, n=100)


@pytest.mark.parametrize("op", ["projx", "proju", "expmap", "logmap", "transp", "dist"])
@pytest.mark.parametrize(("rows", "d"), [(1, 2), (7, 3), (33, 65), (4, 1029)])
def test_sphere_operations_match_the_oracle(vulkan: Vulkan, op: str, rows: int, d: int) -> None:
    x, y, u = unit(rows, d, 1), unit(rows, d, 2), tangent(unit(rows, d, 1), 3)
    second = {"projx": (), "expmap": (u,), "transp": (y, u)}.get(op, (y,))
    assert nmse(getattr(vulkan, op)(x, *second), getattr(ORACLE, op)(x, *second)) < FLOAT32


def test_projx_handles_rows_whose_squares_vanish_or_overflow(vulkan: Vulkan) -> None:
    u = tangent(unit(5, 30, 1), 3)
    for size in (1e-25, 1e25):
        assert nmse(vulkan.projx(size * u), ORACLE.projx(size * u)) < FLOAT32


def check_energy(backend: Vulkan, rows: int, d: int, k: int, n: int) -> None:
    mu, x, law = unit(n, d, 1), unit(rows, d, 2), mixture(rows, k, n, 3)
    got = backend.energy_score(x, backend.points(mu), *law)
    want = ORACLE.energy_score(x, ORACLE.points(mu), *law)
    for name in ("energy", "score", "responsibilities", "background"):
        assert nmse(getattr(got, name), getattr(want, name)) < FLOAT32, name


@pytest.mark.parametrize(("rows", "d", "k", "n"), [(1, 2, 1, 1), (9, 31, 5, 17), (3, 640, 128, 200), (2, 1029, 1, 3)])
def test_energy_score_matches_the_oracle(vulkan: Vulkan, rows: int, d: int, k: int, n: int) -> None:
    check_energy(vulkan, rows, d, k, n)


def test_all_variants_of_energy_score_match_the_oracle(variant: Vulkan) -> None:
    check_energy(variant, rows=9, d=31, k=15, n=90)


def test_no_rows_give_empty_results(vulkan: Vulkan) -> None:
    points = vulkan.points(unit(5, 4, 1))
    assert vulkan.projx(torch.empty(0, 4)).shape == (0, 4)
    assert vulkan.topk(torch.empty(0, 4), points, 2).ids.shape == (0, 2)
    assert run_langevin(vulkan, points, 0, 4, 3).x.shape == (0, 4)
    assert vulkan.energy_score(torch.empty(0, 4), points, *mixture(0, 3, 5, 1)).score.shape == (0, 4)


def check_topk(backend: Vulkan, rows: int, d: int, n: int, k: int, scoring: str = "automatic") -> None:
    """Points and queries whose sums are exact, with many equal scores.

    Points have a few coordinates of 1/2; queries are small integers.
    """
    generator = torch.Generator().manual_seed(rows + d)
    mu = torch.zeros(n, d)
    places = torch.rand(n, d, generator=generator).argsort(1)[:, : 4 if d >= 4 else 1]
    mu.scatter_(1, places, torch.randint(2, places.shape, generator=generator) - 0.5)
    mu = torch.nn.functional.normalize(mu, dim=1)
    queries = torch.randint(-9, 10, (rows, d), generator=generator).float()
    backend._engine.set_scoring(getattr(backend._extension.Scoring, scoring))
    points = backend.points(mu)
    got = backend.topk(queries, points, k)
    noisy = torch.randn(rows, d, generator=generator)
    rounded = backend.topk(noisy, points, k)
    backend._engine.set_scoring(backend._extension.Scoring.automatic)
    want = ORACLE.topk(queries, ORACLE.points(mu), k)
    assert torch.equal(got.scores.double(), want.scores)
    assert torch.equal(got.ids, want.ids)
    assert nmse(rounded.scores, ORACLE.topk(noisy, ORACLE.points(mu), k).scores) < FLOAT32


@pytest.mark.parametrize("scoring", ["direct", "matvec", "slim", "square"])
@pytest.mark.parametrize(
    ("rows", "d", "n", "k"), [(1, 2, 1, 1), (3, 5, 129, 64), (65, 33, 127, 127), (33, 17, 300, 1), (2, 640, 260, 128)]
)
def test_topk_matches_the_oracle(vulkan: Vulkan, scoring: str, rows: int, d: int, n: int, k: int) -> None:
    check_topk(vulkan, rows, d, n, k, scoring)


def test_all_variants_of_topk_match_the_oracle(variant: Vulkan) -> None:
    check_topk(variant, rows=5, d=33, n=150, k=70)


def test_topk_handles_weights_and_ties(vulkan: Vulkan) -> None:
    mu = unit(100, 6, 1)
    queries = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    scale, bias = torch.rand(100), torch.randn(100)
    bias[::3] = -torch.inf
    for weights in ({"scale": scale}, {"bias": bias}, {"scale": scale, "bias": bias}):
        got = vulkan.topk(queries, vulkan.points(mu), 80, **weights)
        want = ORACLE.topk(queries, ORACLE.points(mu), 80, **weights)
        assert torch.equal(got.ids, want.ids), weights.keys()
    nothing = vulkan.topk(torch.zeros(3, 6), vulkan.points(mu), 9)
    assert torch.equal(nothing.ids, torch.arange(9).expand(3, 9))


def test_topk_handles_a_whole_block_of_ties(vulkan: Vulkan) -> None:
    """All loops of the selection have their greatest length, which llvmpipe would silently cut."""
    points = vulkan.points(unit(1, 3, 1).expand(70_000, 3).contiguous())
    assert torch.equal(vulkan.topk(unit(2, 3, 2), points, 128).ids, torch.arange(128).expand(2, 128))


def test_tilings_give_the_same_bits(vulkan: Vulkan) -> None:
    points = vulkan.points(unit(200, 37, 1))
    queries = unit(70, 37, 2)
    results = []
    for scoring in ("direct", "matvec", "slim", "square"):
        vulkan._engine.set_scoring(getattr(vulkan._extension.Scoring, scoring))
        results.append(vulkan.topk(queries, points, 50))
        results.append(vulkan.topk(queries[:3].contiguous(), points, 50))
    vulkan._engine.set_scoring(vulkan._extension.Scoring.automatic)
    for result in results:
        assert torch.equal(result.scores, results[0].scores[: len(result.scores)])
        assert torch.equal(result.ids, results[0].ids[: len(result.ids)])


def test_shards_change_no_bit() -> None:
    whole, sharded = open_vulkan(), open_vulkan(shard_bytes=16 * 40 * 4)
    mu = unit(100, 33, 1)
    a, b = whole.points(mu), sharded.points(mu)
    assert (a.native.shards, b.native.shards) == (1, 7)
    x, law = unit(5, 33, 2), mixture(5, 16, 100, 3)
    assert torch.equal(whole.energy_score(x, a, *law).score, sharded.energy_score(x, b, *law).score)
    assert torch.equal(whole.topk(x, a, 60).ids, sharded.topk(x, b, 60).ids)
    assert torch.equal(whole.topk(x, a, 60).scores, sharded.topk(x, b, 60).scores)
    assert torch.equal(run_langevin(whole, a, 5, 33, 16).x, run_langevin(sharded, b, 5, 33, 16).x)


def test_splitting_the_batch_changes_no_bit(vulkan: Vulkan) -> None:
    points = vulkan.points(unit(40, 21, 1))
    whole = run_langevin(vulkan, points, 9, 21, 10)
    part = run_langevin(vulkan, points, 9, 21, 10, rows_from=4)
    assert torch.equal(whole.x[4:], part.x)
    assert torch.equal(whole.v[4:], part.v)
    queries = unit(9, 21, 5)
    assert torch.equal(
        vulkan.topk(queries, points, 7).scores[4:], vulkan.topk(queries[4:].contiguous(), points, 7).scores
    )


def test_slices_and_resumption_change_no_bit(vulkan: Vulkan) -> None:
    """200 steps in one call, in two, and in one submission per chain and step."""
    sliced = open_vulkan(slice_seconds=1e-9)
    mu, x = unit(30, 12, 1), unit(3, 12, 2)
    v, law = tangent(x, 3), mixture(3, 8, 30, 4)

    def run(
        backend: Vulkan, steps: tuple[int, ...], first: int = 0, start: LangevinResult | None = None
    ) -> LangevinResult:
        state = (x, v) if start is None else (start.x, start.v)
        plan = schedule(steps)
        return backend.langevin(*state, backend.points(mu), *law, plan, seed=9, first_step=first)

    whole = run(vulkan, (120, 80))
    half = run(vulkan, (100, 0))
    rest = run(vulkan, (20, 80), first=100, start=half)
    assert torch.equal(whole.x, rest.x)
    assert torch.equal(whole.v, rest.v)
    cut = run(sliced, (120, 80))
    assert sliced.counts()["langevin"].dispatches == 3 * 200  # one per chain and step
    assert torch.equal(whole.x, cut.x)
    assert torch.equal(whole.v, cut.v)
    assert torch.equal(whole.diagnostics.energy_error, cut.diagnostics.energy_error)


def test_each_chain_can_have_its_own_schedule(vulkan: Vulkan) -> None:
    mu, x = unit(30, 12, 1), unit(3, 12, 2)
    v, law, shared = tangent(x, 3), mixture(3, 8, 30, 4), schedule((3, 2))
    own = type(shared)(
        shared.kappa_scale * torch.tensor([[0.5], [1.0], [2.0]]),
        shared.logw_shift,
        shared.step_size * torch.tensor([[1.0], [0.5], [0.2]]),
        shared.gamma,
        shared.steps,
    )
    got = vulkan.langevin(x, v, vulkan.points(mu), *law, own, seed=3)
    want = ORACLE.langevin(x, v, ORACLE.points(mu), *law, own, seed=3)
    assert nmse(got.x, want.x) < FLOAT32
    assert nmse(got.v, want.v) < FLOAT32


def test_points_can_be_replaced(vulkan: Vulkan) -> None:
    points = vulkan.points(unit(50, 8, 1))
    query = unit(2, 8, 2)
    before = vulkan.topk(query, points, 3)
    points.update(unit(50, 8, 7))
    after = vulkan.topk(query, points, 3)
    assert not torch.equal(before.scores, after.scores)
    assert torch.equal(after.ids, ORACLE.topk(query, ORACLE.points(unit(50, 8, 7)), 3).ids)


@pytest.mark.parametrize(("scheme", "steps"), [("gbaoab", 1500), ("ghmc", 400)])
def test_many_steps_of_one_chain_are_not_cut_short(vulkan: Vulkan, scheme: str, steps: int) -> None:
    """Few chains leave time for many steps; llvmpipe stops loops after 65,535 rounds."""
    d, k = 640, 3
    mu = unit(k, d, 4)
    x = unit(1, d, 1)
    level = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([0.006]), torch.tensor([25.0]), (steps,))
    lists = (torch.arange(k)[None], torch.zeros(1, k), torch.full((1, k), 640.0), torch.zeros(1))
    got, want = (
        backend.langevin(x, tangent(x, 2), backend.points(mu), *lists, level, seed=1, scheme=scheme)  # type: ignore[arg-type]
        for backend in (vulkan, ORACLE)
    )
    assert nmse(got.x, want.x) < FLOAT32
    assert nmse(got.v, want.v) < FLOAT32


def test_a_step_with_too_many_loops_is_refused(vulkan: Vulkan) -> None:
    """1,024 leapfrogs with 64 candidates: llvmpipe would silently stop in the middle."""
    if vulkan._engine.capabilities.type != "cpu":
        pytest.skip("a GPU has no such limit")
    x = unit(1, 640, 1)
    ids, logw, kappa, background = mixture(1, 64, 64, 3)
    with pytest.raises(ArgumentError, match="1024 leapfrogs"):
        vulkan.langevin(
            *(x, tangent(x, 2), vulkan.points(unit(64, 640, 4)), ids, logw, kappa, background, schedule()),
            seed=1,
            scheme="ghmc",
            leapfrogs=1024,
        )
