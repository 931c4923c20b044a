"""Runs the tests, counts their p-values, and says which mutants were caught."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ebmvk.certification import agreement, dynamics, laws, mixtures, tokens
from ebmvk.certification.chains import engine_sampler
from ebmvk.certification.liars import Liar, Lie
from ebmvk.certification.mutants import Mutant, Plain
from ebmvk.certification.results import FAMILY_LEVEL, Bench, Check, Findings, Picture, Sizes
from ebmvk.certification.tokens import Contexts
from ebmvk.engine.api import Backend
from ebmvk.errors import EbmvkError

Test = Callable[[Bench], Findings]
LawTest = Callable[[Backend, Sizes, int], Findings]
Say = Callable[[str], None]

SAMPLING: dict[str, Test] = {
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
"""The tests that any sampler can take."""

CAUGHT_BY: dict[Mutant, tuple[Test, str]] = {
    "no projection": (dynamics.constraints, "constraints, gbaoab"),
    "wrong O variance": (laws.equipartition_free, "equipartition, free, gbaoab"),
    "no transport": (dynamics.rotation, "rotation, gbaoab"),
    "no negation": (laws.no_bias, "bias, ghmc"),
}
"""The test and the check that each mutant must fail."""

MIXING: dict[str, LawTest] = {"7 block Gibbs": mixtures.gibbs, "7 tempering": mixtures.replicas}
"""The tests of samplers that a backend is all they need of."""

SEEN_BY: dict[Lie, tuple[LawTest, str]] = {
    "swap without the ratio": (mixtures.replicas, "mixture weights, tempering"),
    "x|v at twice kappa": (mixtures.gibbs, "mixture weights, gibbs"),
    "coarse decoder without weights": (tokens.coarse_made_up, "tokens, coarse to fine, context 1"),
}
"""The test and the check that each lie of a backend must fail."""

FULL = Sizes(20_000, 4000, looks=20, long_chains=8, long_steps=100_000, token_chains=20_000, token_dimension=256)
QUICK = Sizes(4000, 1000, looks=20, long_chains=2, long_steps=100_000, token_chains=1000, token_dimension=64)
QUICK_SLOW = Sizes(1000, 400, looks=24, long_chains=1, long_steps=100_000, token_chains=200, token_dimension=32)
"""For lavapipe and plain torch."""
MUTANTS = Sizes(1500, 50, looks=20, long_chains=2, long_steps=100, token_chains=0, token_dimension=0)
LIES = Sizes(500, 50, looks=20, long_chains=2, long_steps=100, token_chains=400, token_dimension=16)


@dataclass(frozen=True)
class Caught:
    """What a mutant did to the test that must catch it; `control`: the same test of the same sampler, unbroken."""

    mutant: Mutant | Lie
    check: Check
    control: Check

    def ok(self, alpha: float) -> bool:
        return self.control.ok(alpha) and not self.check.ok(alpha)


@dataclass
class Certificate:
    """Everything a run found. seconds: by test."""

    checks: list[Check] = field(default_factory=list)
    caught: list[Caught] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def comparisons(self) -> int:
        """p-values that share the family-wise level."""
        return sum(check.p is not None for check in self.checks)

    @property
    def level(self) -> float:
        """Family-wise."""
        return FAMILY_LEVEL

    @property
    def alpha(self) -> float:
        return FAMILY_LEVEL / max(1, self.comparisons)

    @property
    def ok(self) -> bool:
        right = all(check.ok(self.alpha) for check in self.checks)
        return right and all(caught.ok(self.alpha) for caught in self.caught)


def sizes_for(backend: Backend, *, quick: bool) -> Sizes:
    """Quick on a device that is a CPU in disguise, or plain torch: smaller still."""
    if not quick:
        return FULL
    return QUICK if backend.name == "cpu" else QUICK_SLOW


def certify(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, say: Say = lambda _: None) -> Certificate:
    """All tests and all mutants. A typed error of the backend fails the test it came in; `say` gets progress."""
    found = Certificate()
    bench = Bench(engine_sampler(backend), sizes, seed)
    for name, test in SAMPLING.items():
        _run(found, name, lambda test=test: test(bench), say)  # type: ignore[misc]
    for name, law_test in MIXING.items():
        _run(found, name, lambda test=law_test: test(backend, sizes, seed), say)  # type: ignore[misc]
    _run(found, "8 tokens", lambda: tokens.identity(backend, contexts, sizes, seed), say)
    if contexts.query is None:
        memory = tokens.remembering(contexts, seed)
        _run(found, "8 tokens with memory", lambda: tokens.identity(backend, memory, sizes, seed), say)
    _run(found, "8 tokens, coarse to fine", lambda: tokens.coarse(backend, contexts, sizes, seed), say)
    others, missing = agreement.peers(backend)
    found.notes += [missing] if missing else []
    _run(found, "10 agreement", lambda: agreement.trajectories(backend, others, seed), say)
    found.checks.sort(key=lambda check: check.number)
    began = time.perf_counter()
    found.caught = [catch(mutant, seed) for mutant in CAUGHT_BY] + [catch_lie(lie, seed) for lie in SEEN_BY]
    found.seconds["mutants"] = time.perf_counter() - began
    say(f"mutants: {found.seconds['mutants']:.1f} s")
    return found


def catch(mutant: Mutant, seed: int, sizes: Sizes = MUTANTS) -> Caught:
    """The check that must catch `mutant`, of the broken and of the unbroken integrator."""
    test, name = CAUGHT_BY[mutant]
    broken, unbroken = (
        next(check for check in test(Bench(Plain(which), sizes, seed)).checks if check.name == name)
        for which in (mutant, None)
    )
    return Caught(mutant, broken, unbroken)


def catch_lie(lie: Lie, seed: int, sizes: Sizes = LIES) -> Caught:
    """The check that must see `lie`, of a backend that lies and of one that does not."""
    test, name = SEEN_BY[lie]
    wrong, right = (
        next(check for check in test(Liar(told), sizes, seed).checks if check.name == name) for told in (lie, None)
    )
    return Caught(lie, wrong, right)


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
    say(f"{name}: {found.seconds[name]:.1f} s")
