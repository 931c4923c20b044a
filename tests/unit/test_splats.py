"""Splats: additive statistics, exact token laws, consolidation, both tiers, gate, and files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ebmvk.engine import select
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError, CheckpointError, ConfigError, DataError
from ebmvk.memory import calibration
from ebmvk.memory.calibration import Calibration
from ebmvk.memory.episodic import Episodic, EpisodicConfig
from ebmvk.memory.gate import LEXICAL, Gate, fit_gate, mix
from ebmvk.memory.law import TIERS, Control, Memory, Mode, Reader, log_probs
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c, log_c_ratio, sample_vmf
from ebmvk.splats.build import cluster
from ebmvk.splats.consolidation import consolidate, merge_cost
from ebmvk.splats.recall import FEATURES, Splats, log_density, log_of
from ebmvk.splats.store import SplatStore

D, V = 12, 30
BOUNDS = (10.0, 500.0)


def _members(n: int = 400, splats: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Clustered states (n, d), tokens that depend on the cluster, owners; cluster 0 is single."""
    g = torch.Generator().manual_seed(seed)
    centres = projx(torch.randn(splats, D, generator=g))
    owner = torch.randint(1, splats, (n,), generator=g)
    owner[0] = 0
    states = sample_vmf(centres[owner], 60.0, generator=g)
    tokens = (owner * 3 + torch.randint(0, 4, (n,), generator=g)) % V
    return states, tokens, owner


def _store(kappa: tuple[float, float] = BOUNDS, **changes: float) -> SplatStore:
    return replace(SplatStore.gather(*_members(), vocab_size=V, beta=0.5, kappa=kappa), **changes)


def _singles(n: int, seed: int = 0) -> SplatStore:
    states, tokens, _ = _members(n, seed=seed)
    return SplatStore.gather(states, tokens, torch.arange(n), vocab_size=V, beta=0.5, kappa=(20.0, 20.0))


def _gate(mode: Mode, bias: float = -0.5) -> Gate:
    g = torch.Generator().manual_seed(5)
    tiers = len(TIERS[mode])
    wide = LEXICAL + FEATURES * tiers
    weight = 0.3 * torch.randn(tiers, wide, generator=g)
    return Gate(weight, torch.full((tiers,), bias), torch.zeros(wide), torch.ones(wide))


def _memory(**episodic: float) -> Memory:
    gates: dict[Mode, Gate] = {mode: _gate(mode) for mode, tiers in TIERS.items() if tiers}
    config = EpisodicConfig(**{"capacity": 60, "k": 5, **episodic})  # type: ignore[arg-type]
    other: dict[Mode, Gate] = {mode: _gate(mode, 0.1) for mode in gates}
    found = Memory(D, V, _store(background=40.0), 5, 0.4, config, gates)
    return replace(found, calibration=_calibration(), control=Control(0.2, 0.3, other))


def _calibration() -> Calibration:
    g = torch.Generator().manual_seed(6)
    weight, wide = 0.3 * torch.randn(1, calibration.FEATURES, generator=g), torch.zeros(calibration.FEATURES)
    return Calibration(0.6, Gate(weight, torch.tensor([0.2]), wide, wide + 1))


def _lexical(n: int, seed: int = 4) -> Tensor:
    return torch.log_softmax(3 * torch.randn(n, V, generator=torch.Generator().manual_seed(seed)), -1)


# ---- statistics ----------------------------------------------------------------------------------


def _dense(store: SplatStore) -> Tensor:
    return torch.zeros(store.n, V, dtype=torch.float64).index_put_((store.row, store.count_token), store.count)


def test_statistics_are_sums() -> None:
    states, tokens, owner = _members()
    store = _store()
    dense = _dense(store)
    for splat in range(store.n):
        mine = owner == splat
        assert store.mass[splat] == mine.sum()
        torch.testing.assert_close(store.resultant[splat], states[mine].sum(0), rtol=1e-6, atol=1e-5)
        assert torch.equal(dense[splat], torch.bincount(tokens[mine], minlength=V).double())


def test_states_may_come_in_half_precision() -> None:
    states, tokens, owner = _members()
    half = SplatStore.gather(states.half(), tokens, owner, vocab_size=V, beta=0.5, kappa=BOUNDS)
    torch.testing.assert_close(half.resultant, _store().resultant, rtol=1e-3, atol=1e-2)
    with pytest.raises(ArgumentError, match="do not belong together"):
        SplatStore.gather(states, tokens[1:], owner, vocab_size=V, beta=0.5, kappa=BOUNDS)


def test_merging_and_joining_equal_gathering_again() -> None:
    """Statistics add, so the result equals the store gathered from the members."""
    states, tokens, owner = _members()
    settings = {"vocab_size": V, "beta": 0.5, "kappa": BOUNDS}
    fine = SplatStore.gather(states, tokens, torch.arange(len(owner)), **settings)  # type: ignore[arg-type]
    first = SplatStore.gather(states[:150], tokens[:150], torch.arange(150), **settings)  # type: ignore[arg-type]
    rest = SplatStore.gather(states[150:], tokens[150:], torch.arange(250), **settings)  # type: ignore[arg-type]
    for found in (fine.merged(owner), first.joined(rest).merged(owner)):
        for name in ("mass", "count_start", "count_token", "count"):
            assert torch.equal(getattr(found, name), getattr(_store(), name)), name
        torch.testing.assert_close(found.resultant, _store().resultant, rtol=1e-6, atol=1e-5)
        found._check("x")


def test_keeping_some_splats_equals_gathering_them() -> None:
    store, keep = _store(), torch.tensor([True, False, True, True, False, False, True, True, False])
    found = store.kept(keep)
    found._check("x")
    assert torch.equal(_dense(found), _dense(store)[keep])
    assert torch.equal(found.resultant, store.resultant[keep])


def test_kappa_is_recovered_and_clipped() -> None:
    """From 4,000 vMF samples kappa is recovered to 2 %; a single point gives the lower bound."""
    g = torch.Generator().manual_seed(1)
    levels = [25.0, 120.0, 3000.0, 1e-3]
    states = torch.cat([sample_vmf(torch.eye(D)[:1].expand(4000, -1), level, generator=g) for level in levels])
    owner = torch.arange(len(levels)).repeat_interleave(4000)
    tokens = torch.zeros(len(states), dtype=torch.int64)
    store = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=1, kappa=BOUNDS)
    torch.testing.assert_close(store.kappa[:2], torch.tensor([25.0, 120.0]), rtol=0.02, atol=0)
    assert store.kappa[2:].tolist() == [500.0, 10.0]
    assert _store().kappa[0] == 10.0
    assert store.at(33.0).kappa.tolist() == [33.0] * 4


def test_a_fit_on_contexts_inside_the_splats_is_misleading() -> None:
    """Tokens are independent of places, so memory is useless.

    If splats contain the contexts they are fitted on, the gate goes to 1, and other texts pay for
    it. If they don't, the fit finds that the memory is useless.
    """
    g = torch.Generator().manual_seed(3)
    states, tokens = projx(torch.randn(600, D, generator=g)), torch.randint(0, V, (600,), generator=g)
    mine, rest, fresh = slice(200), slice(200, 400), slice(400, 600)
    # A gate of one number
    lexical, constant = torch.full((200, 1), -math.log(V)), torch.zeros(200, 1)
    kept, gained = {}, {}
    for name, held in {"trap": slice(400), "left out": rest}.items():
        owner = torch.arange(len(states[held]))
        store = SplatStore.gather(states[held], tokens[held], owner, vocab_size=V, beta=0.3, kappa=(200.0, 200.0))
        # So that the memory has a say everywhere
        splats = Splats.open(replace(store, background=1e-30), Reference(), 16)
        own, other = (
            torch.cat((lexical, log_of(splats.recall(states[of]).law.gather(1, tokens[of, None]))), dim=1)
            for of in (mine, fresh)
        )
        gate = fit_gate(constant, own).log_weights(constant)
        kept[name] = float(gate[0, 1].exp())
        gained[name] = [float((mix(gate, log_p) - log_p[:, 0]).mean()) for log_p in (own, other)]
    assert kept["trap"] > 0.95
    assert kept["left out"] < 0.1
    assert gained["trap"][0] > 2
    assert gained["trap"][1] < -0.5
    assert max(map(abs, gained["left out"])) < 0.05


# ---- token laws ----------------------------------------------------------------------------------


def _brute_force(store: SplatStore, h: Tensor) -> tuple[Tensor, Tensor]:
    """p_mem (B, V) and the log density, over all splats, with C_d itself, in float64."""
    total = store.mass.sum() + store.background
    kappa = store.kappa.double()
    weight = (store.mass / total) * (log_c(kappa, D) + kappa * (h.double() @ store.mu.double().T)).exp()
    uniform = log_c(torch.zeros(1), D)
    background = store.background / total * uniform.exp()
    density = weight.sum(1) + background
    laws = (_dense(store) + store.beta / V) / (_dense(store).sum(1, keepdim=True) + store.beta)
    return (weight / density[:, None]) @ laws + (background / density)[:, None] / V, density.log() - uniform


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_recall_matches_the_formula(device: str) -> None:
    store = _store(background=40.0)
    h = projx(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))
    found = Splats.open(store, select(device), 64).recall(h)
    law, log_density = _brute_force(store, h)
    # float32 exponents up to kappa = 100 are good to 1e-5.
    torch.testing.assert_close(found.law.double(), law, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.closest, (h @ store.mu.T).amax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.log_density.double(), log_density, rtol=0, atol=5e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_pool_is_the_product_of_powers(share: float) -> None:
    """Compared in float64: the lexical law at s = 0, the splats' law at s = 1, and the features."""
    store, lexical = _store(background=40.0), _lexical(6)
    h = projx(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))
    found, features = Splats.open(store, Reference(), 64).recall(h).pooled(lexical, share)
    law, log_density = _brute_force(store, h)
    product = law**share * lexical.double().exp() ** (1 - share)
    pool = product / product.sum(1, keepdim=True)
    torch.testing.assert_close(found.double(), pool.log(), rtol=0, atol=2e-4)
    closest, entropy = (h @ store.mu.T).amax(1).double(), -(pool * pool.log()).sum(1)
    expected = torch.stack((closest, log_density, entropy, pool.log().amax(1)), dim=1)
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("k", [1, 4, 64])
@pytest.mark.parametrize("mode", ["static", "episodic", "both"])
def test_the_law_sums_to_one(mode: Mode, k: int) -> None:
    memory = replace(_memory(k=k), k=k)
    states, tokens, _ = _members(150, seed=2)
    reader = Reader(memory, mode, Reference())
    for read in (0, 40, 110):  # nothing read, some of it folded, all of it consolidated
        reader.read(states[:read], _lexical(read), tokens[:read])
        mixed = reader.log_prob(states[130:], _lexical(20))
        torch.testing.assert_close(mixed.exp().sum(1), torch.ones(20), rtol=0, atol=1e-5)
        assert (mixed - _lexical(20)).abs().max() > 0.1


@pytest.mark.parametrize("power", [0.0, 0.6, 1.5])
def test_the_calibrated_law_mixes_the_law_with_its_power(power: float) -> None:
    """Compared with numpy in float64; it sums to one, and tokens get the entries of the law."""
    own, lexical = replace(_calibration(), power=power), _lexical(40)
    log_p = lexical.double().numpy()
    flat = np.exp(power * log_p)
    flat /= flat.sum(1, keepdims=True)
    entropies = [-(law * np.log(law)).sum(1) for law in (np.exp(log_p), flat)]
    largest = [np.log(law).max(1) for law in (np.exp(log_p), flat)]
    features = np.stack([entropies[0], largest[0], entropies[1], largest[1]], 1)
    g = 1 / (1 + np.exp(-(features @ own.gate.weight[0].double().numpy() + float(own.gate.bias))))
    expected = np.log((1 - g[:, None]) * np.exp(log_p) + g[:, None] * flat)
    found = own.log_prob(lexical)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(40), rtol=0, atol=1e-5)
    tokens = torch.arange(40) % V
    torch.testing.assert_close(own.of_tokens(lexical, tokens), found[torch.arange(40), tokens])


def test_reading_several_shares_at_once_equals_one_by_one() -> None:
    memory = _memory()
    states, tokens, _ = _members(100, seed=2)
    wanted = [[0.2, 1.0], [0.7, 0.3]]
    found = Reader(memory, "both", Reference()).read_at(states, _lexical(100), tokens, wanted)
    for terms, (static, episodic) in zip(found, wanted, strict=True):
        one = memory.with_share("static", static).with_share("episodic", episodic)
        alone = Reader(one, "both", Reference()).read(states, _lexical(100), tokens)
        assert torch.equal(terms.log_p, alone.log_p)
        assert torch.equal(terms.features, alone.features)


def test_reading_scores_tokens_by_the_law() -> None:
    """The terms of the tokens that follow are entries of the laws, token by token."""
    memory = _memory()
    states, tokens, _ = _members(100, seed=2)
    lexical = _lexical(100)
    whole, steps = Reader(memory, "both", Reference()), Reader(memory, "both", Reference())
    found = log_probs(whole.read(states, lexical, tokens), memory.gates, "both")
    assert set(found) == {"calibrated", *TIERS}
    for i in range(100):
        row = slice(i, i + 1)
        expected = steps.log_prob(states[row], lexical[row])[0, tokens[i]]
        # The order of float32 sums differs.
        torch.testing.assert_close(found["both"][i].float(), expected, rtol=0, atol=1e-4)
        steps.read(states[row], lexical[row], tokens[row])
    assert whole.splats() == steps.splats()


# ---- episodic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_episodic_memory_mixes_over_all_earlier_contexts(device: str) -> None:
    """Compared with brute force over all earlier contexts, while nothing is merged or forgotten."""
    states, tokens, _ = _members(90, seed=2)
    memory = Episodic(EpisodicConfig(capacity=400, k=400, kappa=15.0, half_life=math.inf), select(device), D, V)
    memory.recent = 32
    found = memory.read(states, tokens)
    for i in range(1, 90):
        own = {"vocab_size": V, "beta": 0.0, "kappa": (15.0, 15.0)}
        store = SplatStore.gather(states[:i], tokens[:i], torch.arange(i), **own)  # type: ignore[arg-type]
        law, log_density = _brute_force(store, states[i : i + 1])
        torch.testing.assert_close(found.law[i : i + 1].double(), law, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found.log_density[i].double(), log_density[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(found.law[0], torch.full((V,), 1 / V))


@pytest.mark.parametrize("scramble", [False, True])
def test_later_text_does_not_change_earlier_laws(scramble: bool) -> None:
    """Permute contexts and tokens after a point: the laws up to it stay the same, bit for bit."""
    backend = select("cpu")
    states, tokens, _ = _members(300, seed=2)
    for cut in (1, 37, 190):
        later = cut + torch.randperm(300 - cut, generator=torch.Generator().manual_seed(1))
        other = torch.cat((torch.arange(cut), later))
        permuted = torch.cat((states[: cut + 1], states[other][cut + 1 :]))
        laws = []
        # The context at the cut has been read, its token has not.
        for h, following in ((states, tokens), (permuted, tokens[other])):
            memory = Episodic(EpisodicConfig(capacity=64, k=5, scramble=scramble), backend, D, V)
            laws.append(memory.read(h, following).law[: cut + 1])
        assert torch.equal(*laws)


def test_reading_in_pieces_changes_only_rounding() -> None:
    states, tokens, _ = _members(300, seed=2)
    whole = Episodic(EpisodicConfig(capacity=64, k=5), Reference(), D, V)
    parts = Episodic(EpisodicConfig(capacity=64, k=5), Reference(), D, V)
    law = torch.cat([parts.read(h, t).law for h, t in zip(states.split(7), tokens.split(7), strict=True)])
    torch.testing.assert_close(whole.read(states, tokens).law, law, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("capacity", [2, 3, 20, 64])
def test_eviction_keeps_mass_and_the_capacity(capacity: int) -> None:
    states, tokens, _ = _members(300, seed=2)
    memory = Episodic(EpisodicConfig(capacity=capacity, k=5, half_life=math.inf), Reference(), D, V)
    for at in range(0, 300, 25):
        memory.read(states[at : at + 25], tokens[at : at + 25])
        assert memory.n <= capacity
        assert memory.mass == pytest.approx(at + 25, rel=1e-12)
        held = torch.bincount(memory.tokens, minlength=V).double()
        held += 0 if memory.folded is None else _dense(memory.folded.store).sum(0)
        torch.testing.assert_close(held, torch.bincount(tokens[: at + 25], minlength=V).double())


def test_mass_halves_in_a_half_life() -> None:
    states, tokens, _ = _members(256, seed=2)
    memory = Episodic(EpisodicConfig(capacity=64, half_life=32.0), Reference(), D, V)
    memory.read(states, tokens)
    assert memory.mass == pytest.approx(sum(0.5 ** (age / 32) for age in range(1, 257)))


def test_episodic_memory_learns_what_repeats_and_scrambled_it_does_not() -> None:
    """Contexts repeat with their cluster's token: 3.4 nats for a uniform law, 1.4 in a cluster."""
    states, tokens, _ = _members(400, seed=2)
    nats = []
    for scramble in (False, True):
        memory = Episodic(EpisodicConfig(capacity=60, scramble=scramble), Reference(), D, V)
        law = memory.read(states, tokens).law
        nats.append(float(-law[100:].gather(1, tokens[100:, None]).log().mean()))
    assert nats[0] < 2.0
    assert nats[1] > nats[0] + 0.8


def test_capacity_is_checked() -> None:
    with pytest.raises(ConfigError, match="--memory-capacity 1"):
        Episodic(EpisodicConfig(capacity=1), Reference(), D, V)


# ---- consolidation -------------------------------------------------------------------------------


def test_the_cost_of_merging_is_the_change_in_code_length() -> None:
    """dL equals the general formula of section 8 with psi at one kappa and dense counts."""
    store = _store((25.0, 25.0))
    dense, kappa = _dense(store), 25.0

    def psi(resultant: Tensor, n: Tensor) -> Tensor:
        return log_c(torch.tensor(kappa), D) + kappa * torch.linalg.vector_norm(resultant.double()) / n

    def kl(counts: Tensor, n: Tensor, both: Tensor, n_both: Tensor) -> Tensor:
        v = counts > 0
        return ((counts[v] / n) * ((counts[v] / n) / (both[v] / n_both)).log()).sum()

    for i, j in ((1, 2), (0, 5), (7, 3)):
        n, m = store.mass[i], store.mass[j]
        both = dense[i] + dense[j]
        expected = n * kl(dense[i], n, both, n + m) + m * kl(dense[j], m, both, n + m)
        expected += n * psi(store.resultant[i], n) + m * psi(store.resultant[j], m)
        expected -= (n + m) * psi(store.resultant[i] + store.resultant[j], n + m)
        expected += n * (n / (n + m)).log() + m * (m / (n + m)).log()
        cosine = (store.mu[i] @ store.mu[j])[None]
        found = merge_cost(store, torch.tensor([i]), torch.tensor([j]), cosine)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_merging_by_description_length_beats_merging_at_random() -> None:
    """At equal size, on contexts that were not merged."""
    store = _singles(400)
    random = store.merged(torch.randint(0, 40, (400,), generator=torch.Generator().manual_seed(0)))
    best = consolidate(store, random.n, Reference())
    assert best.n == random.n
    states, tokens, _ = _members(400, seed=0)
    fresh = slice(200, 400)
    nats = [
        float(-Splats.open(s, Reference(), 40).recall(states[fresh]).law.gather(1, tokens[fresh, None]).log().mean())
        for s in (best, random)
    ]
    assert nats[0] < nats[1] - 0.5


# ---- static --------------------------------------------------------------------------------------


def test_clusters_are_tight_and_repeatable() -> None:
    states, tokens, owner = _members(2000, splats=16)
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
        law = _dense(store) / store.mass[:, None]
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
    states, tokens, _ = _members(50)
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
    memory, mode = _memory(half_life=99.0), "both"
    if not static:
        alone, other = ({"episodic": _gate("episodic", bias)} for bias in (-0.5, 0.1))
        memory, mode = replace(memory, static=None, gates=alone, control=Control(0.2, 0.3, other)), "episodic"
    save_file(memory.state(), tmp_path / "memory.safetensors")
    back = Memory.from_state(load_file(tmp_path / "memory.safetensors"), "memory.safetensors")
    assert (back.episodic, back.k, back.share) == (memory.episodic, memory.k, memory.share)
    assert set(back.gates) == set(memory.gates)
    states, tokens, _ = _members(100, seed=2)
    readers = [Reader(m, mode, Reference()) for m in (memory, back)]  # type: ignore[arg-type]
    terms = [reader.read(states, _lexical(100), tokens) for reader in readers]
    assert torch.equal(terms[0].log_p, terms[1].log_p)
    assert terms[0].calibrated is not None
    assert terms[1].calibrated is not None
    assert torch.equal(terms[0].calibrated, terms[1].calibrated)
    assert back.control
    assert (back.control.share, back.control.episodic_share) == (0.2, 0.3)
    assert set(back.control.gates) == set(back.gates)


def test_old_files_without_a_calibration_load_without_one() -> None:
    state = {name: value for name, value in _memory().state().items() if "calibration" not in name}
    found = Memory.from_state(state, "x.safetensors")
    assert (found.calibration, found.control is None) == (None, False)
    state = {name: value for name, value in state.items() if "control" not in name}
    found = Memory.from_state(state, "x.safetensors")
    assert (found.calibration, found.control) == (None, None)
    states, tokens, _ = _members(20, seed=2)
    terms = Reader(found, "both", Reference()).read(states, _lexical(20), tokens)
    assert set(log_probs(terms, found.gates, "both")) == set(TIERS)


def test_the_control_has_its_own_shares_and_gates() -> None:
    memory = _memory()
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
        ("static.vocab_size", lambda t: t + 1, "not 12, 30"),
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
    state = _memory().state()
    if damage is None:
        del state[name]
    else:
        state[name] = damage(state[name])
    with pytest.raises(CheckpointError, match=words):
        Memory.from_state(state, "x.safetensors")


def test_old_files_without_shares_load_with_share_one() -> None:
    state = {name: value for name, value in replace(_memory(), control=None).state().items() if "share" not in name}
    found = Memory.from_state(state, "x.safetensors")
    assert (found.share, found.episodic.share) == (1.0, 1.0)
    for other in ("number.share", "number.episodic.share"):
        with pytest.raises(CheckpointError, match="lacks"):
            Memory.from_state({**state, other: torch.tensor(0.5)}, "x.safetensors")


def test_weights_use_the_normaliser_relative_to_uniform() -> None:
    store = _store()
    expected = store.mass.log() + log_c_ratio(store.kappa.double(), D)
    torch.testing.assert_close(store.logw.double(), expected, rtol=1e-5, atol=0)
    assert store.background == store.mass.sum()


def test_scrambling_swaps_only_directions() -> None:
    store = _store()
    other = store.scrambled(seed=1)
    other._check("x")
    torch.testing.assert_close(other.mu[other.mu[:, 0].argsort()], store.mu[store.mu[:, 0].argsort()])
    assert torch.equal(_dense(other), _dense(store))
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
    """Equal differences, exact in float32, around 0 and around 100 (800,000 times as much)."""
    good = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.5
    log_p = torch.stack((torch.where(good, -3.0, -1.0), torch.where(good, -1.0, -3.0)), dim=1)
    near = good[:, None] * 2.0**-13
    found = [fit_gate(features, log_p).log_weights(features) for features in (near, near + 100)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_nearly_empty_memory_recalls_the_exact_log_density(device: str) -> None:
    store = _store((5.0, 5.0), background=1e6 * 400)
    h = projx(torch.randn(50, D, generator=torch.Generator().manual_seed(3)))
    found = Splats.open(store, select(device), 64).recall(h).log_density.double()
    exact = _brute_force(store, h)[1]
    # float32 scores leave a relative error of 1e-6 in the part that varies.
    assert float((found - exact).abs().max()) < 1e-5 * float(exact.std())
