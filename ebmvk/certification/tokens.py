"""Test 8, the project's central one: a token decoded from the state of a chain alone has the law p(v|c).

So does one that is drawn coarse to fine. Contexts come from a trained model, with its static memory in half of them if
it has one; or are made up, and then some of their laws are mixtures with a memory that the candidates know nothing of.

Exact states test the law, its sampler and its decoder without the bias of a chain. Chains are biased: 200 steps leave
a total variation of about .002. So for chains only a bound is claimed, and tests over all contexts have some slack:

- each context by chi^2, whose p-value decides, and by an upper bound (99 %) of the total variation to p(v|c) over the
  cells of that test. True draws exceed the allowed bound with probability 1e-5. With 25,000 chains it is .05, or a
  little more if a law needs more than 512 cells. Total variation itself isn't used: noise of the counts hides it, and
  after subtracting its mean under the law it grows only with the square of a small deviation.
- all contexts together by chi^2, and by three numbers: the mass outside the candidates, the exponent s of the law p^s
that the tokens follow, and the concentration of the states.

If a context fails, its steps are doubled, up to 3,200, as long as that helps. Once a context has failed for good, the
others get no more steps; if a sampler is clearly wrong, a tenth of the chains is enough.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.certification import statistics
from ebmvk.certification.results import Check, Findings, Picture, Series, Sizes, by_p
from ebmvk.certification.statistics import Evidence, Fit
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.engine.api import Backend, Points
from ebmvk.memory.law import Reader
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.sampling.coarse import Neighbourhoods, coarse_to_fine
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.schedule import LAST
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import kappa_critical, log_c_ratio

CONTEXTS = 20
BOUND = 0.05
"""Allowed total variation. Fewer than 25,000 chains cannot show as much; then the bound is what they can show."""
ALPHA = 1e-5
"""Level of one context: about a hundred p-values share 1e-3."""
CERTAIN, FEWEST = 1e-12, 100
"""Below this p-value no more chains are drawn; the fewest chains that it may come from."""
FLAT = 1e-9
"""A function of tokens with a variance up to this counts as constant."""
HELPED = 0.75
"""Doubling the steps must reduce the chi^2 distance to this share of its value, or else more steps don't help."""
STEPS, MOST_STEPS = 200, 3200
CANDIDATES = 64
VOCABULARY = 512
"""Of made-up laws."""
TOKENS_READ = 16_384
"""Tokens of the validation text among which contexts are chosen."""
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Contexts:
    """mu: (V, d) unit rows; log_p: (C, V); labels: a few words per context; source: where they are from.

    query (C, d), bias and concentrations (V,): by which the engine finds the candidates; None where there is no model.
    lexical (C, V): the law whose best tokens are the candidates then; log_p itself if None.
    """

    mu: Tensor
    log_p: Tensor
    labels: list[str]
    source: str
    query: Tensor | None = None
    bias: Tensor | None = None
    concentrations: Tensor | None = None
    lexical: Tensor | None = None

    def some(self, which: slice) -> Contexts:
        """A part of them."""
        query, lexical = (None if rows is None else rows[which] for rows in (self.query, self.lexical))
        own = (self.log_p[which], self.labels[which])
        return Contexts(self.mu, *own, self.source, query, self.bias, self.concentrations, lexical)

    @property
    def entropy(self) -> Tensor:
        """(C,) nats."""
        return -(self.log_p.double().exp() * self.log_p.double().clamp_min(-1e3)).sum(1)


def synthetic(d: int, seed: int, count: int = CONTEXTS) -> Contexts:
    """Zipf laws over made-up points, their exponents such that entropies are even from .1 nats to log V."""
    g = torch.Generator().manual_seed(seed)
    mu = projx(torch.randn(VOCABULARY, d, generator=g))
    exponents = torch.linspace(0, 8, 2001, dtype=torch.float64)
    laws = torch.log_softmax(-exponents[:, None] * torch.arange(1.0, VOCABULARY + 1).log(), 1)
    entropies = -(laws.exp() * laws).sum(1)
    wanted = torch.linspace(0.1, math.log(VOCABULARY), count, dtype=torch.float64)
    chosen = (entropies[:, None] - wanted).abs().argmin(0)
    log_p = torch.stack([laws[i][torch.randperm(VOCABULARY, generator=g)] for i in chosen]).float()
    labels = [f"Zipf, exponent {float(exponents[i]):.2f}" for i in chosen]
    source = f"made-up laws (Zipf, V = {VOCABULARY}, d = {d}): no checkpoint was given"
    return Contexts(mu, log_p, labels, source)


def remembering(contexts: Contexts, seed: int) -> Contexts:
    """Some of the contexts, .7 of their laws mixed with .3 of a memory of 32 tokens; candidates as without it.

    A memory names tokens that the query is far from: most of them lie outside the candidates.
    """
    g = torch.Generator().manual_seed(seed)
    chosen = list(range(len(contexts.labels)))[1::6]
    lexical, tokens = contexts.log_p[chosen], contexts.log_p.shape[1]
    zipf = torch.softmax(-torch.arange(1.0, 33).log(), 0)
    memory = torch.stack([torch.zeros(tokens).index_add_(0, torch.randperm(tokens, generator=g)[:32], zipf)
                          for _ in chosen])  # fmt: skip
    log_p = torch.log_softmax((0.7 * lexical.exp() + 0.3 * memory).log(), 1)
    labels = [f"{contexts.labels[i]}, with memory" for i in chosen]
    return Contexts(contexts.mu, log_p, labels, contexts.source, lexical=lexical)


@torch.no_grad()
def of_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    stream: TokenStream,
    context: int,
    reader: Reader | None = None,
    count: int = CONTEXTS,
) -> Contexts:
    """Contexts of a text at even quantiles of the entropy of p_lex(v|c), from the least to the largest.

    context: the most tokens a window gives. reader: of a memory that every second context then consults.
    """
    mu = model.embeddings()
    law, queries, states, entropies, labels = TokenLaw(model, mu), [], [], [], []
    for tokens, first in evaluation_windows(stream.take(TOKENS_READ + 1), context, context):
        seen = model(tokens[None, :-1].to(mu.device), mu)
        queries.append(seen.query[0, first:])
        states.append(seen.h[0, first:])
        entropies += [-(log_p.double().exp() * log_p).sum(1) for _, log_p in law.pieces(queries[-1])]
        ends = range(first + 1, len(tokens))
        labels += [(tokens, end) for end in ends]
    query, entropy = torch.cat(queries), torch.cat(entropies)
    quantiles = torch.linspace(0, len(entropy) - 1, count).round().long()
    chosen = entropy.argsort()[quantiles.to(entropy.device)].tolist()
    log_p = torch.log_softmax(F.linear(query[chosen], model.outputs(mu), model.bias), -1).cpu()
    if reader:
        log_p[1::2] = torch.log_softmax(reader.log_prob(torch.cat(states)[chosen[1::2]], log_p[1::2]), -1)
    said = [
        tokenizer.decode(tokens[max(0, end - 8) : end].tolist())[-24:]
        for tokens, end in map(labels.__getitem__, chosen)
    ]
    source = f"{count} contexts of {stream.name}, at even quantiles of entropy among its first {len(entropy):,}"
    source += "; every second one with static memory" if reader else ""
    kappa = model.concentrations()
    lexical = (query[chosen].cpu(), model.bias.cpu(), None if kappa is None else kappa.cpu())
    return Contexts(mu.cpu(), log_p, said, source, *lexical)


@dataclass(frozen=True)
class _Drawn:
    """tokens: (n,); heat: (n, 2) from `_heat`, None if a token comes from several states."""

    tokens: Tensor
    heat: Tensor | None

    def __add__(self, other: _Drawn) -> _Drawn:
        heat = None if self.heat is None or other.heat is None else torch.cat((self.heat, other.heat))
        return _Drawn(torch.cat((self.tokens, other.tokens)), heat)


@dataclass(frozen=True)
class _Route:
    """A way from laws to tokens.

    drawn: takes (context, first chain, chains, steps, seed); outside: takes a context, gives (V,) bool, True for tokens
    that aren't candidates; slack: the deviation allowed over all contexts.
    """

    name: str
    claim: str
    drawn: Callable[[int, int, int, int, int], _Drawn]
    outside: Callable[[int], Tensor]
    slack: _Slack


@dataclass(frozen=True)
class _Slack:
    """Allowed deviations: log odds of the mass outside the candidates, the exponent of p^s, the concentration."""

    rest: float = 0.0
    exponent: float = 0.0
    concentration: float = 0.0


_CHAINS = _Slack(rest=0.03, exponent=0.02, concentration=0.02)
"""Several times the deviations of annealed Langevin with 200 steps."""


def identity(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None) -> Findings:
    """Tests each context with 200 steps, as in generation, and doubles the steps if that isn't enough.

    A context that needs more steps passes with the number it needs, and its line says so. A context fails if it needs
    more than 3,200, or if more steps don't help.
    """
    points = backend.points(contexts.mu.contiguous())

    def drawn(i: int, first: int, n: int, steps: int, own: int) -> _Drawn:
        law = _law(backend, contexts, points, i)
        return _in_batches(lambda at, rows: _annealed(law, contexts, i, at, rows, steps, own), contexts, first, n)

    name = "tokens" if contexts.lexical is None else "tokens with memory"
    claim = "Langevin, then decoded from x alone"
    route = _Route(name, claim, drawn, lambda i: _outside(_law(backend, contexts, points, i)), _CHAINS)
    return _compared(route, contexts, sizes.token_chains, seed, most_steps)


def exact(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int) -> Findings:
    """Tests tokens decoded from exact states, which have no bias; the p-values are of all contexts together."""
    points = backend.points(contexts.mu.contiguous())
    n, total = sizes.chains, _Total()
    for i in range(len(contexts.labels)):
        law = _law(backend, contexts, points, i)
        total.add(contexts, i, _outside(law), _exactly(law, contexts, i, n, seed * 1000 + i))
    return Findings(total.checks("exact states", "an exact state, then decoded from it alone", _Slack()))


def _exactly(law: LatentLaw, contexts: Contexts, i: int, n: int, seed: int) -> _Drawn:
    """Exact states at the concentration at which chains end."""
    level = float(LAST * kappa_critical(law.points.d, law.entropy))

    def some(first: int, rows: int) -> _Drawn:
        many, log_p = _expanded(law, contexts.log_p[i], rows)
        x = many.sample_exact(level, contexts.mu, seed=seed, first_chain=first)
        return _decoded(many, contexts.mu, x, many.concentration(level), log_p, seed, first)

    return _in_batches(some, contexts, 0, n)


def coarse(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None) -> Findings:
    """Every fifth context, coarse to fine: each level with as many steps."""
    points = backend.points(contexts.mu.contiguous())
    neighbourhoods = Neighbourhoods.of(backend, contexts.mu)
    few = contexts.some(slice(1, None, 5))

    def drawn(i: int, first: int, n: int, steps: int, own: int) -> _Drawn:
        def some(at: int, rows: int) -> _Drawn:
            log_p = few.log_p[i].expand(rows, -1).contiguous()
            how = {"seed": own, "steps": steps, "first_chain": at}
            return _Drawn(coarse_to_fine(backend, points, neighbourhoods, log_p, CANDIDATES, **how).tokens, None)

        return _in_batches(some, few, first, n)

    def outside(i: int) -> Tensor:
        best = neighbourhoods.log_probs(few.log_p[i : i + 1]).topk(min(CANDIDATES, neighbourhoods.centres.n)).indices
        return ~torch.isin(neighbourhoods.group, best[0].to(neighbourhoods.group.device)).cpu()

    claim = f"one of {neighbourhoods.centres.n} neighbourhoods from x, then its token from another x"
    route = _Route("tokens, coarse to fine", claim, drawn, outside, _CHAINS)
    return _compared(route, few, sizes.token_chains, seed, most_steps)


def coarse_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`coarse` on one made-up law of middling entropy, without more steps where they do not suffice."""
    contexts = synthetic(sizes.token_dimension, seed, count=3)
    return coarse(backend, contexts, sizes, seed, most_steps=STEPS)


def exact_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`exact` on made-up laws, with a quarter of the chains."""
    fewer = dataclasses.replace(sizes, chains=sizes.chains // 4)
    return exact(backend, synthetic(sizes.token_dimension, seed, count=CONTEXTS), fewer, seed)


def identity_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`identity` on a few made-up laws, as `coarse_made_up`."""
    contexts = synthetic(4 * sizes.token_dimension, seed, count=8)  # more dimensions show the concentration
    return identity(backend, contexts, sizes, seed, most_steps=STEPS)


def _compared(route: _Route, contexts: Contexts, n: int, seed: int, most_steps: int | None = None) -> Findings:
    most = MOST_STEPS if most_steps is None else most_steps
    checks, total, series = [], _Total(), []
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


def _settled(route: _Route, contexts: Contexts, i: int, n: int, seed: int, most: int) -> tuple[Check, _Drawn, float]:
    """The check of one context with as many steps as it needs, its draws, and the bound of its total variation."""
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


def _until_clear(route: _Route, i: int, n: int, steps: int, seed: int, p: Tensor) -> tuple[_Drawn, Fit]:
    """n draws and their fit; only a tenth of them if these already show without doubt that the law is wrong."""
    few = n // 10 if n >= 10 * FEWEST else n
    drawn = route.drawn(i, 0, few, steps, seed)
    found = _fit(drawn, p)
    if found.p >= CERTAIN and few < n:
        drawn += route.drawn(i, few, n - few, steps, seed)
        found = _fit(drawn, p)
    return drawn, found


def _fit(drawn: _Drawn, p: Tensor) -> Fit:
    return statistics.fit(torch.bincount(drawn.tokens, minlength=len(p)), p)


class _Total:
    """Evidence over all contexts."""

    def __init__(self) -> None:
        self.fit = Fit(0.0, 0.0, 0.0, 0.0, 0)
        self.rest, self.surprise = _Sum(), _Sum()
        self.heat: list[Tensor] = []

    def add(self, contexts: Contexts, i: int, outside: Tensor, drawn: _Drawn) -> None:
        log_p = contexts.log_p[i].double().cpu()
        p = log_p.exp() / log_p.exp().sum()
        self.fit += _fit(drawn, p)
        self.rest.add(outside.double(), p, drawn.tokens)
        self.surprise.add(log_p.clamp_min(-1e3), p, drawn.tokens)
        if drawn.heat is not None:
            self.heat.append(drawn.heat)

    def checks(self, route: str, claim: str, slack: _Slack) -> list[Check]:
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
    """For a function f of tokens over draws: the deviation of its mean, and its variance under the laws."""

    excess: float = 0.0
    variance: float = 0.0

    def add(self, f: Tensor, p: Tensor, tokens: Tensor) -> None:
        mean = float((p * f).sum())
        spread = float((p * (f - mean).square()).sum())
        if spread > FLAT:  # if all tokens have one value, as under a uniform law, only rounding is left
            self.excess += float((f[tokens] - mean).sum())
            self.variance += len(tokens) * spread

    @property
    def tilt(self) -> float:
        return self.excess / self.variance if self.variance else 0.0

    def test(self, slack: float) -> Evidence:
        return statistics.tilt_test(self.excess, self.variance, slack)


def _law(backend: Backend, contexts: Contexts, points: Points, i: int) -> LatentLaw:
    """Of one chain in context i."""
    row = contexts.log_p[i : i + 1]
    if contexts.lexical is not None:
        ids = contexts.lexical[i : i + 1].topk(CANDIDATES, dim=1).indices
        return LatentLaw.with_candidates(backend, points, ids, row)
    if contexts.query is None or contexts.bias is None:
        return LatentLaw.from_log_probs(backend, points, row, CANDIDATES)
    query = contexts.query[i : i + 1]
    return LatentLaw.from_query(backend, points, contexts.bias, query, row, CANDIDATES, contexts.concentrations)


def _outside(law: LatentLaw) -> Tensor:
    return torch.ones(law.points.n, dtype=torch.bool).index_fill(0, law.ids[0].cpu(), False)


def _in_batches(some: Callable[[int, int], _Drawn], contexts: Contexts, first: int, n: int) -> _Drawn:
    """n draws, as many at once as memory allows. Chains are numbered, so the batch size changes nothing."""
    batch = max(1, _AT_ONCE // contexts.log_p.shape[1])
    parts = [some(at, min(batch, first + n - at)) for at in range(first, first + n, batch)]
    return functools.reduce(operator.add, parts)


def _expanded(law: LatentLaw, log_p: Tensor, rows: int) -> tuple[LatentLaw, Tensor]:
    """Repeats one law for many chains."""
    each = (tensor.expand(rows, *tensor.shape[1:]).contiguous() for tensor in (law.ids, law.logp, law.log_rest))
    return LatentLaw(law.backend, law.points, *each), log_p.expand(rows, -1)


def _annealed(law: LatentLaw, contexts: Contexts, i: int, first: int, rows: int, steps: int, seed: int) -> _Drawn:
    many, log_p = _expanded(law, contexts.log_p[i], rows)
    sample = many.langevin(seed=seed, steps=steps, first_chain=first)
    return _decoded(many, contexts.mu, sample.x, sample.kappa, log_p, seed, first)


def _decoded(law: LatentLaw, mu: Tensor, x: Tensor, kappa: Tensor, log_p: Tensor, seed: int, first: int) -> _Drawn:
    tokens = law.decode(x.cpu(), kappa, log_p, seed=seed, first_chain=first)
    return _Drawn(tokens, _heat(law, mu, x.cpu(), kappa))


def _heat(law: LatentLaw, mu: Tensor, x: Tensor, kappa: Tensor) -> Tensor:
    """(n, 2): a and b of each chain, where E a = (T - 1) E b for the temperature T that states would have at kappa.

    The Laplacian of the density has integral 0: E sum_j rho_j (kappa^2 (1 - t_j^2) - (d - 1) kappa t_j) = 0 with
    t_j = mu_j.x and the responsibilities rho_j of the candidates, whatever the rest. All chains are of one context.
    """
    t = x.double() @ mu[law.ids[0]].double().T
    level = kappa.double()[:, None]
    log_terms = law.logp.double() + log_c_ratio(level, law.points.d) + level * t
    rho = torch.cat((log_terms, law.log_rest.double()[:, None]), dim=1).softmax(1)[:, :-1]
    slope = (law.points.d - 1) * level * t
    return torch.stack(((rho * (level.square() * (1 - t * t) - slope)).sum(1), (rho * slope).sum(1)), dim=1)
