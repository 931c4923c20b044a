"""Every sampler of the registry, a new one too: the law of its tokens, and the same draws however a
batch is split."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws_support import ALPHA
from torch import Tensor

from ebmvk.certification import statistics, suite, tokens
from ebmvk.certification.contexts import synthetic
from ebmvk.certification.results import Sizes
from ebmvk.config.integrators import METROPOLIS
from ebmvk.config.schema import LangevinConfig
from ebmvk.engine.api import Backend
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError, ConfigError
from ebmvk.sampling import annealed, registry
from ebmvk.sampling.interface import TokenPoints
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.registry import SAMPLERS
from ebmvk.sampling.tempering import tempering
from ebmvk.sampling.tokens import SamplingHealth, TokenSampler
from ebmvk.sphere.geometry import projx

D, VOCABULARY = 24, 200
OF_STATES = [name for name, sampler in SAMPLERS.items() if sampler.module]


def _sampler(name: str, backend: Backend, **settings: float | str) -> TokenSampler:
    mu = projx(torch.randn(VOCABULARY, D, generator=torch.Generator().manual_seed(0)))
    own = LangevinConfig(**({"knn_k": 16} | settings))  # type: ignore[arg-type]
    space = TokenPoints(backend, mu, backend.points(mu), torch.zeros(VOCABULARY), None)
    return TokenSampler(name, space, own, SamplingHealth())


def _contexts(n: int) -> tuple[Tensor, Tensor]:
    """n equal contexts: (query (n, D), log p (n, V)).

    The law doesn't follow from the query, as with a memory.
    """
    g = torch.Generator().manual_seed(1)
    row = torch.log_softmax(-torch.arange(1, VOCABULARY + 1).log()[torch.randperm(VOCABULARY, generator=g)], 0)
    return torch.randn(1, D, generator=g).expand(n, -1).contiguous(), row.expand(n, -1).contiguous()


@pytest.mark.parametrize("name", OF_STATES)
def test_tokens_follow_the_law(name: str, cpu: Backend) -> None:
    """n = 1,000 contexts, 200 steps."""
    query, log_p = _contexts(1000)
    sampler = _sampler(name, cpu)
    found = torch.bincount(sampler.tokens(query, log_p, seed=3, first_chain=0), minlength=VOCABULARY)
    assert statistics.counts_test(found, log_p[0].exp()).p > ALPHA
    assert bool(sampler.health.mixing()) == bool(SAMPLERS[name].rates)


@pytest.mark.parametrize("name", OF_STATES)
def test_a_batch_may_be_split_anywhere(name: str, backend: Backend) -> None:
    sampler = _sampler(name, backend, langevin_steps=16, langevin_levels=4)
    query, log_p = _contexts(6)
    whole = sampler.tokens(query, log_p, seed=9, first_chain=0)
    for first, size in ((0, 1), (1, 5)):
        rows = slice(first, first + size)
        assert torch.equal(sampler.tokens(query[rows], log_p[rows], seed=9, first_chain=first), whole[rows])


@pytest.mark.parametrize("name", OF_STATES)
def test_a_certain_token_is_drawn(name: str) -> None:
    query, log_p = _contexts(4)
    certain = torch.full_like(log_p, -math.inf).index_fill(1, torch.tensor([7]), 0.0)
    found = _sampler(name, Reference(), langevin_steps=16, langevin_levels=4).tokens(
        query, certain, seed=1, first_chain=0
    )
    assert found.tolist() == [7] * 4


def test_every_sampler_is_certified() -> None:
    """Its certificate names tests that exist, or the suite makes a test from the registry."""
    known = {*suite.SAMPLING, *suite.MIXING, *suite.token_tests()}
    for name, sampler in SAMPLERS.items():
        assert set(sampler.certificate) <= known
        assert sampler.certificate or not sampler.module or f"8 tokens, {name}" in known


@pytest.mark.parametrize("name", OF_STATES)
def test_the_suite_tests_a_sampler_that_names_no_tests(
    name: str, cpu: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {name: replace(SAMPLERS[name], certificate=())}
    monkeypatch.setattr(suite, "SAMPLERS", new)
    (test,) = [test for key, test in suite.token_tests().items() if key not in suite.TOKENS]
    sizes = Sizes(0, 0, looks=0, long_chains=0, long_steps=0, token_chains=300, token_dimension=0)
    found = test(cpu, synthetic(16, 1, count=2), sizes, 1)
    assert [check.name for check in found.checks if not check.ok(ALPHA)] == []
    assert {check.name.partition(", ")[2].partition(", ")[0] for check in found.checks} == {name}
    assert tokens.registered(name, cpu, synthetic(16, 1, count=2), sizes, 1).checks == found.checks


@pytest.mark.parametrize("scheme", [name for name in METROPOLIS if name != annealed.USUAL])
def test_tokens_follow_the_law_with_any_integrator(scheme: str, cpu: Backend) -> None:
    query, log_p = _contexts(1000)
    sampler = _sampler("langevin", cpu, langevin_scheme=scheme)
    found = torch.bincount(sampler.tokens(query, log_p, seed=3, first_chain=0), minlength=VOCABULARY)
    assert statistics.counts_test(found, log_p[0].exp()).p > ALPHA
    assert METROPOLIS[scheme] or sampler.health.record()["acceptance"] == 1


def test_the_setting_names_the_integrator_of_every_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps, whatever the integrator: 16, or 4 trajectories of 4."""
    asked: list[tuple[str, int]] = []
    langevin = Reference.langevin

    def recorded(self: Reference, *args: Any, **more: Any) -> Any:
        asked.append((more["scheme"], sum(args[7].steps) * (more["leapfrogs"] if METROPOLIS[more["scheme"]] else 1)))
        return langevin(self, *args, **more)

    monkeypatch.setattr(Reference, "langevin", recorded)
    query, log_p = _contexts(2)
    for name, given, used in (
        ("langevin", "auto", "gbaoab"), ("langevin", "ghmc_two_stage", "ghmc_two_stage"), ("coarse", "obabo", "obabo"),
        ("tempering", "auto", "ghmc"), ("tempering", "ghmc_two_stage", "ghmc_two_stage"),
    ):  # fmt: skip
        asked.clear()
        own = _sampler(name, Reference(), langevin_steps=16, langevin_levels=4, langevin_scheme=given)
        own.tokens(query, log_p, seed=1, first_chain=0)
        assert {scheme for scheme, _ in asked} == {used}
        assert sum(steps for _, steps in asked) == (32 if name == "coarse" else 16)


def test_an_integrator_that_accepts_every_step_is_refused_where_the_law_needs_a_test() -> None:
    with pytest.raises(ConfigError, match="--sampler tempering doesn't work with the run's langevin_scheme gbaoab"):
        _sampler("tempering", Reference(), langevin_scheme="gbaoab")
    law = LatentLaw.from_log_probs(Reference(), Reference().points(projx(torch.randn(9, 5))), torch.zeros(1, 9), 4)
    with pytest.raises(ArgumentError, match="use ghmc or ghmc_two_stage"):
        tempering(law, seed=1, scheme="obabo")


def test_chains_of_another_temperature_are_refused_by_samplers_without_one() -> None:
    for name in OF_STATES:
        if SAMPLERS[name].any_temperature:
            _sampler(name, Reference(), langevin_T=0.5)
        else:
            with pytest.raises(ConfigError, match="langevin_T"):
                _sampler(name, Reference(), langevin_T=0.5)


def test_an_unknown_sampler_is_named_with_the_nearest() -> None:
    with pytest.raises(ArgumentError, match="did you mean tempering"):
        registry.named("temperin")
    with pytest.raises(ArgumentError, match="no states"):
        registry.token_function("exact")
