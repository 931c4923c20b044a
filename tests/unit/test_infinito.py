"""The external memory against a loop over tokens and slots; the effects of writing, cutting,
integration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from model_support import SMALL, VOCABULARY, build, tokens, variant
from torch import Tensor

from ebmvk.model.cache import Cache
from ebmvk.model.infinito import ExternalMemory, hidden_units
from ebmvk.model.integration import phi

INFINITO = variant("infinito")


def memory(seed: int = 0) -> ExternalMemory:
    torch.manual_seed(seed)
    found = ExternalMemory(6, 4).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return found


def token_by_token(own: ExternalMemory, x: Tensor) -> Tensor:
    """The definition, for one row (T, d)."""
    content, mass = torch.zeros(4, 6, dtype=x.dtype), torch.zeros(4, dtype=x.dtype)
    said = []
    for row in x:
        one = row[None, None]
        reads, writes = own._near(own.read(one))[0, 0].double(), own._near(own.write(one))[0, 0].double()
        said.append(own.out((reads[:, None] * content / (mass[:, None] + 1)).sum(0)))
        share = writes * own.strength(one)[0, 0]
        content, mass = content + share[:, None] * own.value(row), mass + share
    return torch.stack(said)


@pytest.mark.parametrize("length", [1, 2, 17])
def test_the_memory_equals_a_loop_over_slots(length: int) -> None:
    own = memory()
    x = torch.randn(2, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = torch.stack([token_by_token(own, row) for row in x])
        torch.testing.assert_close(own(x), wanted, rtol=1e-5, atol=1e-6)  # shares of slots are float32
        cache = Cache(torch.zeros(2, dtype=torch.int64))
        parts = []
        for part in torch.split(x, 5, dim=1):
            parts.append(own(part, cache))
            cache.length += part.shape[1]
        torch.testing.assert_close(torch.cat(parts, dim=1), wanted, rtol=1e-5, atol=1e-6)


def test_tokens_below_the_threshold_are_not_written() -> None:
    """With the threshold far above every importance nothing is written; far below, everything
    is."""
    own = memory()
    x = torch.randn(1, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own.threshold.fill_(100.0)
        assert own(x).abs().max() < 1e-12
        own.threshold.fill_(-100.0)
        assert (own.strength(x) > 1 - 1e-12).all()
        assert own(x)[:, 1:].abs().amax(-1).min() > 1e-4
    assert own.threshold.requires_grad
    own.threshold.data.zero_()
    own(x).square().sum().backward()  # type: ignore[no-untyped-call]
    assert own.threshold.grad is not None
    assert own.threshold.grad.abs() > 0


def test_cutting_the_memory_changes_the_logits() -> None:
    """The logits of every token change but those of the first, which has nothing before it."""
    model, ids = build(INFINITO), tokens(12)
    with torch.no_grad():
        whole = model.logits(model(ids))
        model.memory = None
        cut = model.logits(model(ids))
    assert torch.equal(whole[:, 0], cut[:, 0])
    assert ((whole - cut)[:, 1:].abs().amax(-1) > 1e-4).all()
    assert build(dataclasses.replace(INFINITO, use_memory=False)).memory is None


def test_the_memory_reaches_beyond_the_window() -> None:
    """A token further back than all windows together still has an effect."""
    config = dataclasses.replace(INFINITO, context_local=2, context_medium=2, context_global=2, n_layers=2)
    ids = tokens(30)
    changed = ids.clone()
    changed[:, 0] = (ids[:, 0] + 1) % VOCABULARY
    moved = {}
    for used in (True, False):
        model = build(dataclasses.replace(config, use_memory=used))
        with torch.no_grad():
            moved[used] = float((model(ids).query[:, -1] - model(changed).query[:, -1]).abs().max())
    assert moved[False] == 0
    assert moved[True] > 1e-5


def test_phi_exists_only_in_training_and_rises_with_dependence() -> None:
    model: Any = build(dataclasses.replace(INFINITO, dropout=0.0))
    ids = tokens(40, batch=8)
    assert not model(ids).aux
    context = model.train()(ids)
    losses = context.losses(context.sums(), ids.numel())
    assert set(losses) == {"phi"}
    x, _ = model.read(torch.randn(8, 40, SMALL.latent_dim, generator=torch.Generator().manual_seed(0)), None)
    units = hidden_units(x).detach()
    g = torch.Generator().manual_seed(1)
    shuffled = torch.stack([column[torch.randperm(len(units), generator=g)] for column in units.T], dim=1)
    assert 0 < float(phi(shuffled)) < float(phi(units)) < 1
    torch.testing.assert_close(losses["phi"].detach(), 1 - phi(context.aux[0].units.detach()).float())
    losses["phi"].backward()
    assert model.blocks[-1].down.weight.grad.abs().max() > 0
