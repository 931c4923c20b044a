"""Small stores and memories of splats, for tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ebmvk.memory import calibration
from ebmvk.memory.calibration import Calibration
from ebmvk.memory.episodic import EpisodicConfig
from ebmvk.memory.gate import LEXICAL, Gate
from ebmvk.memory.law import TIERS, Control, Memory, Mode
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import log_c, sample_vmf
from ebmvk.splats.recall import FEATURES
from ebmvk.splats.store import SplatStore

D, V = 12, 30
BOUNDS = (10.0, 500.0)


def members(n: int = 400, splats: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Clustered states (n, d), tokens that depend on the cluster, owners; cluster 0 is single."""
    g = torch.Generator().manual_seed(seed)
    centres = projx(torch.randn(splats, D, generator=g))
    owner = torch.randint(1, splats, (n,), generator=g)
    owner[0] = 0
    states = sample_vmf(centres[owner], 60.0, generator=g)
    tokens = (owner * 3 + torch.randint(0, 4, (n,), generator=g)) % V
    return states, tokens, owner


def make_store(kappa: tuple[float, float] = BOUNDS, **changes: float) -> SplatStore:
    return replace(SplatStore.gather(*members(), vocab_size=V, beta=0.5, kappa=kappa), **changes)


def singles(n: int, seed: int = 0) -> SplatStore:
    states, tokens, _ = members(n, seed=seed)
    return SplatStore.gather(states, tokens, torch.arange(n), vocab_size=V, beta=0.5, kappa=(20.0, 20.0))


def make_gate(mode: Mode, bias: float = -0.5) -> Gate:
    g = torch.Generator().manual_seed(5)
    tiers = len(TIERS[mode])
    wide = LEXICAL + FEATURES * tiers
    weight = 0.3 * torch.randn(tiers, wide, generator=g)
    return Gate(weight, torch.full((tiers,), bias), torch.zeros(wide), torch.ones(wide))


def make_memory(**episodic: float) -> Memory:
    gates: dict[Mode, Gate] = {mode: make_gate(mode) for mode, tiers in TIERS.items() if tiers}
    config = EpisodicConfig(**{"capacity": 60, "k": 5, **episodic})  # type: ignore[arg-type]
    other: dict[Mode, Gate] = {mode: make_gate(mode, 0.1) for mode in gates}
    found = Memory(D, V, make_store(background=40.0), 5, 0.4, config, gates)
    return replace(found, calibration=make_calibration(), control=Control(0.2, 0.3, other))


def make_calibration() -> Calibration:
    g = torch.Generator().manual_seed(6)
    weight, wide = 0.3 * torch.randn(1, calibration.FEATURES, generator=g), torch.zeros(calibration.FEATURES)
    return Calibration(0.6, Gate(weight, torch.tensor([0.2]), wide, wide + 1))


def make_lexical(n: int, seed: int = 4) -> Tensor:
    return torch.log_softmax(3 * torch.randn(n, V, generator=torch.Generator().manual_seed(seed)), -1)


def dense_counts(store: SplatStore) -> Tensor:
    return torch.zeros(store.n, V, dtype=torch.float64).index_put_((store.row, store.count_token), store.count)


def brute_force(store: SplatStore, h: Tensor) -> tuple[Tensor, Tensor]:
    """p_mem (B, V) and the log density, over all splats, with C_d itself, in float64."""
    total = store.mass.sum() + store.background
    kappa = store.kappa.double()
    weight = (store.mass / total) * (log_c(kappa, D) + kappa * (h.double() @ store.mu.double().T)).exp()
    uniform = log_c(torch.zeros(1), D)
    background = store.background / total * uniform.exp()
    density = weight.sum(1) + background
    laws = (dense_counts(store) + store.beta / V) / (dense_counts(store).sum(1, keepdim=True) + store.beta)
    return (weight / density[:, None]) @ laws + (background / density)[:, None] / V, density.log() - uniform
