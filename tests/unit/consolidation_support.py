"""A planted consolidation, for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ebmvk.config.schema import SplatConfig
from ebmvk.engine import select
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import sample_vmf
from ebmvk.splats.soc import Consolidation
from ebmvk.splats.store import SplatStore

D, V = 24, 40
BOUNDS = (10.0, 500.0)
CLUSTERS = 12


def planted(n: int, seed: int = 0, kappa: float = 150.0) -> tuple[Tensor, Tensor, Tensor]:
    """States (n, d) of 12 separate vMF clusters, tokens that depend on these, and the clusters."""
    centres = projx(torch.randn(CLUSTERS, D, generator=torch.Generator().manual_seed(99)))
    g = torch.Generator().manual_seed(seed)
    which = torch.randint(CLUSTERS, (n,), generator=g)
    return sample_vmf(centres[which], kappa, generator=g), which * 3 + torch.randint(3, (n,), generator=g), which


def make_store(n: int = 300, seed: int = 0, kappa: tuple[float, float] = BOUNDS, groups: int = 20) -> SplatStore:
    """Splats of random groups within clusters, with made-up frequencies, births and last uses."""
    states, tokens, which = planted(n, seed)
    g = torch.Generator().manual_seed(seed + 1)
    owner = which * groups + torch.randint(groups, (n,), generator=g)
    store = SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.1, kappa=kappa)
    birth = torch.randint(50, (store.n,), generator=g)
    used = birth + torch.randint(50, (store.n,), generator=g)
    return replace(store, frequency=torch.rand(store.n, generator=g).double(), birth=birth, last_use=used)


def make_config(**changes: Any) -> SplatConfig:
    small = {"n_splats_init": 40, "max_splats": 100, "curriculum_target_splats": 100, "soc_check_interval": 10}
    return SplatConfig(**{**small, "soc_history": 1000, "enable_curriculum_learning": False, **changes})


def make_consolidation(**changes: Any) -> Consolidation:
    how = {"d": D, "vocab_size": V, "steps": 100, "steps_per_epoch": 20, "seed": lambda step: 7 + step}
    return Consolidation(make_config(**changes), select("cpu"), **how)  # type: ignore[arg-type]


def observe(soc: Consolidation, step: int, n: int = 200, held_out: bool = True) -> None:
    states, tokens, _ = planted(n, seed=step)
    g = torch.Generator().manual_seed(step)
    apart = (torch.rand(n, generator=g) < 0.2) & held_out
    soc.observe(states, tokens, 5 * torch.rand(n, generator=g), apart, step)


def run(soc: Consolidation, *steps: int, judge: Callable[[SplatStore | None], float] = lambda _: 0.0) -> list[Any]:
    records = []
    for step in steps:
        observe(soc, step)
        records.append(soc.check(step, judge))
    return records


def dense(store: SplatStore) -> Tensor:
    return torch.zeros(store.n, V, dtype=torch.float64).index_put_((store.row, store.count_token), store.count)
