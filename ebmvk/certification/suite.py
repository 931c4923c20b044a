"""Lists the tests, and the broken samplers (mutants) that each must catch, and runs them all."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ebmvk.certification import agreement, dynamics, exact, laws, mixtures, noise, tokens
from ebmvk.certification.chains import engine_sampler
from ebmvk.certification.contexts import Contexts
from ebmvk.certification.evidence import ALPHA
from ebmvk.certification.liars import Lie, lying
from ebmvk.certification.mutants import Mutant, Plain
from ebmvk.certification.results import FAMILY_LEVEL, Bench, Check, Findings, Picture, Sizes
from ebmvk.engine.api import Backend
from ebmvk.errors import EbmvkError
from ebmvk.sampling.registry import SAMPLERS

Test = Callable[[Bench], Findings]
LawTest = Callable[[Backend, Sizes, int], Findings]
TokenTest = Callable[[Backend, Contexts, Sizes, int], Findings]
Say = Callable[[str], None]

SAMPLING: dict[str, Test] = {
    "11 independent noise": noise.independent_noise,
    "1 constraints": dynamics.constraints,
    "2 uniform law": laws.uniformity,
    "3 reversal": dynamics.reversal,
    "3 energy error": dynamics.energy_order,
    "3 rotation": dynamics.rotation,
    "4 and 6 von Mises-Fisher": laws.von_mises_fisher,
    "5 equipartition, free": laws.equipartition_free,
    "5 equipartition": laws.equipartition,
    "7 mixture weights": mixtures.weights,
    "9 order of the bias": laws.order_of_bias,
    "9 no bias": laws.no_bias,
}
"""The tests of chains, for any `chains.Sampler`; the fastest informative ones come first."""

CAUGHT_BY: dict[Mutant, tuple[Test, str]] = {
    "no projection": (dynamics.constraints, "constraints, gbaoab"),
    "wrong O variance": (laws.equipartition_free, "equipartition, free, gbaoab"),
    "no transport": (dynamics.rotation, "rotation, gbaoab"),
    "no negation": (laws.no_bias, "bias, ghmc"),
    "acceptance at T = 1": (laws.no_bias, "bias, ghmc, T = 0.5"),
    "friction that heats": (laws.equipartition_free, "equipartition, free, gbaoab"),
    "steps repeat after 2^16": (noise.independent_noise, "noise of steps"),
    "one noise for all chains": (noise.independent_noise, "noise of chains"),
    "mirrored chains": (laws.uniformity, "uniform, d = 8, gbaoab"),
    "one noise for both halves": (noise.independent_noise, "noise of halves, ghmc"),
}
"""The test and the check that each mutant must fail."""

MIXING: dict[str, LawTest] = {
    "10 operations": lambda backend, _, seed: agreement.operations(backend, seed),
    "12 exact samples": exact.samples,
    "12 normaliser": lambda backend, *_: exact.normaliser(backend),
    "7 block Gibbs": mixtures.gibbs,
    "7 tempering": mixtures.replicas,
}
"""The tests that need only a backend."""

TOKENS: dict[str, TokenTest] = {
    "8 exact states": tokens.exact,
    "8 tokens": tokens.identity,
    "8 tokens with memory": tokens.with_memory,
    "8 tokens, coarse to fine": tokens.coarse,
}
"""The tests of tokens in the contexts of a model, or in made-up contexts."""

SEEN_BY: dict[Lie, tuple[LawTest, str]] = {
    "swap without the ratio": (mixtures.replicas, "mixture weights, tempering"),
    "x|v at twice kappa": (mixtures.gibbs, "mixture weights, gibbs"),
    "coarse decoder without weights": (tokens.coarse_made_up, "tokens, coarse to fine, context 1"),
    "exact samples at 1.03 kappa": (exact.samples, "vmf_sample mean, d = 640"),
    "Gibbs: rest at .3 kappa": (mixtures.gibbs, "invariance, gibbs: mean"),
    "top-k without its best": (MIXING["10 operations"], "float64 reference, best candidates"),
    "points rounded to float16": (MIXING["10 operations"], "float64 reference, energies and scores"),
    "rest mass times e^-.2": (tokens.exact_made_up, "exact states, all contexts: rest"),
    "log C times 1.05": (tokens.exact_made_up, "exact states, all contexts: rest"),
    "log C of d + 1": (MIXING["12 normaliser"], "normaliser"),
    "decoding at the last level but one": (tokens.identity_made_up, "tokens, all contexts: concentration"),
    "a candidate twice": (tokens.exact_made_up, "exact states, all contexts"),
    "decoder with the numbers of x": (tokens.exact_made_up, "exact states, all contexts"),
    "ladder upside down": (mixtures.replicas, "mixture weights, tempering"),
}
"""The test and the check that each lie must fail."""

FULL = Sizes(20_000, 4000, looks=20, long_chains=8, long_steps=100_000, token_chains=25_000, token_dimension=256)
QUICK = Sizes(4000, 1000, looks=20, long_chains=2, long_steps=100_000, token_chains=1000, token_dimension=64)
QUICK_SLOW = Sizes(1000, 400, looks=24, long_chains=1, long_steps=100_000, token_chains=200, token_dimension=32)
"""Sizes for lavapipe, which is Vulkan on a CPU, and for plain torch."""
MUTANTS = Sizes(1500, 50, looks=20, long_chains=2, long_steps=100, token_chains=0, token_dimension=0)
LIES = Sizes(4000, 1000, looks=20, long_chains=2, long_steps=100, token_chains=400, token_dimension=16)


@dataclass(frozen=True)
class Caught:
    """The check that a mutant must fail, run with the mutant and (`control`) without it."""

    mutant: Mutant | Lie
    check: Check
    control: Check

    def ok(self, alpha: float) -> bool:
        return self.control.ok(alpha) and not self.check.ok(alpha)


@dataclass
class Certificate:
    """Everything that a run found. seconds: the time of each test."""

    checks: list[Check] = field(default_factory=list)
    caught: list[Caught] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def comparisons(self) -> int:
        """Number of p-values that share the family-wise level."""
        return sum(check.p is not None for check in self.checks)

    @property
    def level(self) -> float:
        """The probability that a right sampler fails at least one check."""
        return FAMILY_LEVEL

    @property
    def alpha(self) -> float:
        """The level of each p-value (Bonferroni)."""
        return FAMILY_LEVEL / max(1, self.comparisons)

    @property
    def ok(self) -> bool:
        right = all(check.ok(self.alpha) for check in self.checks)
        return right and all(caught.ok(self.alpha) for caught in self.caught)


def sizes_for(backend: Backend, *, quick: bool) -> Sizes:
    """The sizes for a device. They are smaller for plain torch, and for a Vulkan device that may be
    a CPU.
    """
    if not quick:
        return FULL
    return QUICK if backend.name == "cpu" else QUICK_SLOW


def certify(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, say: Say = lambda _: None) -> Certificate:
    """Run all tests and all mutants.

    A typed error fails the test in which it was raised. say: called with lines on progress.
    """
    found = Certificate()
    bench = Bench(engine_sampler(backend), sizes, seed)
    for name, law_test in MIXING.items():
        _run(found, name, lambda test=law_test: test(backend, sizes, seed), say)  # type: ignore[misc]
    for name, test in SAMPLING.items():
        _run(found, name, lambda test=test: test(bench), say)  # type: ignore[misc]
    for name, token_test in token_tests().items():
        if token_test is tokens.with_memory and contexts.query is not None:
            continue  # a model's contexts use the model's own memory
        _run(found, name, lambda test=token_test: test(backend, contexts, sizes, seed), say)  # type: ignore[misc]
    others, missing = agreement.peers(backend)
    found.notes += [missing] if missing else []
    _run(found, "10 agreement", lambda: agreement.trajectories(backend, others, seed), say)
    found.checks.sort(key=lambda check: check.number)
    began = time.perf_counter()
    found.caught = [catch(mutant, seed) for mutant in CAUGHT_BY] + [catch_lie(lie, seed) for lie in SEEN_BY]
    found.seconds["mutants"] = time.perf_counter() - began
    say(f"mutants: {found.seconds['mutants']:.1f} s")
    return found


def token_tests() -> dict[str, TokenTest]:
    """`TOKENS`, plus a test for each sampler of states whose registry entry doesn't name tests."""
    own = [name for name, sampler in SAMPLERS.items() if sampler.module and not sampler.certificate]
    return TOKENS | {f"8 tokens, {name}": functools.partial(tokens.registered, name) for name in own}


def catch(mutant: Mutant, seed: int, sizes: Sizes = MUTANTS) -> Caught:
    """Run the check that must catch `mutant` twice: with the mutant and without it."""
    test, name = CAUGHT_BY[mutant]
    return Caught(mutant, *(_named(_of_plain(test, which, sizes, seed), name) for which in (mutant, None)))


def catch_lie(lie: Lie, seed: int, sizes: Sizes = LIES) -> Caught:
    """Run the check that must catch `lie` twice: with the lie and without it."""
    test, name = SEEN_BY[lie]
    return Caught(lie, *(_named(_of_lie(test, told, sizes, seed), name) for told in (lie, None)))


@functools.lru_cache(maxsize=32)
def _of_plain(test: Test, mutant: Mutant | None, sizes: Sizes, seed: int) -> Findings:
    """The findings of a test of `Plain`; cached, because mutants share the unbroken result."""
    return test(Bench(Plain(mutant), sizes, seed))


@functools.lru_cache(maxsize=32)
def _of_lie(test: LawTest, lie: Lie | None, sizes: Sizes, seed: int) -> Findings:
    with lying(lie) as backend:
        return test(backend, sizes, seed)


def _named(findings: Findings, name: str) -> Check:
    """The check whose name ends with `name`, because some names begin with the backend's name."""
    return next(check for check in findings.checks if check.name.endswith(name))


def _run(found: Certificate, name: str, test: Callable[[], Findings], say: Say) -> None:
    began = time.perf_counter()
    try:
        findings = test()
    except EbmvkError as error:
        number = int(name.split(maxsplit=1)[0])
        findings = Findings([Check(number, name, "runs at all", 0, float("nan"), "-", detail=str(error))])
    found.checks += findings.checks
    found.pictures += findings.pictures
    found.seconds[name] = time.perf_counter() - began
    failed = [check.name for check in findings.checks if not check.ok(ALPHA)]
    say(f"{name}: {found.seconds[name]:.1f} s" + (f"; FAIL {', '.join(failed)}" if failed else ""))
