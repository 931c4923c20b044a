"""Splats: additive statistics, exact token laws, consolidation, both tiers, gate, and files."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from splats_support import (
    BOUNDS,
    D,
    V,
    brute_force,
    dense_counts,
    make_calibration,
    make_lexical,
    make_memory,
    make_store,
    members,
    singles,
)
from torch import Tensor

from ebmvk.engine import select
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError, ConfigError
from ebmvk.memory.episodic import Episodic, EpisodicConfig
from ebmvk.memory.gate import fit_gate, mix
from ebmvk.memory.law import TIERS, Mode, Reader, log_probs
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c, sample_vmf
from ebmvk.splats.consolidation import consolidate, merge_cost
from ebmvk.splats.recall import Splats, log_of
from ebmvk.splats.store import SplatStore

# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_are_sums() -> None:
    states, tokens, owner = members()
    store = make_store()
    dense = dense_counts(store)
    for splat in range(store.n):
        mine = owner == splat
        assert store.mass[splat] == mine.sum()
        torch.testing.assert_close(store.resultant[splat], states[mine].sum(0), rtol=1e-6, atol=1e-5)
        assert torch.equal(dense[splat], torch.bincount(tokens[mine], minlength=V).double())


def test_states_may_come_in_half_precision() -> None:
    states, tokens, owner = members()
    half = SplatStore.gather(states.half(), tokens, owner, vocab_size=V, beta=0.5, kappa=BOUNDS)
    torch.testing.assert_close(half.resultant, make_store().resultant, rtol=1e-3, atol=1e-2)
    with pytest.raises(ArgumentError, match="do not belong together"):
        SplatStore.gather(states, tokens[1:], owner, vocab_size=V, beta=0.5, kappa=BOUNDS)


def test_merging_and_joining_equal_gathering_again() -> None:
    """Statistics add, so the result equals the store gathered from the members."""
    states, tokens, owner = members()
    settings = {"vocab_size": V, "beta": 0.5, "kappa": BOUNDS}
    fine = SplatStore.gather(states, tokens, torch.arange(len(owner)), **settings)  # type: ignore[arg-type]
    first = SplatStore.gather(states[:150], tokens[:150], torch.arange(150), **settings)  # type: ignore[arg-type]
    rest = SplatStore.gather(states[150:], tokens[150:], torch.arange(250), **settings)  # type: ignore[arg-type]
    for found in (fine.merged(owner), first.joined(rest).merged(owner)):
        for name in ("mass", "count_start", "count_token", "count"):
            assert torch.equal(getattr(found, name), getattr(make_store(), name)), name
        torch.testing.assert_close(found.resultant, make_store().resultant, rtol=1e-6, atol=1e-5)
        found._check("x")


def test_keeping_some_splats_equals_gathering_them() -> None:
    store, keep = make_store(), torch.tensor([True, False, True, True, False, False, True, True, False])
    found = store.kept(keep)
    found._check("x")
    assert torch.equal(dense_counts(found), dense_counts(store)[keep])
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
    assert make_store().kappa[0] == 10.0
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


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_recall_matches_the_formula(device: str) -> None:
    store = make_store(background=40.0)
    h = projx(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))
    found = Splats.open(store, select(device), 64).recall(h)
    law, log_density = brute_force(store, h)
    # float32 exponents up to kappa = 100 are good to 1e-5.
    torch.testing.assert_close(found.law.double(), law, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.closest, (h @ store.mu.T).amax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.log_density.double(), log_density, rtol=0, atol=5e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_pool_is_the_product_of_powers(share: float) -> None:
    """Compared in float64: the lexical law at s = 0, the splats' law at s = 1, and the features."""
    store, lexical = make_store(background=40.0), make_lexical(6)
    h = projx(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))
    found, features = Splats.open(store, Reference(), 64).recall(h).pooled(lexical, share)
    law, log_density = brute_force(store, h)
    product = law**share * lexical.double().exp() ** (1 - share)
    pool = product / product.sum(1, keepdim=True)
    torch.testing.assert_close(found.double(), pool.log(), rtol=0, atol=2e-4)
    closest, entropy = (h @ store.mu.T).amax(1).double(), -(pool * pool.log()).sum(1)
    expected = torch.stack((closest, log_density, entropy, pool.log().amax(1)), dim=1)
    torch.testing.assert_close(features.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("k", [1, 4, 64])
@pytest.mark.parametrize("mode", ["static", "episodic", "both"])
def test_the_law_sums_to_one(mode: Mode, k: int) -> None:
    memory = replace(make_memory(k=k), k=k)
    states, tokens, _ = members(150, seed=2)
    reader = Reader(memory, mode, Reference())
    for read in (0, 40, 110):  # nothing read, some of it folded, all of it consolidated
        reader.read(states[:read], make_lexical(read), tokens[:read])
        mixed = reader.log_prob(states[130:], make_lexical(20))
        torch.testing.assert_close(mixed.exp().sum(1), torch.ones(20), rtol=0, atol=1e-5)
        assert (mixed - make_lexical(20)).abs().max() > 0.1


@pytest.mark.parametrize("power", [0.0, 0.6, 1.5])
def test_the_calibrated_law_mixes_the_law_with_its_power(power: float) -> None:
    """Compared with numpy in float64; it sums to one, and tokens get the entries of the law."""
    own, lexical = replace(make_calibration(), power=power), make_lexical(40)
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
    memory = make_memory()
    states, tokens, _ = members(100, seed=2)
    wanted = [[0.2, 1.0], [0.7, 0.3]]
    found = Reader(memory, "both", Reference()).read_at(states, make_lexical(100), tokens, wanted)
    for terms, (static, episodic) in zip(found, wanted, strict=True):
        one = memory.with_share("static", static).with_share("episodic", episodic)
        alone = Reader(one, "both", Reference()).read(states, make_lexical(100), tokens)
        assert torch.equal(terms.log_p, alone.log_p)
        assert torch.equal(terms.features, alone.features)


def test_reading_scores_tokens_by_the_law() -> None:
    """The terms of the tokens that follow are entries of the laws, token by token."""
    memory = make_memory()
    states, tokens, _ = members(100, seed=2)
    lexical = make_lexical(100)
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
    states, tokens, _ = members(90, seed=2)
    memory = Episodic(EpisodicConfig(capacity=400, k=400, kappa=15.0, half_life=math.inf), select(device), D, V)
    memory.recent = 32
    found = memory.read(states, tokens)
    for i in range(1, 90):
        own = {"vocab_size": V, "beta": 0.0, "kappa": (15.0, 15.0)}
        store = SplatStore.gather(states[:i], tokens[:i], torch.arange(i), **own)  # type: ignore[arg-type]
        law, log_density = brute_force(store, states[i : i + 1])
        torch.testing.assert_close(found.law[i : i + 1].double(), law, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found.log_density[i].double(), log_density[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(found.law[0], torch.full((V,), 1 / V))


@pytest.mark.parametrize("scramble", [False, True])
def test_later_text_does_not_change_earlier_laws(scramble: bool) -> None:
    """Permute contexts and tokens after a point: the laws up to it stay the same, bit for bit."""
    backend = select("cpu")
    states, tokens, _ = members(300, seed=2)
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
    states, tokens, _ = members(300, seed=2)
    whole = Episodic(EpisodicConfig(capacity=64, k=5), Reference(), D, V)
    parts = Episodic(EpisodicConfig(capacity=64, k=5), Reference(), D, V)
    law = torch.cat([parts.read(h, t).law for h, t in zip(states.split(7), tokens.split(7), strict=True)])
    torch.testing.assert_close(whole.read(states, tokens).law, law, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("capacity", [2, 3, 20, 64])
def test_eviction_keeps_mass_and_the_capacity(capacity: int) -> None:
    states, tokens, _ = members(300, seed=2)
    memory = Episodic(EpisodicConfig(capacity=capacity, k=5, half_life=math.inf), Reference(), D, V)
    for at in range(0, 300, 25):
        memory.read(states[at : at + 25], tokens[at : at + 25])
        assert memory.n <= capacity
        assert memory.mass == pytest.approx(at + 25, rel=1e-12)
        held = torch.bincount(memory.tokens, minlength=V).double()
        held += 0 if memory.folded is None else dense_counts(memory.folded.store).sum(0)
        torch.testing.assert_close(held, torch.bincount(tokens[: at + 25], minlength=V).double())


def test_mass_halves_in_a_half_life() -> None:
    states, tokens, _ = members(256, seed=2)
    memory = Episodic(EpisodicConfig(capacity=64, half_life=32.0), Reference(), D, V)
    memory.read(states, tokens)
    assert memory.mass == pytest.approx(sum(0.5 ** (age / 32) for age in range(1, 257)))


def test_episodic_memory_learns_what_repeats_and_scrambled_it_does_not() -> None:
    """Contexts repeat with their cluster's token: 3.4 nats for a uniform law, 1.4 in a cluster."""
    states, tokens, _ = members(400, seed=2)
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
    store = make_store((25.0, 25.0))
    dense, kappa = dense_counts(store), 25.0

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
    store = singles(400)
    random = store.merged(torch.randint(0, 40, (400,), generator=torch.Generator().manual_seed(0)))
    best = consolidate(store, random.n, Reference())
    assert best.n == random.n
    states, tokens, _ = members(400, seed=0)
    fresh = slice(200, 400)
    nats = [
        float(-Splats.open(s, Reference(), 40).recall(states[fresh]).law.gather(1, tokens[fresh, None]).log().mean())
        for s in (best, random)
    ]
    assert nats[0] < nats[1] - 0.5
