"""Static memory splats: how they are built and gated, and their files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mpmath
import pytest
import torch
from safetensors.torch import load_file, save_file
from splats_support import (
    BOUNDS,
    D,
    V,
    brute_force,
    dense_counts,
    make_gate,
    make_lexical,
    make_memory,
    make_store,
    members,
)
from torch import Tensor

from ebmvk.engine import select
from ebmvk.engine.reference import Reference
from ebmvk.errors import CheckpointError, DataError
from ebmvk.memory.gate import fit_gate, mix
from ebmvk.memory.law import TIERS, Control, Memory, Reader, log_probs
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c_ratio
from ebmvk.splats.build import cluster
from ebmvk.splats.recall import Splats, log_density
from ebmvk.splats.store import SplatStore

# ---- static --------------------------------------------------------------------------------------


def test_clusters_are_tight_and_repeatable() -> None:
    states, tokens, owner = members(2000, splats=16)
    found = cluster(states, tokens, 64, Reference(), seed=3)
    assert torch.equal(found, cluster(states, tokens, 64, Reference(), seed=3))
    store = SplatStore.gather(states, tokens, found, vocab_size=V, beta=0.5, kappa=BOUNDS)
    assert 32 <= store.n <= 64
    true = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.5, kappa=BOUNDS)
    # 64 clusters inside the 16 true ones are tighter than these.
    assert store.length.sum() > true.length.sum()
    with pytest.raises(DataError, match="fewer than --splats 2,001"):
        cluster(states, tokens, 2001, Reference(), seed=3)


def test_marked_contexts_share_the_token_that_followed() -> None:
    """Tokens are independent of places. Without marks, clusters mix tokens; with marks, token laws
    are purer, and places still separate contexts with one token.
    """
    g = torch.Generator().manual_seed(0)
    states = projx(torch.randn(1500, D, generator=g))
    tokens, marks = torch.randint(0, 4, (1500,), generator=g), torch.eye(4)
    entropies, lengths = [], []
    for weight in (0.0, 1.0):
        owner = cluster(states, tokens, 40, Reference(), 3, weight * marks)
        store = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.5, kappa=BOUNDS)
        law = dense_counts(store) / store.mass[:, None]
        entropies.append(float((store.mass * torch.special.entr(law).sum(1)).sum() / 1500))
        lengths.append(float(store.length.sum()) / 1500)
    assert entropies[0] > 1.2  # of log 4 = 1.386
    assert entropies[1] < 0.4
    assert lengths[1] > 0.45  # one cluster of each token would have about 0.05
    assert torch.equal(
        cluster(states, tokens, 40, Reference(), 3, 0 * marks), cluster(states, tokens, 40, Reference(), 3)
    )


@pytest.mark.parametrize("splats", [1, 2, 3, 50])
def test_clustering_works_for_any_number_of_splats(splats: int) -> None:
    states, tokens, _ = members(50)
    assert 1 <= len(cluster(states, tokens, splats, Reference(), seed=0).unique()) <= splats


# ---- gate ----------------------------------------------------------------------------------------


def test_a_fitted_gate_finds_the_better_law() -> None:
    """Feature 0 tells if the memory is right, feature 1 is noise; the optimum is found to 1 %."""
    g = torch.Generator().manual_seed(0)
    right = torch.rand(4000, generator=g) < 0.3
    features = torch.stack((right.float() * 2 - 1, torch.randn(4000, generator=g)), dim=1)
    good, bad = math.log(0.9), math.log(0.01)
    log_p = torch.where(right[:, None], torch.tensor([bad, good]), torch.tensor([good, bad]))
    gate = fit_gate(features, log_p, ridge=0.0)
    nats = -float(mix(gate.log_weights(features), log_p).mean())
    assert nats == pytest.approx(-good, rel=0.01)
    held = gate.log_weights(features).exp()
    torch.testing.assert_close(held.sum(1), torch.ones(4000))


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [True, False])
def test_a_memory_survives_saving_and_loading(static: bool, tmp_path: Path) -> None:
    memory, mode = make_memory(half_life=99.0), "both"
    if not static:
        alone, other = ({"episodic": make_gate("episodic", bias)} for bias in (-0.5, 0.1))
        memory, mode = replace(memory, static=None, gates=alone, control=Control(0.2, 0.3, other)), "episodic"
    save_file(memory.state(), tmp_path / "memory.safetensors")
    back = Memory.from_state(load_file(tmp_path / "memory.safetensors"), "memory.safetensors")
    assert (back.episodic, back.k, back.share) == (memory.episodic, memory.k, memory.share)
    assert set(back.gates) == set(memory.gates)
    states, tokens, _ = members(100, seed=2)
    readers = [Reader(m, mode, Reference()) for m in (memory, back)]  # type: ignore[arg-type]
    terms = [reader.read(states, make_lexical(100), tokens) for reader in readers]
    assert torch.equal(terms[0].log_p, terms[1].log_p)
    assert terms[0].calibrated is not None
    assert terms[1].calibrated is not None
    assert torch.equal(terms[0].calibrated, terms[1].calibrated)
    assert back.control
    assert (back.control.share, back.control.episodic_share) == (0.2, 0.3)
    assert set(back.control.gates) == set(back.gates)


def test_old_files_without_a_calibration_load_without_one() -> None:
    state = {name: value for name, value in make_memory().state().items() if "calibration" not in name}
    found = Memory.from_state(state, "x.safetensors")
    assert (found.calibration, found.control is None) == (None, False)
    state = {name: value for name, value in state.items() if "control" not in name}
    found = Memory.from_state(state, "x.safetensors")
    assert (found.calibration, found.control) == (None, None)
    states, tokens, _ = members(20, seed=2)
    terms = Reader(found, "both", Reference()).read(states, make_lexical(20), tokens)
    assert set(log_probs(terms, found.gates, "both")) == set(TIERS)


def test_the_control_has_its_own_shares_and_gates() -> None:
    memory = make_memory()
    found = memory.using(None, scramble=True)
    assert (found.share, found.episodic.share, found.episodic.scramble) == (0.2, 0.3, True)
    assert memory.control
    assert found.gates is memory.control.gates
    before = replace(memory, control=None).using(None, scramble=True)
    assert (before.share, before.gates) == (memory.share, memory.gates)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("static.mass", None, "lacks 'mass'"),
        ("static.mass", lambda t: -t, "do not add up"),
        ("static.resultant", lambda t: t * math.nan, "resultant is not finite"),
        ("static.resultant", lambda t: t * 9, "longer than its mass"),
        ("static.resultant", lambda t: t[:-1], "resultant is"),
        ("static.count", lambda t: t + 1, "do not add up"),
        ("static.count_token", lambda t: t + V, "count_token is outside"),
        ("static.count_token", lambda t: t.flip(0), "does not rise"),
        ("static.count_start", lambda t: t.flip(0), "rising list"),
        ("static.kappa_min", lambda t: t * 0, "are not positive"),
        ("static.kappa_max", lambda t: t * 0, "are not positive"),
        ("static.vocab_size", lambda t: t + 1, "not of 12 and 30"),
        ("number.episodic.kappa", None, "lacks 'episodic.kappa'"),
        ("number.share", lambda t: t + 1, "share 1.4"),
        ("number.episodic.share", lambda t: -t, "episodic.share -0.7"),
        ("number.episodic.capacity", lambda t: t * math.nan, "capacity"),
        ("gate.static.weight", lambda t: t[:, 1:], "gate.static.weight"),
        ("gate.both.bias", None, "gate.both.bias"),
        ("gate.episodic.mean", lambda t: t * math.inf, "gate.episodic.mean"),
        ("calibration.gate.weight", lambda t: t[:, 1:], "calibration.gate.weight"),
        ("number.calibration.power", None, "lacks 'calibration.power'"),
        ("number.calibration.power", lambda t: t * math.nan, "calibration.power nan"),
        ("number.control.share", lambda t: t + 1, "control.share 1.2"),
        ("number.control.episodic.share", None, "lacks 'control.episodic.share'"),
        ("control.gate.both.bias", None, "control.gate.both.bias"),
    ],
)
def test_damaged_files_are_refused(name: str, damage: Callable[[Tensor], Tensor] | None, words: str) -> None:
    state = make_memory().state()
    if damage is None:
        del state[name]
    else:
        state[name] = damage(state[name])
    with pytest.raises(CheckpointError, match=words):
        Memory.from_state(state, "x.safetensors")


def test_old_files_without_shares_load_with_share_one() -> None:
    state = {name: value for name, value in replace(make_memory(), control=None).state().items() if "share" not in name}
    found = Memory.from_state(state, "x.safetensors")
    assert (found.share, found.episodic.share) == (1.0, 1.0)
    for other in ("number.share", "number.episodic.share"):
        with pytest.raises(CheckpointError, match="lacks"):
            Memory.from_state({**state, other: torch.tensor(0.5)}, "x.safetensors")


def test_weights_use_the_normaliser_relative_to_uniform() -> None:
    store = make_store()
    expected = store.mass.log() + log_c_ratio(store.kappa.double(), D)
    torch.testing.assert_close(store.logw.double(), expected, rtol=1e-5, atol=0)
    assert store.background == store.mass.sum()


def test_scrambling_swaps_only_directions() -> None:
    store = make_store()
    other = store.scrambled(seed=1)
    other._check("x")
    torch.testing.assert_close(other.mu[other.mu[:, 0].argsort()], store.mu[store.mu[:, 0].argsort()])
    assert torch.equal(dense_counts(other), dense_counts(store))
    assert not torch.allclose(other.mu, store.mu)


# ---- the density of a context, where the background outweighs the splats -------------------------


def test_the_log_density_is_exact_when_the_background_dominates() -> None:
    """Compared with 50 digits; values are near -1e-4 and differ by 1e-8 of that."""
    mass, background = 120_408.0, 1.2e9
    scores = torch.tensor([[3.0, 2.5], [4.0, -math.inf], [9.5, 11.0], [30.0, 1.0], [-math.inf, -math.inf]])
    found = log_density(scores, mass, background)
    with mpmath.workdps(50):
        for row, value in zip(scores.tolist(), found.tolist(), strict=True):
            likelihood = mpmath.fsum(mpmath.exp(score) for score in row)
            exact = mpmath.log((background + likelihood) / (mpmath.mpf(background) + mass))
            assert value == pytest.approx(float(exact), rel=1e-14, abs=0)
    assert float(log_density(torch.tensor([[900.0, 1.0]]), mass, background)) == pytest.approx(
        900 - math.log(mass + background)  # too large for an exponential in float64
    )


def test_shifting_a_feature_does_not_change_the_gate() -> None:
    """The feature has equal differences, exact in float32, around 0 and around 100, which is
    800,000 times as large."""
    good = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.5
    log_p = torch.stack((torch.where(good, -3.0, -1.0), torch.where(good, -1.0, -3.0)), dim=1)
    near = good[:, None] * 2.0**-13
    found = [fit_gate(features, log_p).log_weights(features) for features in (near, near + 100)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_nearly_empty_memory_recalls_the_exact_log_density(device: str) -> None:
    store = make_store((5.0, 5.0), background=1e6 * 400)
    h = projx(torch.randn(50, D, generator=torch.Generator().manual_seed(3)))
    found = Splats.open(store, select(device), 64).recall(h).log_density.double()
    exact = brute_force(store, h)[1]
    # float32 scores leave a relative error of 1e-6 in the part that varies.
    assert float((found - exact).abs().max()) < 1e-5 * float(exact.std())
