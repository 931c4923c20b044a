"""The controller of consolidation, its history, and its health."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from consolidation_support import V, make_consolidation, make_store, observe, planted, run
from torch import Tensor

from ebmvk.config.checks import check
from ebmvk.config.schema import Config, SplatConfig
from ebmvk.config.schema import replace as configure
from ebmvk.engine.reference import Reference
from ebmvk.errors import CheckpointError, ConfigError
from ebmvk.sphere.geometry import dist
from ebmvk.splats.curriculum import due, phases, threshold
from ebmvk.splats.health import ASKED, gini, health, nearest_angles
from ebmvk.splats.history import History
from ebmvk.splats.soc import store_of

# ---- the controller ------------------------------------------------------------------------------


def test_held_out_states_stay_out_and_others_count_once() -> None:
    """Held-out states have their own token. The mass is exactly what the history has given away."""
    soc = make_consolidation(soc_keep=1.0, soc_history=2000)
    for step in (10, 20, 30, 40):
        states, tokens, _ = planted(200, seed=step)
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
    soc = make_consolidation(n_splats_init=20, soc_threshold=0.0)
    records = run(soc, *range(10, 101, 10))
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
    soc = make_consolidation(soc_keep=0.5)
    run(soc, 10)
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
    soc = make_consolidation(soc_keep=1.0, splat_weight_decay=decay)
    run(soc, 10)
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
        soc = make_consolidation(enable_curriculum_learning=True, curriculum_epochs=3.0, soc_threshold=0.0)
        run(soc, 10)
        left = soc.history.left[: soc.history.n].clone()
        assert soc.store is not None
        before = soc.store.n
        observe(soc, 20)
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
            assert run(soc, 30, judge=judge)[0]["growth"] is None
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
    first, then = make_consolidation(**how), make_consolidation(**how)
    run(first, *steps[:stop])
    observe(first, 1000, n=33)  # between two checks, so that pending states must be kept, too
    then.restore({name: value.clone() for name, value in first.state().items()}, "x")
    for name, value in first.state().items():
        assert torch.equal(value, then.state()[name]), name
    one, two = (run(of, *steps[stop:], 60) for of in (first, then))
    for record in (*one, *two):
        del record["seconds"]
    assert one == two
    assert first.state().keys() == then.state().keys()
    assert [name for name, value in first.state().items() if not torch.equal(value, then.state()[name])] == []


def test_the_global_random_generator_is_not_used() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(make_consolidation(), 10, 20)
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
    soc = make_consolidation()
    run(soc, 10)
    state = soc.state()
    state = {**state, name: damage(state[name])} if damage else {k: v for k, v in state.items() if k != name}
    with pytest.raises(CheckpointError, match=words):
        make_consolidation().restore(state, "x")


def test_a_state_without_splats_loads_without_splats() -> None:
    state = make_consolidation().state()
    assert store_of(state, "x") is None
    soc = make_consolidation()
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
    store = make_store()
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
