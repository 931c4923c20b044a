"""What a test of the suite returns, and how large the tests are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ebmvk.certification.chains import Sampler
from ebmvk.certification.statistics import Evidence

FAMILY_LEVEL = 1e-3
"""Probability that a right sampler fails at least one check; all p-values share it (Bonferroni)."""


@dataclass(frozen=True)
class Check:
    """One verdict, decided by a p-value, by bounds of the statistic, or by both.

    number: the number of the test in model section 7. name: unique. claim: what is tested. n: the
    number of values behind the statistic.
    """

    number: int
    name: str
    claim: str
    n: int
    statistic: float
    symbol: str
    p: float | None = None
    low: float = -math.inf
    high: float = math.inf
    detail: str = ""

    def ok(self, alpha: float) -> bool:
        """True if the check passed; False if a value is NaN."""
        if self.p is not None and not self.p >= alpha:
            return False
        if math.isinf(self.low) and math.isinf(self.high):
            return self.p is not None
        return self.low <= self.statistic <= self.high


@dataclass(frozen=True)
class Series:
    """One line of a picture. marks: also draw its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = False


@dataclass(frozen=True)
class Picture:
    """The data of one plot. lines: horizontal reference lines, by label."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    log: bool = False
    lines: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What one test found."""

    checks: list[Check]
    pictures: list[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Sizes:
    """How much each test does. The tests' claims hold for any sizes.

    chains: number of chains at d = 8 and 16; wide: number of chains at d = 640. looks: number of
    times that test 9 looks at each chain. long_chains, long_steps: chains and steps of test 1.
    token_chains: number of chains in each context of test 8; token_dimension: d of its made-up
    laws.
    """

    chains: int
    wide: int
    looks: int
    long_chains: int
    long_steps: int
    token_chains: int
    token_dimension: int


@dataclass(frozen=True)
class Bench:
    """A sampler to test, with the sizes of the tests and a seed."""

    sampler: Sampler
    sizes: Sizes
    seed: int


def by_p(number: int, name: str, claim: str, n: int, symbol: str, tested: Evidence, detail: str = "") -> Check:
    """A check whose verdict is a p-value; NaN fails."""
    p = 0.0 if math.isnan(tested.p) else tested.p
    return Check(number, name, claim, n, tested.statistic, symbol, p=p, detail=detail)
