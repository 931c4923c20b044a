"""Test 8: the evidence that drawn tokens have the law p(v|c), in each context and over all.

- Each context is tested by chi^2, whose p-value decides. It is also tested by an upper bound (99 %)
  of the total variation to p(v|c), over the cells of the chi^2 test. True draws exceed the allowed
  bound with probability 1e-5. With 25,000 chains the allowed bound is .05, or a little more if a
  law needs more than 512 cells. The total variation of the counts isn't used, because noise hides a
  small deviation. Subtracting its mean under the law leaves only the square of that deviation.
- All contexts together are tested by chi^2 and by three numbers: the mass outside the candidates,
  the exponent s of the law p^s that the tokens follow, and the concentration of the states.

If a context fails, its steps are doubled, up to 3,200, as long as doubling helps. Once a context
has failed for good, the others get no more steps. If a sampler is clearly wrong, a tenth of the
chains is enough to show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.contexts import Contexts
from ebmvk.certification.draws import Drawn
from ebmvk.certification.results import Check, Findings, Picture, Series, by_p
from ebmvk.certification.statistics import Evidence, Fit

BOUND = 0.05
"""Allowed total variation.

Fewer than 25,000 chains cannot show a bound this low; then the lowest bound that they can show is
allowed.
"""
ALPHA = 1e-5
"""Level of the p-value of one context: about a hundred p-values share the level 1e-3."""
CERTAIN, FEWEST = 1e-12, 100
"""No more chains are drawn if the p-value is below the first number, with at least the second
number of chains."""
FLAT = 1e-9
"""A function of tokens with a variance up to this counts as constant."""
HELPED = 0.75
"""Doubling the steps helps if it reduces the chi^2 distance at least to this share of its value."""
STEPS, MOST_STEPS = 200, 3200


@dataclass(frozen=True)
class Route:
    """A way from laws to tokens.

    drawn: takes (context, first chain, number of chains, steps, seed) and draws tokens. outside:
    takes a context and returns (V,) bool, True for tokens that aren't candidates. slack: the
    deviations allowed over all contexts.
    """

    name: str
    claim: str
    drawn: Callable[[int, int, int, int, int], Drawn]
    outside: Callable[[int], Tensor]
    slack: Slack


@dataclass(frozen=True)
class Slack:
    """Allowed deviations of the log odds of the rest, of the exponent s of p^s, and of the
    concentration.
    """

    rest: float = 0.0
    exponent: float = 0.0
    concentration: float = 0.0


def compared(route: Route, contexts: Contexts, n: int, seed: int, most_steps: int | None = None) -> Findings:
    """The tests of every context with n chains, and those over all contexts.

    most_steps: doubling stops there; 3,200 by default.
    """
    most = MOST_STEPS if most_steps is None else most_steps
    checks, total, series = [], Total(), []
    for i in range(len(contexts.labels)):
        check, drawn, bound = _settled(route, contexts, i, n, seed, most)
        checks.append(check)
        series.append(bound)
        total.add(contexts, i, route.outside(i), drawn)
        if not check.ok(ALPHA):
            most = STEPS  # more steps did not help, and one failure is enough
    x = contexts.entropy.tolist()
    drawn_series = [
        Series("upper bound, 99 %", x, series, marks=True),
        Series("allowed", x, [check.high for check in checks], marks=True),
    ]
    title = f"{route.claim}: {n:,} chains per context"
    slug = route.name.replace(", ", "-").replace(" ", "-")
    pictures = [Picture(slug, title, "entropy of p(v|c), nats", "total variation", drawn_series)]
    return Findings(checks + total.checks(route.name, route.claim, route.slack), pictures)


def _settled(route: Route, contexts: Contexts, i: int, n: int, seed: int, most: int) -> tuple[Check, Drawn, float]:
    """(check, draws, upper bound of the total variation) of one context, with as many steps as it
    needs.
    """
    p = contexts.log_p[i].double().exp().cpu()
    steps, tried, last = STEPS, [], math.inf
    while True:
        drawn, found = _until_clear(route, i, n, steps, seed * 1000 + i, p)
        high = max(BOUND, found.excluded(ALPHA))
        bound = found.distance()
        tried.append(f"p {found.p:.2g} with {steps}")
        off = (found.statistic - found.freedom) / found.n
        if (found.p >= ALPHA and bound <= high) or 2 * steps > most or off > HELPED * last:
            break
        steps, last = 2 * steps, off
    counts = torch.bincount(drawn.tokens, minlength=len(p))
    detail = (
        f"chi2 {found.statistic:.1f} for {found.freedom:.0f}; TV {statistics.total_variation(counts, p):.4f}, of true "
        f"draws {statistics.expected_total_variation(p / p.sum(), found.n):.4f}; {steps} steps"
        + (f" ({', '.join(tried)})" if len(tried) > 1 else "")
        + f"; mass outside the candidates {float(p[route.outside(i)].sum()):.2f}; {contexts.labels[i]!r}"
    )
    name = f"{route.name}, context {i + 1}"
    claim = f"{route.claim}; H = {float(contexts.entropy[i]):.2f} nats"
    check = Check(8, name, claim, found.n, bound, "TV bound", p=found.p, high=high, detail=detail)
    return check, drawn, bound


def _until_clear(route: Route, i: int, n: int, steps: int, seed: int, p: Tensor) -> tuple[Drawn, Fit]:
    """n draws and their fit. If a tenth of the draws already proves that the law is wrong, the
    others aren't made.
    """
    few = n // 10 if n >= 10 * FEWEST else n
    drawn = route.drawn(i, 0, few, steps, seed)
    found = _fit(drawn, p)
    if found.p >= CERTAIN and few < n:
        drawn += route.drawn(i, few, n - few, steps, seed)
        found = _fit(drawn, p)
    return drawn, found


def _fit(drawn: Drawn, p: Tensor) -> Fit:
    return statistics.fit(torch.bincount(drawn.tokens, minlength=len(p)), p)


class Total:
    """The evidence of all contexts together."""

    def __init__(self) -> None:
        self.fit = Fit(0.0, 0.0, 0.0, 0.0, 0)
        self.rest, self.surprise = _Sum(), _Sum()
        self.heat: list[Tensor] = []

    def add(self, contexts: Contexts, i: int, outside: Tensor, drawn: Drawn) -> None:
        log_p = contexts.log_p[i].double().cpu()
        p = log_p.exp() / log_p.exp().sum()
        self.fit += _fit(drawn, p)
        self.rest.add(outside.double(), p, drawn.tokens)
        self.surprise.add(log_p.clamp_min(-1e3), p, drawn.tokens)
        if drawn.heat is not None:
            self.heat.append(drawn.heat)

    def checks(self, route: str, claim: str, slack: Slack) -> list[Check]:
        n, name = self.fit.n, f"{route}, all contexts"
        whole = statistics.Evidence(self.fit.statistic, self.fit.p)
        bound = f"root mean square over contexts of the bound of TV {self.fit.distance():.4f}"
        found = [
            by_p(8, name, f"{claim}: tokens of all contexts", n, "chi2", whole, bound),
            by_p(8, f"{name}: rest", f"mass outside the candidates{_within(slack.rest, ' in log odds')}", n, "z",
                 self.rest.test(slack.rest), f"log odds off by {self.rest.tilt:.4f}"),
            by_p(8, f"{name}: exponent", f"tokens follow p^s with s = 1{_within(slack.exponent)}", n, "z",
                 self.surprise.test(slack.exponent), f"s is {1 + self.surprise.tilt:.4f}"),
        ]  # fmt: skip
        if self.heat:
            found.append(self._concentration(name, slack.concentration))
        return found

    def _concentration(self, name: str, slack: float) -> Check:
        above, below = torch.cat(self.heat).unbind(1)
        claim = f"x has the concentration that decoding assumes{_within(slack)}"
        detail = f"configurational temperature {1 + float(above.mean() / below.mean()):.4f}"
        tested = statistics.ratio_test(above, below, slack)
        return by_p(8, f"{name}: concentration", claim, len(above), "z", tested, detail)


def _within(slack: float, what: str = "") -> str:
    return f", within {slack:g}{what}" if slack else ""


@dataclass
class _Sum:
    """Deviation of a function of tokens from its mean under the laws, and its variance."""

    excess: float = 0.0
    variance: float = 0.0

    def add(self, f: Tensor, p: Tensor, tokens: Tensor) -> None:
        mean = float((p * f).sum())
        spread = float((p * (f - mean).square()).sum())
        if spread > FLAT:  # if f is constant, as under a uniform law, its deviations are rounding errors
            self.excess += float((f[tokens] - mean).sum())
            self.variance += len(tokens) * spread

    @property
    def tilt(self) -> float:
        return self.excess / self.variance if self.variance else 0.0

    def test(self, slack: float) -> Evidence:
        return statistics.tilt_test(self.excess, self.variance, slack)
