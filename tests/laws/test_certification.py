"""The certification suite (model section 7): every backend passes it, and broken samplers fail it.

Sizes are small, because the tests' claims hold for any size. `ebmvk certify` runs the same tests
with more chains.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from laws_support import ALPHA
from torch import Tensor

from ebmvk.certification import agreement, dynamics, laws, mixtures, noise, suite, tokens
from ebmvk.certification.chains import Run, Task, engine_sampler, onward, uniform_start, vmf_target
from ebmvk.certification.contexts import synthetic
from ebmvk.certification.liars import Liar, lying
from ebmvk.certification.mutants import Mutant, Plain
from ebmvk.certification.results import Bench, Findings, Sizes
from ebmvk.engine.api import Backend, LangevinResult
from ebmvk.engine.reference import Reference

CPU = Sizes(1000, 400, looks=24, long_chains=1, long_steps=20_000, token_chains=400, token_dimension=32)
SLOW = Sizes(200, 30, looks=6, long_chains=1, long_steps=200, token_chains=50, token_dimension=32)
"""For plain torch, and for the Vulkan device of a test machine, which is a CPU in disguise."""
SEED = 1


def _bench(backend: Backend) -> Bench:
    return Bench(engine_sampler(backend), CPU if backend.name == "cpu" else SLOW, SEED)


def _failed(findings: Findings) -> list[str]:
    return [check.name for check in findings.checks if not check.ok(ALPHA)]


@pytest.mark.parametrize("name", suite.SAMPLING)
def test_every_backend_passes(name: str, backend: Backend) -> None:
    if name == "9 order of the bias" and backend.name != "cpu":
        pytest.skip("needs some 5,000 states in 640 dimensions; the trajectories are those of the CPU (test 10)")
    assert _failed(suite.SAMPLING[name](_bench(backend))) == []


def test_backends_agree(backend: Backend) -> None:
    others, _ = agreement.peers(backend)
    assert {"float64 reference", "the suite's own integrator"} <= {peer.name for peer in others}
    assert _failed(agreement.trajectories(backend, others, SEED)) == []


@pytest.mark.parametrize("mutant", suite.CAUGHT_BY)
def test_every_mutant_fails_its_test(mutant: Mutant) -> None:
    caught = suite.catch(mutant, SEED)
    assert caught.control.ok(ALPHA)
    assert not caught.check.ok(ALPHA)


def test_a_mutant_that_passes_is_not_caught() -> None:
    right = suite.catch("no transport", SEED).control
    assert not suite.Caught("no transport", right, right).ok(ALPHA)


def test_chains_that_stand_still_fail() -> None:
    """Such chains keep every invariant, and any law that they start from, so the tests start far
    from the true law."""

    def still(task: Task) -> Run:
        one = torch.ones(len(task.x))
        return Run(task.x, task.v, one, 0 * one, one, 0 * one)

    bench = Bench(still, SLOW, SEED)
    assert _failed(dynamics.constraints(bench)) == []
    for test in (laws.uniformity, laws.von_mises_fisher, mixtures.weights, laws.no_bias):
        assert _failed(test(bench)), test.__name__


def test_chains_of_nan_fail() -> None:
    def lost(task: Task) -> Run:
        nan = torch.full((len(task.x),), math.nan)
        return Run(task.x * math.nan, task.v * math.nan, nan, nan, nan, nan)

    for name, test in suite.SAMPLING.items():
        findings = test(Bench(lost, SLOW, SEED))
        assert len(_failed(findings)) == len(findings.checks), name


def test_a_run_in_two_parts_equals_one_run(cpu: Backend) -> None:
    x, v = uniform_start(20, 8, 3)
    task = Task(vmf_target(8, 8.0), x, v, 0.05, 2.0, 30, seed=4)
    sample = engine_sampler(cpu)
    first = replace(task, steps=12)
    whole, parts = sample(task), sample(onward(first, sample(first), steps=18))
    assert torch.equal(whole.x, parts.x)
    assert torch.equal(whole.v, parts.v)


def test_the_suites_integrator_has_the_engines_diagnostics(cpu: Backend) -> None:
    """Temperature, energy error, and acceptance when a third of all trajectories is rejected."""
    x, v = uniform_start(50, 8, 5)
    for scheme, h in (("gbaoab", 0.1), ("ghmc", 0.45)):
        task = Task(vmf_target(8, 8.0), x, v, h, 1.0, 10, 7, scheme, 2, 0.8)
        mine, other = Plain()(task), engine_sampler(cpu)(task)
        assert scheme == "gbaoab" or 0.4 < float(mine.acceptance.mean()) < 0.9
        for name in ("kinetic_temperature", "energy_error", "acceptance"):
            # float32 energies near 8, whose rounding exceeds a small energy error
            torch.testing.assert_close(getattr(mine, name).float(), getattr(other, name).float(), rtol=1e-4, atol=2e-6)


def test_synthetic_contexts_span_the_entropies() -> None:
    contexts = synthetic(32, SEED)
    assert contexts.log_p.shape == (20, 512)
    torch.testing.assert_close(contexts.log_p.exp().sum(1), torch.ones(20))
    wanted = torch.linspace(0.1, math.log(512), 20, dtype=torch.float64)
    torch.testing.assert_close(contexts.entropy, wanted, rtol=0, atol=0.05)


def test_tokens_follow_their_law(backend: Backend) -> None:
    contexts = synthetic(32, SEED, count=3)
    sizes = CPU if backend.name == "cpu" else SLOW
    findings = tokens.identity(backend, contexts, sizes, SEED)
    assert _failed(findings) == []
    assert [
        check.name for check in findings.checks if "context " in check.name and "200 steps" not in check.detail
    ] == []
    assert _failed(tokens.exact(backend, contexts, replace(sizes, chains=sizes.token_chains), SEED)) == []


def test_rounding_of_a_uniform_law_is_not_evidence(cpu: Backend) -> None:
    """All its tokens are equally likely; rounding of their log p is not evidence."""
    flat = synthetic(16, SEED, count=2).some(slice(1, 2))
    assert _failed(tokens.identity(cpu, flat, replace(CPU, token_chains=200), SEED)) == []


class Sluggish(Reference):
    """Takes a single step, whatever the number of steps asked for."""

    def langevin(self, *args: Any, **more: Any) -> LangevinResult:
        *state, schedule = args
        return super().langevin(*state, replace(schedule, steps=(1,) + (0,) * (len(schedule.steps) - 1)), **more)


def test_steps_are_not_doubled_if_that_does_not_help() -> None:
    """x stays nearly uniform, and its tokens don't have the law p(v|c)."""
    contexts = synthetic(32, SEED, count=3)
    found = tokens.identity(Sluggish(), contexts, replace(SLOW, token_chains=300), SEED)
    worst = found.checks[1]
    assert not worst.ok(ALPHA)
    assert all(f"with {steps}" in worst.detail for steps in (200, 400))
    assert "with 800" not in worst.detail


class Slow(Reference):
    """Takes a twentieth of the steps that it is asked for."""

    def langevin(self, *args: Any, **more: Any) -> LangevinResult:
        *state, schedule = args
        steps = tuple(max(1, steps // 20) for steps in schedule.steps)
        return super().langevin(*state, replace(schedule, steps=steps), **more)


def test_a_context_gets_the_steps_that_it_needs() -> None:
    contexts = synthetic(32, SEED, count=4).some(slice(1, 2))
    check = tokens.identity(Slow(), contexts, replace(SLOW, token_chains=1000), SEED).checks[0]
    assert check.ok(ALPHA), check
    assert "800 steps" in check.detail
    assert "with 400" in check.detail


class Counting(Liar):
    """Counts steps of chains."""

    work = 0

    def langevin(self, x: Tensor, *args: Any, **more: Any) -> LangevinResult:
        self.work += len(x) * sum(args[-1].steps)
        found: LangevinResult = self._own.langevin(x, *args, **more)
        return found


def test_a_clearly_wrong_law_is_found_with_little_more_work(cpu: Backend) -> None:
    """A tenth of the chains is enough, and only the first failing context gets more steps."""
    contexts, sizes = synthetic(16, SEED, count=8), replace(CPU, token_chains=1000)
    work = {}
    for lie in (None, "a candidate twice"):
        with lying(lie):
            counting = Counting(cpu, None)
            findings = tokens.identity(cast("Backend", counting), contexts, sizes, SEED)
        work[lie] = counting.work
        assert (_failed(findings) == []) == (lie is None)
    assert work[None] == 8 * 1000 * 200
    assert work["a candidate twice"] < 1.5 * work[None]


def test_noise_that_repeats_fails_the_test_of_its_counter(cpu: Backend) -> None:
    """Each sampler here ignores a part of one counter."""
    sample = engine_sampler(cpu)
    for name, wrong in {
        "noise of steps": lambda task: replace(task, first_step=task.first_step % 50_000),
        "noise of chains": lambda task: replace(task, first_chain=task.first_chain & 0xFFFFFF),
        "noise of seeds": lambda task: replace(task, seed=task.seed & 0xFFFFFFFF),
    }.items():
        findings = noise.independent_noise(Bench(lambda task, wrong=wrong: sample(wrong(task)), CPU, SEED))
        # A repeated number isn't normal
        assert set(_failed(findings)) - {"noise is normal"} == {name}


def test_an_error_of_the_device_fails_the_running_test() -> None:
    from ebmvk.errors import DeviceLost

    found = suite.Certificate()

    def lost() -> Findings:
        raise DeviceLost("the device is gone", hint="look for it")

    suite._run(found, "8 tokens", lost, lambda _: None)
    assert not found.ok
    assert found.checks[0].number == 8
    assert "gone" in found.checks[0].detail


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_suite(cpu: Backend) -> None:
    contexts = synthetic(suite.FULL.token_dimension, 42)
    certificate = suite.certify(cpu, contexts, suite.FULL, 42)
    assert [check.name for check in certificate.checks if not check.ok(certificate.alpha)] == []
    assert certificate.ok
