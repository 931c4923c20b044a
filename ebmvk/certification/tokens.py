"""Test 8, the central one: a token decoded from a chain's state alone has the law p(v|c).

Contexts come from a trained model. If it has a static memory, half of them use the memory. Without
a model the contexts are made up; some of their laws are mixtures with a memory, and the candidates
are chosen without this memory.

Exact states test the latent law, its sampler and its decoder without the bias of a chain. Chains
are biased: 200 steps leave a total variation of about .002. So for chains only a bound is claimed
(`evidence`), and the tests over all contexts allow some deviation.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ebmvk.certification.contexts import CONTEXTS, Contexts, remembering, synthetic
from ebmvk.certification.draws import CANDIDATES, Drawn, by_langevin, exactly, in_batches, latent_law, outside
from ebmvk.certification.evidence import STEPS, Route, Slack, Total, compared
from ebmvk.certification.results import Findings, Sizes
from ebmvk.config.schema import LangevinConfig
from ebmvk.engine.api import Backend
from ebmvk.sampling.coarse import Neighbourhoods, coarse_to_fine
from ebmvk.sampling.interface import Options, TokenPoints
from ebmvk.sampling.registry import SAMPLERS, token_function

_CHAINS = Slack(rest=0.03, exponent=0.02, concentration=0.02)
"""Several times the deviations of annealed Langevin with 200 steps."""


def identity(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None) -> Findings:
    """Test each context by annealed Langevin: 200 steps, as in generation, or more if needed.

    A context that needs more steps passes, and its line says how many it needs. It fails if it
    needs more than 3,200, or if more steps don't help.
    """
    points = backend.points(contexts.mu.contiguous())

    def drawn(i: int, first: int, n: int, steps: int, own: int) -> Drawn:
        return by_langevin(latent_law(backend, contexts, points, i), contexts, i, first, n, steps, own)

    name = "tokens" if contexts.lexical is None else "tokens with memory"
    claim = "Langevin, then decoded from x alone"
    route = Route(name, claim, drawn, lambda i: outside(latent_law(backend, contexts, points, i)), _CHAINS)
    return compared(route, contexts, sizes.token_chains, seed, most_steps)


def with_memory(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int) -> Findings:
    """Like `identity`, for laws that are mixed with a made-up memory."""
    return identity(backend, remembering(contexts, seed), sizes, seed)


def exact(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int) -> Findings:
    """Test tokens decoded from exact states, without bias, in all contexts together."""
    points = backend.points(contexts.mu.contiguous())
    n, total = sizes.chains, Total()
    for i in range(len(contexts.labels)):
        law = latent_law(backend, contexts, points, i)
        total.add(contexts, i, outside(law), exactly(law, contexts, i, n, seed * 1000 + i))
    return Findings(total.checks("exact states", "an exact state, then decoded from it alone", Slack()))


def coarse(backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None) -> Findings:
    """Test tokens drawn coarse to fine in every fifth context; both levels take the same steps."""
    points = backend.points(contexts.mu.contiguous())
    neighbourhoods = Neighbourhoods.of(backend, contexts.mu)
    few = contexts.some(slice(1, None, 5))

    def drawn(i: int, first: int, n: int, steps: int, own: int) -> Drawn:
        def some(at: int, rows: int) -> Drawn:
            log_p = few.log_p[i].expand(rows, -1).contiguous()
            how = {"seed": own, "steps": steps, "first_chain": at}
            return Drawn(coarse_to_fine(backend, points, neighbourhoods, log_p, CANDIDATES, **how).tokens, None)

        return in_batches(some, few, first, n)

    def not_covered(i: int) -> Tensor:
        best = neighbourhoods.log_probs(few.log_p[i : i + 1]).topk(min(CANDIDATES, neighbourhoods.centres.n)).indices
        return ~torch.isin(neighbourhoods.group, best[0].to(neighbourhoods.group.device)).cpu()

    claim = f"one of {neighbourhoods.centres.n} neighbourhoods from x, then its token from another x"
    route = Route("tokens, coarse to fine", claim, drawn, not_covered, _CHAINS)
    return compared(route, few, sizes.token_chains, seed, most_steps)


def registered(
    sampler: str, backend: Backend, contexts: Contexts, sizes: Sizes, seed: int, most_steps: int | None = None
) -> Findings:
    """Test the tokens that a registered sampler draws in every fifth context. `langevin_steps` is
    doubled for as long as that helps.
    """
    few = contexts.some(slice(1, None, 5))
    own = (few.bias, few.concentrations)
    space = TokenPoints(backend, few.mu, backend.points(few.mu.contiguous()), *own)
    function = token_function(sampler)

    def drawn(i: int, first: int, n: int, steps: int, seed_of_chains: int) -> Drawn:
        settings = LangevinConfig(knn_k=CANDIDATES, langevin_steps=steps)

        def some(at: int, rows: int) -> Drawn:
            query = None if few.query is None else few.query[i].expand(rows, -1).contiguous()
            log_p = few.log_p[i].expand(rows, -1).contiguous()
            return Drawn(function(space, query, log_p, Options(settings, seed_of_chains, at)).tokens, None)

        return in_batches(some, few, first, n)

    slack = Slack() if SAMPLERS[sampler].follows == "exactly" else _CHAINS
    name, claim = f"tokens, {sampler}", SAMPLERS[sampler].title
    route = Route(name, claim, drawn, lambda i: outside(latent_law(backend, few, space.points, i)), slack)
    return compared(route, few, sizes.token_chains, seed, most_steps)


def coarse_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`coarse` for one made-up law of middling entropy, with 200 steps only."""
    contexts = synthetic(sizes.token_dimension, seed, count=3)
    return coarse(backend, contexts, sizes, seed, most_steps=STEPS)


def exact_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`exact` for made-up laws, with a quarter of the chains."""
    fewer = dataclasses.replace(sizes, chains=sizes.chains // 4)
    return exact(backend, synthetic(sizes.token_dimension, seed, count=CONTEXTS), fewer, seed)


def identity_made_up(backend: Backend, sizes: Sizes, seed: int) -> Findings:
    """`identity` for a few made-up laws, with 200 steps only."""
    contexts = synthetic(4 * sizes.token_dimension, seed, count=8)  # more dimensions show a wrong concentration
    return identity(backend, contexts, sizes, seed, most_steps=STEPS)
