"""For models on the sphere: denoising errors, and whether chains draw tokens from p(v|c)."""

from __future__ import annotations

import torch

from ebmvk.certification import statistics
from ebmvk.certification.contexts import Contexts, of_text
from ebmvk.certification.results import FAMILY_LEVEL
from ebmvk.config.integrators import AUTO, METROPOLIS
from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.evaluation.score_matching import score_matching, windows
from ebmvk.objective import noise
from ebmvk.report import shared
from ebmvk.report.charts import Curve, Lines
from ebmvk.report.section import Absent, Picture, Section, Shown
from ebmvk.report.tables import DASH, Table, number, percent
from ebmvk.sampling.interface import TokenPoints
from ebmvk.sampling.registry import SAMPLERS, SamplerName
from ebmvk.sampling.tokens import SamplingHealth, TokenSampler


def _flat(subject: Subject) -> Absent | None:
    if subject.model.on_sphere:
        return None
    return Absent(f"the tokens of --model {subject.kind} aren't points on a sphere, so chains can't move among them")


@torch.no_grad()
def denoising(subject: Subject) -> Row | Absent:
    """The denoising loss L_kappa at each noise level, beside that of the exact denoiser that knows
    only unigram frequencies. A score of zero has loss 1."""
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
    """Run each sampler on contexts of low to high entropy; record its diagnostics and compare its
    tokens with p(v|c).

    p: the p-value of a chi^2 test; bound: an upper bound (99 %) of the total variation between the
    law of the tokens and p(v|c). ok: True if no p-value of the sampler is below FAMILY_LEVEL
    divided by the number of contexts; None if the run's temperature isn't 1, because then chains do
    not have the law p(v|c).
    """
    if absent := _flat(subject):
        return absent
    sizes, run = subject.sizes, subject.run
    contexts = of_text(*(subject.model, run.tokenizer, subject.validation, subject.window[0]), count=sizes.contexts)
    settings = run.config.langevin
    temperature = settings.langevin_T
    names = [name for name, one in SAMPLERS.items() if one.diagnosed and not one.conflict(settings)]
    return {
        "contexts": contexts.source,
        "chains": sizes.chains,
        "steps": settings.langevin_steps,
        "scheme": settings.langevin_scheme,
        "temperature": temperature,
        "level": FAMILY_LEVEL,
        "samplers": [_sampled(subject, contexts, name, temperature) for name in names],
    }


def _sampled(subject: Subject, contexts: Contexts, name: SamplerName, temperature: float) -> Row:
    backend, health = subject.device.backend, SamplingHealth()
    assert contexts.query is not None  # contexts that a model made have a query
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


# ---- on the page ---------------------------------------------------------------------------------


def show_denoising(found: Row) -> Shown:
    """The error at each noise level, as a table and as a picture."""
    levels = found["levels"]
    curves = [
        Curve(label, [level["kappa"] for level in levels], [level[key] for level in levels], dots=True, colour=colour)
        for colour, (label, key) in enumerate((("the model", "loss"), ("unigram Bayes denoiser", "unigram_loss")))
    ]
    picture = Picture("Error of the score", "The further right, the less noise.", score_errors(curves))
    own = shared.denoising(levels)
    return Shown(own.note, tables=own.tables, pictures=[picture])


def score_errors(curves: list[Curve]) -> Lines:
    """The error of the score at each noise level, compared with the error of a score of zero."""
    return Lines(curves, "relative squared error", xlabel="κ", log_x=True, marks={"zero score": 1.0})


def show_langevin(found: Row) -> Shown:
    """What each sampler draws."""
    words = {True: "as p(v|c)", False: "not p(v|c)", None: "not tested"}
    rows = [
        (
            own["sampler"], f"{own['each']:,} × {len(own['contexts'])}", words[own["ok"]],
            number(min(row["p"] for row in own["contexts"]), ".2g"),
            number(max(row["bound"] for row in own["contexts"]), ".4f"),
            number(own.get("kinetic_temperature"), ".4f"), percent(own.get("acceptance")),
            number(own.get("tangency"), ".1e"),
            ", ".join(number(rate, ".2f") for rate in own["rates"]) or DASH,
        )
        for own in found["samplers"]
    ]  # fmt: skip
    head = (
        "sampler", "chains × contexts", "tokens", "least p-value", "TV at most (99 %)",
        "kinetic temperature", "accepted", "off the sphere", "exchanged or moved",
    )  # fmt: skip
    return Shown(_sampling_note(found), tables=[Table(head, rows), _contexts(found)], pictures=[_variation(found)])


def _sampling_note(found: Row) -> str:
    temperature = found["temperature"]
    test = (
        "A χ² test compares the tokens with p(v|c). A correct sampler fails it by chance once in "
        f"{round(1 / found['level']):,} diagnoses. TV: total variation."
        if temperature == 1
        else "At a temperature other than 1, chains do not follow p(v|c), so their tokens are compared but not tested."
    )
    return (
        f"Each sampler draws a token from every one of its chains, in {found['contexts']}; {found['steps']} steps, "
        f"temperature {temperature:g}. {test} {_integrator_note(found.get('scheme', AUTO))} "
        "Exchanged or moved: how often tempering swaps neighbouring temperatures, or Gibbs changes its component."
    )


def _integrator_note(scheme: str) -> str:
    if METROPOLIS.get(scheme):
        return f"Annealed Langevin, here with {scheme}, accepts or rejects steps, so only the annealing is approximate."
    return "Annealed Langevin accepts every step, so its tokens follow p(v|c) only approximately."


def _contexts(found: Row) -> Table:
    first = found["samplers"][0]
    rows = [
        (f"{row['label']!r}", number(row["entropy"], ".2f"), number(row["p"], ".2g"), number(row["bound"], ".4f"))
        for row in first["contexts"]
    ]
    head = (f"context of {first['sampler']}", "entropy, nats", "p-value", "TV at most (99 %)")
    return Table(head, rows)


def _variation(found: Row) -> Picture:
    curves = [
        Curve(
            own["sampler"],
            [row["entropy"] for row in own["contexts"]],
            [row["bound"] for row in own["contexts"]],
            dots=True,
            colour=colour,
        )
        for colour, own in enumerate(found["samplers"])
    ]
    note = "The largest difference from p(v|c) that these chains can't rule out. With more chains it shrinks to 0 if "
    chart = Lines(curves, "total variation, at most (99 %)", xlabel="entropy of p(v|c), nats", span=0.05)
    return Picture("Tokens of chains against p(v|c)", f"{note}the sampler is right.", chart)


SECTIONS: tuple[Section[Subject, Row], ...] = (
    Section("denoising", "Denoising", denoising, show_denoising),
    Section("langevin", "Samplers against p(v|c)", langevin, show_langevin),
)
