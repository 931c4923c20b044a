"""Consolidation during training: what it creates, splits, merges, forgets and never changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ebmvk.config.checks import check
from ebmvk.config.schema import Config, SplatConfig
from ebmvk.config.schema import replace as configure
from ebmvk.engine import select
from ebmvk.engine.reference import Reference
from ebmvk.errors import CheckpointError, ConfigError
from ebmvk.sphere.geometry import dist, projx
from ebmvk.sphere.vmf import log_c, sample_vmf
from ebmvk.splats.consolidation import consolidate, merge_cost
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.creation import candidates, created, divided, entropies, seeds, split
from ebmvk.splats.curriculum import due, phases, threshold
from ebmvk.splats.health import ASKED, gini, health, nearest_angles
from ebmvk.splats.history import History
from ebmvk.splats.soc import Consolidation, store_of
from ebmvk.splats.store import SplatStore

D, V = 24, 40
BOUNDS = (10.0, 500.0)
CLUSTERS = 12


def _planted(n: int, seed: int = 0, kappa: float = 150.0) -> tuple[Tensor, Tensor, Tensor]:
    """States (n, d) of 12 separate vMF clusters, tokens that depend on these, and the clusters."""
    centres = projx(torch.randn(CLUSTERS, D, generator=torch.Generator().manual_seed(99)))
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(CLUSTERS, (n,), generator=g)
    return sample_vmf(centres[which], kappa, generator=g), which * 3 + torch.randint(3, (n,), generator=g), which


def _store(n: int = 300, seed: int = 0, kappa: tuple[float, float] = BOUNDS, groups: int = 20) -> SplatStore:
    """Splats of random groups within clusters, with made-up frequencies, births and last uses."""
    states, tokens, which = _planted(n, seed)
    g = torch.Generator().manual_seed(seed + 1)
    owner = which * groups + torch.randint(groups, (n,), generator=g)
    store = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.1, kappa=kappa)
    birth = torch.randint(50, (store.n,), generator=g)
    used = birth + torch.randint(50, (store.n,), generator=g)
    return replace(store, frequency=torch.rand(store.n, generator=g).double(), birth=birth, last_use=used)


def _config(**changes: Any) -> SplatConfig:
    small = {"n_splats_init": 40, "max_splats": 100, "curriculum_target_splats": 100, "soc_check_interval": 10}
    return SplatConfig(**{**small, "soc_history": 1000, "enable_curriculum_learning": False, **changes})


def _consolidation(**changes: Any) -> Consolidation:
    how = {"d": D, "vocab_size": V, "steps": 100, "steps_per_epoch": 20, "seed": lambda step: 7 + step}
    return Consolidation(_config(**changes), select("cpu"), **how)  # type: ignore[arg-type]


def _observe(soc: Consolidation, step: int, n: int = 200, held_out: bool = True) -> None:
    states, tokens, _ = _planted(n, seed=step)
    g = torch.Generator().manual_seed(step)
    apart = (torch.rand(n, generator=g) < 0.2) & held_out
    soc.observe(states, tokens, 5 * torch.rand(n, generator=g), apart, step)


def _run(soc: Consolidation, *steps: int, judge: Callable[[SplatStore | None], float] = lambda _: 0.0) -> list[Any]:
    records = []
    for step in steps:
        _observe(soc, step)
        records.append(soc.check(step, judge))
    return records


def _dense(store: SplatStore) -> Tensor:
    return torch.zeros(store.n, V, dtype=torch.float64).index_put_((store.row, store.count_token), store.count)


# ---- statistics ----------------------------------------------------------------------------------


def test_merging_adds_frequency_and_keeps_the_first_birth_and_the_last_use() -> None:
    store = _store()
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
    store = _store()
    states, tokens, _ = _planted(n, seed=5)
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
    torch.testing.assert_close(_dense(found), _dense(store) + full.T @ tokens_of)
    assert torch.equal(found.last_use, torch.where(full.sum(0) > 0, 99, store.last_use))


def test_trimming_removes_small_counts_and_their_mass() -> None:
    store = _store()
    store = store.scaled(torch.linspace(0.05, 1, store.n).double())
    found = store.trimmed(0.6)
    torch.testing.assert_close(_dense(found), torch.where(_dense(store) >= 0.6, _dense(store), 0.0))
    torch.testing.assert_close(found.mass, _dense(found).sum(1))
    some = found.mass > 0
    assert 0 < int(some.sum()) < store.n
    torch.testing.assert_close(found.mu[some], store.mu[some])
    torch.testing.assert_close(
        found.length / found.mass.clamp_min(1e-9), torch.where(some, store.length / store.mass, 0)
    )


def test_old_files_without_frequency_and_age_load_with_zeros() -> None:
    state = _store().state()
    assert torch.equal(SplatStore.from_state(state, "x").birth, _store().birth)
    old = {name: value for name, value in state.items() if name not in ("frequency", "birth", "last_use")}
    found = SplatStore.from_state(old, "x")
    assert not any(bool(getattr(found, name).any()) for name in ("frequency", "birth", "last_use"))
    with pytest.raises(CheckpointError, match="lacks 'birth'"):
        SplatStore.from_state(old | {"frequency": state["frequency"], "last_use": state["last_use"]}, "x")
    for name, value in (("frequency", -state["frequency"]), ("last_use", state["last_use"] - 1000)):
        with pytest.raises(CheckpointError, match="before its birth"):
            SplatStore.from_state(state | {name: value}, "x")


def test_a_higher_temperature_lowers_the_bounds_of_kappa() -> None:
    soc = _config(enable_curriculum_learning=True)
    assert [phase.kappa for phase in phases(soc)] == [(2.5, 125.0), (5.0, 250.0), (10.0, 500.0)]
    store = _store(groups=1)
    hot = replace(store, kappa_min=2.5, kappa_max=40.0)
    assert float(store.kappa.max()) > 100  # planted at 150
    assert torch.equal(hot.kappa, store.kappa.clamp(2.5, 40.0))


# ---- description length --------------------------------------------------------------------------


def _code_length(store: SplatStore) -> float:
    """Code length by definition: splat (less n log N), token and place, each under its best law."""
    nats = 0.0
    for splat, counts in enumerate(_dense(store)):
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
    store = _store(60, kappa=kappa, groups=3)
    for i, j in ((0, 1), (5, 12), (store.n - 1, 0)):
        pair = store.kept((torch.arange(store.n) == i) | (torch.arange(store.n) == j))
        cosine = (store.resultant[i].double() @ store.resultant[j].double()) / (store.length[i] * store.length[j])
        found = merge_cost(store, torch.tensor([i]), torch.tensor([j]), cosine[None])
        expected = _code_length(pair.merged(torch.zeros(2, dtype=torch.int64))) - _code_length(pair)
        # The merged resultant is float32
        assert float(found) == pytest.approx(expected, rel=1e-5, abs=2e-3)


def test_one_kappa_gives_the_general_cost_with_equal_bounds() -> None:
    store = _store(kappa=(25.0, 25.0))
    i, j = torch.arange(store.n - 1), torch.arange(1, store.n)
    cosine = (store.mu[i] * store.mu[j]).sum(1)
    general = merge_cost(replace(store, kappa_max=25.0 + 1e-9), i, j, cosine)
    torch.testing.assert_close(merge_cost(store, i, j, cosine), general, rtol=1e-6, atol=1e-6)


def test_merging_by_description_length_recovers_planted_clusters_better_than_chance() -> None:
    """Purity at equal size: the share of mass whose cluster is the most common in its splat."""
    store = _store(400, groups=10)
    owner = torch.randint(CLUSTERS, (store.n,), generator=torch.Generator().manual_seed(0))
    by_chance = store.merged(owner)
    found = consolidate(store, by_chance.n, select("cpu"))
    assert found.n == by_chance.n

    def purity(of: SplatStore) -> float:
        counts = torch.nn.functional.pad(_dense(of), (0, 3 * CLUSTERS + 3 - V)).view(of.n, -1, 3).sum(2)
        return float(counts.amax(1).sum() / counts.sum())

    assert purity(found) > 0.8
    assert purity(by_chance) < 0.5
    assert float(found.mass.sum()) == pytest.approx(float(store.mass.sum()), rel=1e-12)


# ---- coverage ------------------------------------------------------------------------------------


def test_the_background_is_the_fixed_point_of_em() -> None:
    store = _store(600, groups=1).kept(torch.arange(CLUSTERS) < 7)
    fold = _planted(300, seed=8)[0]
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
    store = _store(600, groups=1).kept(torch.arange(CLUSTERS) < 7)
    states, tokens, which = _planted(500, seed=2)
    history = History.empty(500, D)
    history.add(states, tokens, torch.ones(500) + torch.rand(500, generator=torch.Generator().manual_seed(1)), 3)
    fold = _planted(300, seed=8)[0]
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
    states, _, which = _planted(200, seed=3)
    found = seeds(states, k, torch.Generator().manual_seed(1))
    assert len(found.unique()) == len(found) == min(k, 200)
    assert torch.equal(found, seeds(states, k, torch.Generator().manual_seed(1)))
    if k == 12:  # at random, all 12 clusters would be hit once in 18,000 trials
        assert len(which[found].unique()) >= 10


def test_seeds_of_equal_states_do_not_hang() -> None:
    assert len(seeds(torch.eye(D)[:1].expand(9, D).contiguous(), 9, torch.Generator().manual_seed(1)).unique()) == 9


def test_an_outlier_creates_no_splat() -> None:
    """The original system created a splat for the single most surprising state."""
    states, tokens, _ = _planted(100, seed=3)
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
    store = _store(groups=2)
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
    states, tokens, which = _planted(600, seed=4)
    owner = torch.where(which < 2, 0, which)
    store = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.1, kappa=BOUNDS)
    assert int((store.mass * entropies(store)).argmax()) == 0
    found = split(store, states, tokens, torch.unique(owner, return_inverse=True)[1], 1)
    assert found.n == store.n + 1
    halves = torch.stack([_dense(found)[i].view(-1)[:6].view(2, 3).sum(1) for i in (0, found.n - 1)])
    assert (halves.amax(1) / halves.sum(1) > 0.9).all()
    assert int(halves[0].argmax()) != int(halves[1].argmax())
    assert float(found.mass.sum()) == pytest.approx(600, rel=1e-12)
    assert (found.kappa[[0, found.n - 1]] > 2 * store.kappa[0]).all()


# ---- the controller ------------------------------------------------------------------------------


def test_held_out_states_stay_out_and_others_count_once() -> None:
    """Held-out states have their own token. The mass is exactly what the history has given away."""
    soc = _consolidation(soc_keep=1.0, soc_history=2000)
    for step in (10, 20, 30, 40):
        states, tokens, _ = _planted(200, seed=step)
        apart = torch.arange(200) % 4 == 0
        tokens[apart] = V - 1
        soc.observe(states, tokens, torch.rand(200, generator=torch.Generator().manual_seed(step)), apart, step)
        soc.check(step, lambda _: 0.0)
        assert soc.store is not None
        soc.store._check("x")
        assert not (soc.store.count_token == V - 1).any()
        taken = float((1 - soc.history.left[: soc.history.n]).sum())
        assert float(soc.store.mass.sum()) == pytest.approx(taken, rel=1e-6)
    assert soc.history.n == 600


def test_phi_falls_within_the_capacity() -> None:
    soc = _consolidation(n_splats_init=20, soc_threshold=0.0)
    records = _run(soc, *range(10, 101, 10))
    assert records[0]["phi"] < 0.2
    assert records[-1]["coverage"] > 0.9
    assert all(record["splats"] <= 20 for record in records)
    full = [after for before, after in pairwise(records) if before["splats"] == 20 == after["splats"]]
    assert full
    for record in full:
        assert record["created"] + record["split"] == record["merged"] + record["pruned"]
        assert record["avalanche"] == sum(record[name] for name in ("created", "split", "merged", "pruned"))
        assert record["rate"] == pytest.approx(1000 * record["avalanche"] / record["states"])
    assert any(record["merged"] for record in full)
    json.dumps(records, allow_nan=False)


def test_splats_that_are_not_seen_again_are_pruned() -> None:
    soc = _consolidation(soc_keep=0.5)
    _run(soc, 10)
    assert soc.store is not None
    mass, frequency = float(soc.store.mass.sum()), soc.store.frequency.clone()
    record = soc.check(20, lambda _: 0.0)
    assert soc.store is not None
    assert float(soc.store.mass.sum()) == pytest.approx(mass / 2, rel=1e-9)
    assert record["pruned"] == 0
    assert torch.equal(soc.store.frequency, frequency)  # frequency never fades
    pruned = sum(soc.check(step, lambda _: 0.0)["pruned"] for step in range(30, 101, 10))
    assert pruned > 0
    assert soc.store is None or (soc.store.mass >= 0.5).all()


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_weight_decay_acts_per_epoch_and_only_on_old_splats(decay: float) -> None:
    """Two checks are one epoch of 20 steps; splats older than that lose `decay` of their mass."""
    soc = _consolidation(soc_keep=1.0, splat_weight_decay=decay)
    _run(soc, 10)
    assert soc.store is not None
    whole = float(soc.store.mass.sum())
    masses = []
    for step in (20, 30, 40, 50):
        soc.check(step, lambda _: 0.0)
        masses.append(float(soc.store.mass.sum()) if soc.store else 0.0)
    assert masses[:2] == pytest.approx([whole, whole])  # 10 and 20 steps old, at most an epoch
    assert masses[3] == pytest.approx((1 - decay) * whole, rel=1e-9)


def test_a_growth_is_kept_only_if_it_does_not_worsen_the_model() -> None:
    worse = {"better": lambda s: -s.n if s else 0.0, "worse": lambda s: s.n if s else 0.0}
    found = {}
    for name, judge in worse.items():
        soc = _consolidation(enable_curriculum_learning=True, curriculum_epochs=3.0, soc_threshold=0.0)
        _run(soc, 10)
        left = soc.history.left[: soc.history.n].clone()
        assert soc.store is not None
        before = soc.store.n
        _observe(soc, 20)
        record = soc.check(20, judge)  # a third of three epochs of 20 steps
        assert record["growth"]["phase"] == 1
        assert record["growth"]["accepted"] == (name == "better")
        found[name] = record
        if name == "worse":
            assert (record["phase"], record["capacity"], record["splats"]) == (0, 10, before)
            assert (record["created"], record["split"], record["merged"]) == (0, 0, 0)
            assert torch.equal(soc.history.left[: len(left)], left)
            assert (soc.store.kappa_min, soc.store.kappa_max) == (2.5, 125.0)
            # The judge isn't asked again at once.
            assert _run(soc, 30, judge=judge)[0]["growth"] is None
        else:
            assert (record["phase"], record["capacity"]) == (1, 60)
            assert record["splats"] > before
            assert (soc.store.kappa_min, soc.store.kappa_max) == (5.0, 250.0)
    assert found["better"]["splats"] > found["worse"]["splats"]


def test_the_curriculum_matches_the_original_system() -> None:
    config = SplatConfig()
    assert [phase.capacity for phase in phases(config)] == [5_000, 30_000, 50_000]
    assert [phase.capacity for phase in phases(replace(config, enable_curriculum_learning=False))] == [10_000]
    # Five epochs
    assert [due(config, step, 1000, 100) for step in (1, 166, 167, 333, 334, 1000)] == [0, 0, 1, 1, 2, 2]
    # A shorter run
    assert [due(config, step, 300, 100) for step in (99, 100, 200, 300)] == [0, 1, 2, 2]
    assert [threshold(config, step, 100) for step in (0, 50, 100)] == pytest.approx([0.8, 0.5, 0.2])
    assert threshold(replace(config, soc_threshold=0.1), 100, 100) == pytest.approx(0.1)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_gives_the_same_splats_bit_for_bit(stop: int) -> None:
    how = {"enable_curriculum_learning": True, "curriculum_epochs": 3.0, "soc_threshold": 0.5}
    steps = [10, 20, 30, 40, 50]
    whole, first, then = (_consolidation(**how) for _ in range(3))
    _run(whole, *steps)
    _run(first, *steps[:stop])
    _observe(first, 1000, n=33)  # between two checks, so that pending states must be kept, too
    _observe(whole, 1000, n=33)
    then.restore({name: value.clone() for name, value in first.state().items()}, "x")
    for name, value in first.state().items():
        assert torch.equal(value, then.state()[name]), name
    one, two = (_run(of, *steps[stop:], 60) for of in (first, then))
    for record in (*one, *two):
        del record["seconds"]
    assert one == two
    assert first.state().keys() == then.state().keys()
    assert [name for name, value in first.state().items() if not torch.equal(value, then.state()[name])] == []


def test_the_global_random_generator_is_not_used() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _run(_consolidation(), 10, 20)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("counter.phi", None, "lacks 'counter.phi'"),
        ("counter.phase", lambda t: t + 5, "phase 5"),
        ("history.states", lambda t: t[1:], "history's states"),
        ("fold.left", None, "left is missing"),
        ("store.count", lambda t: t + 1, "do not add up"),
    ],
)
def test_damaged_states_are_refused(name: str, damage: Callable[[Tensor], Tensor] | None, words: str) -> None:
    soc = _consolidation()
    _run(soc, 10)
    state = soc.state()
    state = {**state, name: damage(state[name])} if damage else {k: v for k, v in state.items() if k != name}
    with pytest.raises(CheckpointError, match=words):
        _consolidation().restore(state, "x")


def test_a_state_without_splats_loads_without_splats() -> None:
    state = _consolidation().state()
    assert store_of(state, "x") is None
    soc = _consolidation()
    soc.restore(state, "x")
    assert soc.store is None


# ---- history and health --------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3], [10, 1], [4, 4, 4, 4], [25, 2]])
def test_the_history_holds_the_last_states(sizes: list[int]) -> None:
    history, told = History.empty(10, 2), []
    g = torch.Generator().manual_seed(0)
    for step, size in enumerate(sizes):
        states = torch.randn(size, 2, generator=g)
        history.add(states, torch.arange(size) + 100 * step, states[:, 0], step)
        told += [(step, 100 * step + i) for i in range(size)]
    last = told[-10:]
    assert sorted(zip(history.steps[: history.n].tolist(), history.tokens[: history.n].tolist(), strict=True)) == last
    order = history.unassigned()
    assert list(zip(history.steps[order].tolist(), history.tokens[order].tolist(), strict=True)) == last
    assert torch.equal(history.energies[: history.n], history.states[: history.n, 0])
    history.assigned()
    assert len(history.unassigned()) == 0
    history.add(torch.ones(1, 2), torch.ones(1, dtype=torch.int64), torch.ones(1), 9)
    assert history.tokens[history.unassigned()].tolist() == [1]


def test_health_has_the_right_figures() -> None:
    store = _store()
    found = health(store, nearest_angles(store, Reference(), ASKED)[1], step=100, since=60, steps_per_epoch=20)
    json.dumps(found, allow_nan=False)
    assert found["splats"] == store.n == found["active"] + found["dead"]
    assert found["dead"] == int((store.last_use < 60).sum())
    assert found["mass"] == 300
    angles = dist(store.mu[:, None].double(), store.mu[None].double()) + 9 * torch.eye(store.n)
    assert found["nearest_angle"] == pytest.approx(float(angles.amin(1).mean()), rel=1e-5)
    assert found["age_epochs"] == pytest.approx(float((100 - store.birth).double().mean()) / 20)
    assert (found["kappa_quantiles"][0], found["kappa_quantiles"][4]) == (store.kappa.min(), store.kappa.max())
    x = store.frequency
    difference = (x[:, None] - x[None]).abs().sum() / (2 * len(x) ** 2 * x.mean())
    assert found["usage_gini"] == pytest.approx(float(difference))
    assert gini(torch.zeros(3)) == gini(torch.ones(3)) == 0
    single = store.kept(torch.arange(store.n) == 0)
    one = health(single, nearest_angles(single, Reference(), ASKED)[1], step=100, since=60, steps_per_epoch=20)
    assert (one["splats"], one["nearest_angle"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_splats_init": 200_000}, "--n-splats-init 200000 exceeds --max-splats 150000"),
        (
            {"curriculum_target_splats": 20, "max_splats": 10, "n_splats_init": 1},
            "--curriculum-target-splats 20 exceeds",
        ),
        ({"min_kappa": 60.0}, "--min-kappa 60.0 exceeds --max-kappa"),
        ({"soc_history": 50}, "--soc-history 50 is below --soc-check-interval 100"),
        ({"soc_threshold": math.nan}, "--soc-threshold nan is not finite"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(configure(Config(), values))
