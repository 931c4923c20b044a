"""Contexts that splats hold are read without themselves: as from a store built without them, and why it has to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ebmvk.engine import select
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import sample_vmf
from ebmvk.splats.coverage import log_ratio
from ebmvk.splats.gate import fit_gate, log_of, mix
from ebmvk.splats.recall import Members, Splats
from ebmvk.splats.store import SplatStore

D, V = 12, 30
SPLATS = 25


def _members(n: int = 120, seed: int = 0, spread: float = 30.0) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts (n, d), tokens that go with their place, and owners; some splats have one member, some have two."""
    g = torch.Generator().manual_seed(seed)
    centres = projx(torch.randn(SPLATS, D, generator=g))
    owner = torch.cat((torch.tensor([0, 1, 1]), torch.randint(2, SPLATS, (n - 3,), generator=g)))
    states = sample_vmf(centres[owner], spread, generator=g)
    return states, (owner + torch.randint(0, 4, (n,), generator=g)) % V, owner


def _store(states: Tensor, tokens: Tensor, owner: Tensor, kappa: tuple[float, float]) -> SplatStore:
    return SplatStore.gather(states, tokens, owner, vocab_size=V, beta=0.3, kappa=kappa)


@pytest.mark.parametrize("k", [1, 3, SPLATS, 100])
@pytest.mark.parametrize("kappa", [(15.0, 15.0), (8.0, 300.0)])
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_recall_without_a_member_is_recall_from_the_store_without_it(
    k: int, kappa: tuple[float, float], device: str
) -> None:
    states, tokens, owner = _members()
    backend, whole = select(device), _store(states, tokens, owner, kappa)
    found = Splats.open(whole, backend, k).recall(states, Members(owner, tokens))
    torch.testing.assert_close(found.law.sum(1), torch.ones(len(states)), rtol=0, atol=1e-5)
    for i in (0, 1, 2, 3, 50, 119):
        others = torch.arange(len(states)) != i
        without = _store(states[others], tokens[others], owner[others], kappa)
        without = replace(without, background=whole.background)
        expected = Splats.open(without, backend, k).recall(states[i : i + 1])
        # float32 resultants, of which one context is subtracted; kappa near 300 feels it most.
        torch.testing.assert_close(found.law[i : i + 1], expected.law, rtol=2e-3, atol=2e-6)
        torch.testing.assert_close(found.features[i : i + 1], expected.features, rtol=2e-3, atol=2e-3)


def test_states_that_were_rounded_when_they_were_gathered_will_do() -> None:
    """Splats hold half-precision states: what is left out is off by 1e-3, and a splat's only member leaves nothing."""
    states, tokens, owner = _members()
    splats = Splats.open(_store(states.half(), tokens, owner, (15.0, 15.0)), select("cpu"), SPLATS)
    exact = Splats.open(_store(states, tokens, owner, (15.0, 15.0)), select("cpu"), SPLATS)
    found, expected = (s.recall(states, Members(owner, tokens)).law for s in (splats, exact))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-3)


def test_the_trap() -> None:
    """Tokens that places say nothing of: memory is of no use. Read with themselves, contexts say the contrary, the gate
    goes to 1 and other texts pay for it; left out, it is of no use there either. Coverage is fooled alike."""
    g = torch.Generator().manual_seed(3)
    states, tokens = projx(torch.randn(400, D, generator=g)), torch.randint(0, V, (400,), generator=g)
    owner = torch.arange(400)
    store = replace(_store(states, tokens, owner, (200.0, 200.0)), background=1e-30)  # so memory speaks anywhere
    splats = Splats.open(store, select("cpu"), 16)
    lexical = torch.full((400, 1), -torch.tensor(V).log())
    fresh, other = projx(torch.randn(400, D, generator=g)), torch.randint(0, V, (400,), generator=g)
    constant = torch.zeros(400, 1)  # a gate of one number
    weight, ratio, seen, elsewhere = {}, {}, {}, {}
    for name, of in {"trap": None, "left out": Members(owner, tokens)}.items():
        recall = splats.recall(states, of)
        log_p = torch.cat((lexical, log_of(recall.law.gather(1, tokens[:, None]))), dim=1)
        log_weights = fit_gate(constant, log_p).log_weights(constant)
        weight[name] = float(log_weights[0, 1].exp())
        seen[name] = float((mix(log_weights, log_p) - log_p[:, 0]).mean())
        log_p = torch.cat((lexical, log_of(splats.recall(fresh).law.gather(1, other[:, None]))), dim=1)
        elsewhere[name] = float((mix(log_weights, log_p) - log_p[:, 0]).mean())
        ratio[name] = float(log_ratio(splats, states, of).mean())
    assert weight["trap"] > 0.95
    assert seen["trap"] > 2
    assert elsewhere["trap"] < -0.5
    assert abs(seen["left out"]) < 0.02
    assert abs(elsewhere["left out"]) < 0.02
    assert ratio["trap"] > ratio["left out"] + 3
