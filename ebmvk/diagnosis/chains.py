"""Models on the sphere only: denoising by noise level, and whether chains draw tokens from p(v|c)."""

from __future__ import annotations

import torch

from ebmvk.certification import statistics
from ebmvk.certification.contexts import Contexts, of_text
from ebmvk.certification.results import FAMILY_LEVEL
from ebmvk.diagnosis.subject import Absent, Row, Subject
from ebmvk.evaluation.score_matching import score_matching, windows
from ebmvk.objective import noise
from ebmvk.sampling.interface import TokenPoints
from ebmvk.sampling.registry import SAMPLERS, SamplerName
from ebmvk.sampling.tokens import SamplingHealth, TokenSampler


def _flat(subject: Subject) -> Absent | None:
    if subject.model.on_sphere:
        return None
    return Absent(f"tokens of --model {subject.kind} are no points of the sphere for a chain to move among")


@torch.no_grad()
def denoising(subject: Subject) -> Row | Absent:
    """L_kappa by noise level, beside a score of zero (1) and the exact denoiser that knows unigram frequencies only."""
    if absent := _flat(subject):
        return absent
    config, device, counts = subject.run.config, subject.device, subject.text.counts
    found = score_matching(
        subject.model,
        windows(subject.text.validation, config.data.seq_length, subject.sizes.scored).to(device.torch),
        device.backend,
        (counts.float() / counts.sum()).to(device.torch),
        starts=subject.text.validation.starts,
        k=config.langevin.knn_k,
        seed=subject.seed,
        extra=noise.given(config.training, config.model.latent_dim),
    )
    return {"levels": [level.record() for level in found]}


@torch.no_grad()
def langevin(subject: Subject) -> Row | Absent:
    """Each sampler on contexts that span the entropies: its diagnostics, and its tokens against p(v|c).

    p: of chi^2; bound: an upper bound (99 %) of the total variation between the law of the tokens and p(v|c).
    ok: no chi^2 p-value of a sampler is below FAMILY_LEVEL shared by its contexts; None if the run's temperature isn't
    1, because then chains do not have the law p(v|c).
    """
    if absent := _flat(subject):
        return absent
    sizes, run = subject.sizes, subject.run
    contexts = of_text(*(subject.model, run.tokenizer, subject.validation, subject.window[0]), count=sizes.contexts)
    temperature = run.config.langevin.langevin_T
    names = [name for name, one in SAMPLERS.items() if one.diagnosed and (one.any_temperature or temperature == 1)]
    return {
        "contexts": contexts.source,
        "chains": sizes.chains,
        "steps": run.config.langevin.langevin_steps,
        "temperature": temperature,
        "level": FAMILY_LEVEL,
        "samplers": [_sampled(subject, contexts, name, temperature) for name in names],
    }


def _sampled(subject: Subject, contexts: Contexts, name: SamplerName, temperature: float) -> Row:
    backend, health = subject.device.backend, SamplingHealth()
    assert contexts.query is not None  # they are of a model
    assert contexts.bias is not None
    own = (contexts.bias, contexts.concentrations)
    space = TokenPoints(backend, contexts.mu, backend.points(contexts.mu), *own)
    sampler = TokenSampler(name, space, subject.run.config.langevin, health)
    n = subject.sizes.chains // SAMPLERS[name].diagnosed
    rows: list[Row] = []
    for i, label in enumerate(contexts.labels):
        query, log_p = (part[i].expand(n, -1).contiguous() for part in (contexts.query, contexts.log_p))
        tokens = sampler.tokens(query, log_p, seed=subject.seed + i, first_chain=0)
        p = contexts.log_p[i].double().exp()
        counts = torch.bincount(tokens, minlength=len(p))
        found = statistics.fit(counts, p)
        entropy = float(contexts.entropy[i])
        rows.append({"label": label, "entropy": entropy, "p": found.p, "bound": found.distance()})
    ok = min(row["p"] for row in rows) >= FAMILY_LEVEL / len(rows) if temperature == 1 else None
    return {"sampler": name, "each": n, "ok": ok, "contexts": rows, "rates": health.mixing(), **health.record()}
