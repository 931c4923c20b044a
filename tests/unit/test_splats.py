"""Splats: additive statistics, leaving one out, the memory's exact token law, building it, and files."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ebmvk.engine.reference import Reference
from ebmvk.errors import CheckpointError, ConfigError, DataError
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c, log_c_ratio, sample_vmf
from ebmvk.splats.build import MemoryConfig, build_memory, fit_gate, fit_mixture
from ebmvk.splats.memory import Gate, Memory, find, fit_background, memory_law
from ebmvk.splats.store import SplatStore

D, V = 12, 30


@dataclass(frozen=True)
class _Context:
    h: Tensor


def _members(n: int = 400, splats: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Clustered states (n, d), tokens that go with their cluster, and owners; cluster 0 has a single member."""
    g = torch.Generator().manual_seed(seed)
    centres = projx(torch.randn(splats, D, generator=g))
    owner = torch.randint(1, splats, (n,), generator=g)
    owner[0] = 0
    states = sample_vmf(centres[owner], 60.0, generator=g)
    tokens = (owner * 3 + torch.randint(0, 4, (n,), generator=g)) % V
    return states, tokens, owner


def _store(**changes: float) -> SplatStore:
    return replace(SplatStore.gather(*_members(), vocab_size=V, beta=0.5, tau=0.1), **changes)


def _memory(k: int = 5, gate_bias: float = -0.5) -> Memory:
    g = torch.Generator().manual_seed(5)
    weight = 0.3 * torch.randn(D + 3, generator=g)
    gate = Gate(weight, torch.tensor(gate_bias), torch.zeros(D + 3), torch.ones(D + 3))
    return Memory.open(_store(background=40.0), gate, Reference(), k)


def test_statistics_are_sums() -> None:
    states, tokens, owner = _members()
    store = _store()
    for splat in range(store.n):
        mine = owner == splat
        assert store.mass[splat] == mine.sum()
        torch.testing.assert_close(store.resultant[splat], states[mine].sum(0), rtol=1e-6, atol=1e-5)
        row = slice(int(store.count_start[splat]), int(store.count_start[splat + 1]))
        dense = torch.zeros(V, dtype=torch.float64)
        dense[store.count_token[row]] = store.count[row]
        assert torch.equal(dense, torch.bincount(tokens[mine], minlength=V).double())


def test_kappa_is_recovered_and_clipped() -> None:
    """vMF samples of known kappa; 4000 of them give kappa to 2 %. A single point says nothing: the floor, 1/tau."""
    g = torch.Generator().manual_seed(1)
    levels = [25.0, 120.0, 3000.0, 1e-3]
    states = torch.cat([sample_vmf(torch.eye(D)[:1].expand(4000, -1), level, generator=g) for level in levels])
    owner = torch.arange(len(levels)).repeat_interleave(4000)
    store = SplatStore.gather(states, torch.zeros(len(states), dtype=torch.int64), owner, vocab_size=V, beta=1, tau=0.1)
    torch.testing.assert_close(store.kappa[:2], torch.tensor([25.0, 120.0]), rtol=0.02, atol=0)
    assert store.kappa[2:].tolist() == [500.0, 10.0]
    assert _store().kappa[0] == 10.0


def test_leaving_one_out_is_recomputing_without_it() -> None:
    states, tokens, owner = _members()
    store = _store()
    which = torch.tensor([0, 1, 17, 255, 399])
    left = store.leave_one_out(states[which], owner[which], tokens[which])
    for row, i in enumerate(which.tolist()):
        mine = owner == owner[i]
        mine[i] = False
        assert left.mass[row] == mine.sum()
        assert left.count[row] == (tokens[mine] == tokens[i]).sum()
        if not mine.any():
            assert (left.cosine[row], left.kappa[row]) == (0, 10)
            continue
        again = SplatStore.gather(states[mine], tokens[mine], owner[mine], vocab_size=V, beta=0.5, tau=0.1)
        # The stored resultant is float32: 1e-7 of a length of about 50.
        torch.testing.assert_close(left.cosine[row], (again.mu[0] @ states[i]).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(left.kappa[row], again.kappa[0].double(), rtol=1e-4, atol=0)


def test_leaving_one_out_matters() -> None:
    """The trap: a member is closer to its own splat than to what the splat is without it."""
    states, tokens, owner = _members()
    store = _store()
    left = store.leave_one_out(states, owner, tokens)
    assert ((states * store.mu[owner]).sum(1) > left.cosine).all()


@pytest.mark.parametrize("k", [1, 4, 9, 64])
def test_the_law_sums_to_one(k: int) -> None:
    memory = _memory(k)
    h = projx(torch.randn(2, 7, D, generator=torch.Generator().manual_seed(3)))
    log_p_lex = torch.log_softmax(3 * torch.randn(2, 7, V, generator=torch.Generator().manual_seed(4)), -1)
    mixed = memory.log_prob(_Context(h), log_p_lex)
    assert mixed.shape == (2, 7, V)
    torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(2, 7), rtol=0, atol=1e-5)
    assert (mixed - log_p_lex).abs().max() > 0.1


def test_the_posterior_and_the_law_are_the_formulas_of_the_model() -> None:
    """Brute force in float64 over all splats, K = M: q_k by C_d(kappa), not by ratios, and V_k dense."""
    store = _store(background=40.0)
    h = projx(torch.randn(6, D, generator=torch.Generator().manual_seed(3)))
    backend = Reference()
    posterior = find(backend, backend.points(store.mu), store, h, store.n)
    total = store.mass.sum() + 40.0
    kappa = store.kappa.double()
    weight = (store.mass / total) * (log_c(kappa, D) + kappa * (h.double() @ store.mu.double().T)).exp()
    background = 40.0 / total * math.exp(log_c(torch.zeros(1), D).item())
    density = weight.sum(1) + background
    # float32 exponents up to kappa = 100 are good to 1e-5.
    torch.testing.assert_close(posterior.background.double(), background / density, rtol=5e-5, atol=1e-12)
    log_density = (density.log() - log_c(torch.zeros(1), D)).float()
    torch.testing.assert_close(posterior.log_density, log_density, rtol=0, atol=5e-5)
    _, tokens, owner = _members()
    dense = torch.zeros(store.n, V, dtype=torch.float64)
    dense.index_put_((owner, tokens), torch.ones(len(owner), dtype=torch.float64), accumulate=True)
    laws = (dense + 0.5 / V) / (dense.sum(1, keepdim=True) + 0.5)
    want = (weight / density[:, None]) @ laws + (background / density)[:, None] / V
    torch.testing.assert_close(memory_law(store, posterior), want, rtol=1e-4, atol=1e-9)


def test_background_by_em_is_the_likeliest() -> None:
    g = torch.Generator().manual_seed(0)
    log_ratio = 3 * torch.randn(500, generator=g)
    nu = fit_background(log_ratio, 1000.0)
    shares = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    likelihood = (shares + (1 - shares) * log_ratio.double().exp()[:, None]).log().mean(0)
    assert nu / (1000 + nu) == pytest.approx(shares[likelihood.argmax()].item(), abs=0.005)


def test_gate_learns_where_memory_helps() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2000, 5, generator=g)
    helps = features[:, 2] > 0
    memory = torch.where(helps, -1.0, -6.0)
    gate = fit_gate(features, torch.full((2000,), -3.0), memory)
    value = torch.sigmoid(gate.logit(features))
    assert value[helps].mean() > 0.9
    assert value[~helps].mean() < 0.1


class _Toy(nn.Module):
    """Contexts are the current token's point, so the next token of a periodic text is a function of h."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.points = nn.Parameter(projx(torch.randn(V, D, generator=g)))

    def forward(self, tokens: Tensor) -> _Context:
        noise = 0.05 * torch.sin(torch.arange(tokens.numel() * D)).view(*tokens.shape, D)
        return _Context(projx(self.points[tokens] + noise))

    def log_p_lex(self, context: _Context) -> Tensor:
        return torch.full((*context.h.shape[:-1], V), -math.log(V))


CONFIG = MemoryConfig(splats=V, knn_k=8, window=16, batch=8)


def _periodic_text(n: int = 3000) -> np.ndarray:
    return (np.arange(n) * 7 % V).astype(np.int32)


def test_built_memory_predicts_what_it_has_read_and_is_repeatable() -> None:
    model, text = _Toy().train(), _periodic_text()
    memory = build_memory(model, text, CONFIG, Reference(), seed=3)
    assert model.training
    inputs = torch.from_numpy(text[-65:].astype(np.int64))
    context = model(inputs[None, :-1])
    log_p = memory.log_prob(context, model.log_p_lex(context))
    nats = -log_p[0].gather(1, inputs[1:, None]).mean()
    # The lexical law is uniform, 3.4 nats; the text is periodic.
    assert nats < 0.8
    again = build_memory(model, text, CONFIG, Reference(), seed=3)
    for name, value in memory.state().items():
        assert torch.equal(value, again.state()[name]), name


def test_scrambled_token_laws_lose_the_gain() -> None:
    model, text = _Toy(), _periodic_text()
    memory = build_memory(model, text, CONFIG, Reference(), seed=3)
    shuffled = replace(memory.store, count_token=memory.store.count_token.roll(11))
    inputs = torch.from_numpy(text[-65:].astype(np.int64))
    context = model(inputs[None, :-1])
    nats = []
    for store in (memory.store, shuffled):
        log_p = replace(memory, store=store).log_prob(context, model.log_p_lex(context))
        nats.append(float(-log_p[0].gather(1, inputs[1:, None]).mean()))
    assert nats[1] > nats[0] + 2


def test_file_round_trip(tmp_path: Path) -> None:
    memory = _memory()
    save_file(memory.state(), tmp_path / "memory.safetensors")
    back = Memory.from_state(load_file(tmp_path / "memory.safetensors"), Reference(), "memory.safetensors")
    h = projx(torch.randn(4, D, generator=torch.Generator().manual_seed(3)))
    log_p_lex = torch.full((4, V), -math.log(V))
    assert torch.equal(memory.log_prob(_Context(h), log_p_lex), back.log_prob(_Context(h), log_p_lex))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("splats.mass", None, "lacks 'mass'"),
        ("splats.mass", lambda t: -t, "do not add up"),
        ("splats.resultant", lambda t: t * math.nan, "resultant is not finite"),
        ("splats.resultant", lambda t: t * 9, "longer than its mass"),
        ("splats.resultant", lambda t: t[:-1], "resultant is"),
        ("splats.count", lambda t: t + 1, "do not add up"),
        ("splats.count_token", lambda t: t + V, "count_token is outside"),
        ("splats.count_token", lambda t: t.flip(0), "does not rise"),
        ("splats.count_start", lambda t: t.flip(0), "rising list"),
        ("splats.tau", lambda t: t * 0, "have to be positive"),
        ("gate.weight", lambda t: t[1:], "gate.weight"),
        ("gate.bias", None, "gate.bias"),
    ],
)
def test_damaged_files_are_refused(name: str, damage: object, words: str) -> None:
    state = _memory().state()
    if damage is None:
        del state[name]
    else:
        state[name] = damage(state[name])  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        Memory.from_state(state, Reference(), "x.safetensors")


def test_too_little_text_is_said() -> None:
    with pytest.raises(DataError, match="for 30 splats"):
        build_memory(_Toy(), _periodic_text(40), CONFIG, Reference(), seed=0)
    with pytest.raises(ConfigError, match="holdout=0"):
        build_memory(_Toy(), _periodic_text(), replace(CONFIG, holdout=0), Reference(), seed=0)


def test_weights_use_the_normaliser_relative_to_uniform() -> None:
    store = _store()
    alpha = store.mass / (store.mass.sum() + store.background)
    torch.testing.assert_close(
        store.logw.double(), alpha.log() + log_c_ratio(store.kappa.double(), D), rtol=1e-5, atol=0
    )
    assert math.exp(store.log_background) == pytest.approx(0.5)


def test_fit_mixture_moves_the_background_to_the_fold() -> None:
    """A fold far from every splat wants the background; one of the splats' own members does not."""
    states, tokens, _ = _members()
    lexical = torch.full((len(tokens), V), -math.log(V))
    shares = []
    for h in (states, -states):
        memory = fit_mixture(_store(), lambda h=h: [(h, tokens, lexical)], Reference(), 9)
        shares.append(math.exp(memory.store.log_background))
    assert shares[0] < 0.1
    assert shares[1] > 0.5
