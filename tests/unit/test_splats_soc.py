"""Consolidation during training: what it creates, splits, merges, forgets and never changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from consolidation_support import BOUNDS, CLUSTERS, D, V, dense, make_config, make_store, planted
from scipy.optimize import minimize_scalar

from ebmvk.engine import select
from ebmvk.engine.reference import Reference
from ebmvk.errors import CheckpointError
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c
from ebmvk.splats.consolidation import consolidate, merge_cost
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.creation import candidates, created, divided, entropies, seeds, split
from ebmvk.splats.curriculum import phases
from ebmvk.splats.history import History
from ebmvk.splats.store import SplatStore

# ---- statistics ----------------------------------------------------------------------------------


def test_merging_adds_frequency_and_keeps_the_first_birth_and_the_last_use() -> None:
    store = make_store()
    owner = torch.randint(7, (store.n,), generator=torch.Generator().manual_seed(3))
    found = store.merged(owner)
    for splat in range(7):
        mine = owner == splat
        assert found.frequency[splat] == pytest.approx(float(store.frequency[mine].sum()))
        assert (found.birth[splat], found.last_use[splat]) == (store.birth[mine].min(), store.last_use[mine].max())
    keep = torch.arange(store.n) % 3 == 0
    both = store.kept(keep).joined(store.kept(~keep))
    both._check("x")
    for name in ("frequency", "birth", "last_use"):
        own = getattr(store, name)
        assert torch.equal(getattr(both, name), torch.cat((own[keep], own[~keep])))
        assert torch.equal(getattr(store.scaled(torch.full((store.n,), 0.5)), name), own)


@pytest.mark.parametrize("n", [1, 37, 200])
def test_absorbing_adds_weighted_members(n: int) -> None:
    """Compared with sums written out, splat by splat."""
    store = make_store()
    states, tokens, _ = planted(n, seed=5)
    g = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(store.n, generator=g)[:3] for _ in range(n)])
    weights = torch.rand(n, 3, generator=g).double() * (torch.rand(n, 3, generator=g) < 0.6)
    found = store.absorbed(states, tokens, ids, weights, step=99)
    found._check("x")
    full = torch.zeros(n, store.n, dtype=torch.float64).scatter_(1, ids, weights)
    torch.testing.assert_close(found.mass, store.mass + full.sum(0))
    torch.testing.assert_close(found.frequency, store.frequency + full.sum(0))
    expected = store.resultant.double() + full.T @ states.double()
    torch.testing.assert_close(found.resultant.double(), expected, rtol=1e-6, atol=1e-5)
    tokens_of = torch.nn.functional.one_hot(tokens, V).double()
    torch.testing.assert_close(dense(found), dense(store) + full.T @ tokens_of)
    assert torch.equal(found.last_use, torch.where(full.sum(0) > 0, 99, store.last_use))


def test_trimming_removes_small_counts_and_their_mass() -> None:
    store = make_store()
    store = store.scaled(torch.linspace(0.05, 1, store.n).double())
    found = store.trimmed(0.6)
    torch.testing.assert_close(dense(found), torch.where(dense(store) >= 0.6, dense(store), 0.0))
    torch.testing.assert_close(found.mass, dense(found).sum(1))
    some = found.mass > 0
    assert 0 < int(some.sum()) < store.n
    torch.testing.assert_close(found.mu[some], store.mu[some])
    torch.testing.assert_close(
        found.length / found.mass.clamp_min(1e-9), torch.where(some, store.length / store.mass, 0)
    )


def test_old_files_without_frequency_and_age_load_with_zeros() -> None:
    state = make_store().state()
    assert torch.equal(SplatStore.from_state(state, "x").birth, make_store().birth)
    old = {name: value for name, value in state.items() if name not in ("frequency", "birth", "last_use")}
    found = SplatStore.from_state(old, "x")
    assert not any(bool(getattr(found, name).any()) for name in ("frequency", "birth", "last_use"))
    with pytest.raises(CheckpointError, match="lacks 'birth'"):
        SplatStore.from_state(old | {"frequency": state["frequency"], "last_use": state["last_use"]}, "x")
    for name, value in (("frequency", -state["frequency"]), ("last_use", state["last_use"] - 1000)):
        with pytest.raises(CheckpointError, match="before the splat"):
            SplatStore.from_state(state | {name: value}, "x")


def test_a_higher_temperature_lowers_the_bounds_of_kappa() -> None:
    soc = make_config(enable_curriculum_learning=True)
    assert [phase.kappa for phase in phases(soc)] == [(2.5, 125.0), (5.0, 250.0), (10.0, 500.0)]
    store = make_store(groups=1)
    hot = replace(store, kappa_min=2.5, kappa_max=40.0)
    assert float(store.kappa.max()) > 100  # planted at 150
    assert torch.equal(hot.kappa, store.kappa.clamp(2.5, 40.0))


# ---- description length --------------------------------------------------------------------------


def _code_length(store: SplatStore) -> float:
    """Code length by definition: splat (less n log N), token and place, each under its best law."""
    nats = 0.0
    for splat, counts in enumerate(dense(store)):
        n, r = float(store.mass[splat]), float(store.length[splat])
        nats -= n * math.log(n) + sum(float(c) * math.log(float(c) / n) for c in counts if c > 0)

        def place(kappa: float, n: float = n, r: float = r) -> float:
            return -n * float(log_c(torch.tensor(kappa, dtype=torch.float64), D)) - kappa * r

        low, high = store.kappa_min, store.kappa_max
        found = minimize_scalar(place, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
        nats += min(found.fun, place(low), place(high))
    return nats


@pytest.mark.parametrize("kappa", [BOUNDS, (60.0, 90.0), (25.0, 25.0)])
def test_the_cost_of_merging_is_the_change_in_code_length(kappa: tuple[float, float]) -> None:
    store = make_store(60, kappa=kappa, groups=3)
    for i, j in ((0, 1), (5, 12), (store.n - 1, 0)):
        pair = store.kept((torch.arange(store.n) == i) | (torch.arange(store.n) == j))
        cosine = (store.resultant[i].double() @ store.resultant[j].double()) / (store.length[i] * store.length[j])
        found = merge_cost(store, torch.tensor([i]), torch.tensor([j]), cosine[None])
        expected = _code_length(pair.merged(torch.zeros(2, dtype=torch.int64))) - _code_length(pair)
        # The merged resultant is float32
        assert float(found) == pytest.approx(expected, rel=1e-5, abs=2e-3)


def test_one_kappa_gives_the_general_cost_with_equal_bounds() -> None:
    store = make_store(kappa=(25.0, 25.0))
    i, j = torch.arange(store.n - 1), torch.arange(1, store.n)
    cosine = (store.mu[i] * store.mu[j]).sum(1)
    general = merge_cost(replace(store, kappa_max=25.0 + 1e-9), i, j, cosine)
    torch.testing.assert_close(merge_cost(store, i, j, cosine), general, rtol=1e-6, atol=1e-6)


def test_merging_by_description_length_recovers_planted_clusters_better_than_chance() -> None:
    """Purity at equal size: the share of mass whose cluster is the most common in its splat."""
    store = make_store(400, groups=10)
    owner = torch.randint(CLUSTERS, (store.n,), generator=torch.Generator().manual_seed(0))
    by_chance = store.merged(owner)
    found = consolidate(store, by_chance.n, select("cpu"))
    assert found.n == by_chance.n

    def purity(of: SplatStore) -> float:
        counts = torch.nn.functional.pad(dense(of), (0, 3 * CLUSTERS + 3 - V)).view(of.n, -1, 3).sum(2)
        return float(counts.amax(1).sum() / counts.sum())

    assert purity(found) > 0.8
    assert purity(by_chance) < 0.5
    assert float(found.mass.sum()) == pytest.approx(float(store.mass.sum()), rel=1e-12)


# ---- coverage ------------------------------------------------------------------------------------


def test_the_background_is_the_fixed_point_of_em() -> None:
    store = make_store(600, groups=1).kept(torch.arange(CLUSTERS) < 7)
    fold = planted(300, seed=8)[0]
    found, phi = fit_background(store, fold, Reference(), CLUSTERS)
    em = found
    for _ in range(3):  # EM stays at its fixed point; from elsewhere it converges slowly
        rest = 1 - posterior(em, fold, Reference(), CLUSTERS)[1].sum(1)
        share = float(rest.mean())
        em = replace(em, background=float(store.mass.sum()) * share / (1 - share))
    assert found.background == pytest.approx(em.background, rel=1e-6)
    assert phi == pytest.approx(share, rel=1e-6)
    assert 5 / 12 - 0.1 < phi < 5 / 12 + 0.1  # five of twelve clusters have no splat


def test_phi_falls_only_when_uncovered_clusters_get_splats() -> None:
    store = make_store(600, groups=1).kept(torch.arange(CLUSTERS) < 7)
    states, tokens, which = planted(500, seed=2)
    history = History.empty(500, D)
    history.add(states, tokens, torch.ones(500) + torch.rand(500, generator=torch.Generator().manual_seed(1)), 3)
    fold = planted(300, seed=8)[0]
    store, before = fit_background(store, fold, Reference(), CLUSTERS)
    place = candidates(history, store, Reference(), CLUSTERS)
    assert (which[place] >= 7).all()  # covered ones are never candidates
    assert (history.energies[place] > history.energies.median()).all()
    random = torch.Generator().manual_seed(0)
    born, taken = created(history, place, 20, (V, 0.1, BOUNDS), Reference(), random, 3)
    assert born is not None
    assert float(born.mass.sum()) == len(taken)
    assert set(taken.tolist()) <= set(place.tolist())
    assert (born.birth == 3).all()
    assert fit_background(store.joined(born), fold, Reference(), CLUSTERS)[1] < before - 0.2


@pytest.mark.parametrize("k", [1, 5, 12, 40, 300])
def test_seeds_are_distinct_and_spread(k: int) -> None:
    states, _, which = planted(200, seed=3)
    found = seeds(states, k, torch.Generator().manual_seed(1))
    assert len(found.unique()) == len(found) == min(k, 200)
    assert torch.equal(found, seeds(states, k, torch.Generator().manual_seed(1)))
    if k == 12:  # at random, all 12 clusters would be hit once in 18,000 trials
        assert len(which[found].unique()) >= 10


def test_seeds_of_equal_states_do_not_hang() -> None:
    assert len(seeds(torch.eye(D)[:1].expand(9, D).contiguous(), 9, torch.Generator().manual_seed(1)).unique()) == 9


def test_an_outlier_creates_no_splat() -> None:
    """The original system created a splat for the single most surprising state."""
    states, tokens, _ = planted(100, seed=3)
    centres = projx(torch.randn(CLUSTERS, D, generator=torch.Generator().manual_seed(99)))
    states[17] = torch.linalg.svd(centres).Vh[-1]  # orthogonal to them all
    energies = torch.linspace(1, 2, 100)
    energies[17] = 50.0
    history = History.empty(100, D)
    history.add(states, tokens, energies, 1)
    place = candidates(history, None, Reference(), 4)
    assert 17 in place
    born, taken = created(history, place, 12, (V, 0.1, BOUNDS), Reference(), torch.Generator().manual_seed(0), 1)
    assert born is not None
    assert len(taken) > 20
    assert float((born.mu @ states[17]).max()) < 0.6  # a splat of its own would give 1


# ---- splitting -----------------------------------------------------------------------------------


def test_dividing_conserves_all_statistics() -> None:
    store = make_store(groups=2)
    g = torch.Generator().manual_seed(2)
    which = torch.rand(store.n, generator=g) < 0.4
    shift = 0.01 * torch.randn(store.n, D, generator=g).double() * which[:, None]
    found = divided(store, which, torch.rand(len(store.count), generator=g).double().clamp(0.1, 0.9), shift)
    found._check("x")
    assert found.n == store.n + int(which.sum())
    owner = torch.cat((torch.arange(store.n), which.nonzero()[:, 0]))
    back = found.merged(owner)
    for name in ("mass", "count", "frequency"):
        torch.testing.assert_close(getattr(back, name), getattr(store, name), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(back.resultant, store.resultant, rtol=1e-6, atol=1e-6)
    assert torch.equal(back.birth, store.birth)


def test_a_splat_of_two_clusters_is_split_into_them() -> None:
    states, tokens, which = planted(600, seed=4)
    owner = torch.where(which < 2, 0, which)
    store = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.1, kappa=BOUNDS)
    assert int((store.mass * entropies(store)).argmax()) == 0
    found = split(store, states, tokens, torch.unique(owner, return_inverse=True)[1], 1)
    assert found.n == store.n + 1
    halves = torch.stack([dense(found)[i].view(-1)[:6].view(2, 3).sum(1) for i in (0, found.n - 1)])
    assert (halves.amax(1) / halves.sum(1) > 0.9).all()
    assert int(halves[0].argmax()) != int(halves[1].argmax())
    assert float(found.mass.sum()) == pytest.approx(600, rel=1e-12)
    assert (found.kappa[[0, found.n - 1]] > 2 * store.kappa[0]).all()
