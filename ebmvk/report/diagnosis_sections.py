"""A diagnosis in words and tables, which the page and the terminal both show. Records are made by `ebmvk.diagnosis`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from ebmvk.data.ngram import perplexity
from ebmvk.evaluation.intervals import basis
from ebmvk.report.tables import (
    DASH,
    SETTLED,
    Cells,
    Section,
    Table,
    below,
    interval,
    number,
    per_word,
    percent,
    shown,
    why_no_word,
)
from ebmvk.runs.metrics import Row

TITLES = {
    "likelihood": "Exact likelihood",
    "convergence": "Convergence",
    "energy": "Energy per epoch",
    "denoising": "Denoising",
    "langevin": "Samplers against p(v|c)",
    "lexical": "Tokens as splats",
    "splats": "Memory splats",
    "memory": "Memory and its gate",
    "external": "External memory",
    "experts": "Experts",
    "attention": "Attention",
    "samples": "Samples",
}


def sections(record: Row) -> Iterator[Section]:
    """Those that the record of one checkpoint has, in the order of the page."""
    found = record["sections"]
    for key, section in SECTIONS.items():
        if key in found:
            yield section(found[key])


def bucket_label(bucket: Row) -> str:
    low, high = bucket["low"], bucket["high"]
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,}" if high is not None else f"{low:,} or more"


def _likelihood(found: Row) -> Section:
    own, train = found["validation"], found["training"]
    part = "All of validation" if found["whole_split"] else f"The first {own['tokens']:,} tokens of validation"
    gap = own["nats_per_token"] - train["nats_per_token"]
    note = (
        f"{part}, context {own['context']}, stride {own['stride']}. The first {train['tokens']:,} tokens of the "
        f"training text cost {number(train['nats_per_token'])} nats each: validation costs {number(abs(gap))} "
        f"{'more' if gap >= 0 else 'less'}."
    )
    if per_word(own) is None:
        note += f" Perplexity per word: {why_no_word(own)}."
    main = Table(
        ("bits per byte", "perplexity / token", "/ word", "nats / token", "tokens", "words", "bytes"),
        [(
            number(own["bits_per_byte"]), number(own["ppl_token"], ",.2f"), number(per_word(own), ",.2f"),
            number(own["nats_per_token"]), *(f"{own[name]:,}" for name in ("tokens", "words", "bytes")),
        )],
    )  # fmt: skip
    rows = [
        (
            bucket_label(bucket), f"{bucket['types']:,}", f"{bucket['tokens']:,}", number(bucket["nats_per_token"]),
            number(bucket["unigram_nats_per_token"]), _exp(bucket["nats_per_token"]),
            percent(bucket["nats"] / own["nats"]),
        )
        for bucket in found["buckets"]
    ]  # fmt: skip
    head = (
        "occurrences in training",
        "types",
        "tokens",
        "nats / token",
        "by frequency alone",
        "perplexity",
        "of all nats",
    )
    return Section("likelihood", TITLES["likelihood"], note, [main, Table(head, rows)])


def _exp(nats: float | None) -> str:
    return number(None if nats is None else perplexity(nats), ",.1f")


def _convergence(found: Row) -> Section:
    rows = [
        (
            name, own["word"], f"{own['n']}", number(own["change"], "+.4f"),
            DASH if own["p"] is None else f"{number(own['low'], '+.4f')} to {number(own['high'], '+.4f')}",
            number(own["p"], ".2g"),
            percent(own["fallen"], 0),
        )
        for name, own in ((name, found[name]) for name in ("training", "validation"))
    ]  # fmt: skip
    head = ("energy of", "verdict", "means", "change, nats", "95 %", "p", "below the first")
    return Section("convergence", TITLES["convergence"], f"Test: {found['test']}.", [Table(head, rows)])


def _energy(found: Row) -> Section:
    latent = (
        "" if found["langevin"] is None else f" Langevin states end at E(x|c) = {number(found['langevin'], '.3f')}."
    )
    note = (
        f"E(v|c) = −log p(v|c) of the true next tokens, nats. {found['spikes']} of {found['steps']:,} steps spike (six "
        "robust deviations above their neighbours); norm of the gradient "
        f"{number(found['grad_norm_median'], '.3g')} in the median, "
        f"{number(found['grad_norm_99'], '.3g')} at 99 %.{latent}"
    )
    rows = [
        (
            f"{own['epoch']}", f"{own['steps']:,} of {own['of']:,}", number(own["energy"]), number(own["deviation"]),
            number(own["per_100_steps"], "+.4f"), number(own["validation"]),
        )
        for own in found["epochs"]
    ]  # fmt: skip
    head = ("epoch", "steps", "mean", "between steps ±", "per 100 steps", "validation after it")
    return Section("energy", TITLES["energy"], note, [Table(head, rows)])


def level_mark(level: Row) -> str:
    """The name that a noise level has, in brackets."""
    return f"({level['name'].replace('1/2', '½').replace('kappa', 'κ')})" if level.get("name") else ""


SETTLED_NOTE = f"A dash: the reference's own error is below {SETTLED:g}, so a ratio to it means nothing."


def _denoising(found: Row) -> Section:
    levels = found["levels"]
    note = (
        f"Relative squared error of the score at {levels[0]['tokens']:,} tokens of validation; a score of zero has 1. "
        f"The reference is the exact denoiser that knows unigram frequencies only; κ_c = √(2 d ln V). {SETTLED_NOTE}"
    )
    rows = [
        (
            f"{number(level['kappa'], '.1f')} {level_mark(level)}".strip(), f"{number(level['angle'], '.1f')}°",
            number(level["sigma"], ".3g"), number(level["loss"]),
            number(level["unigram_loss"]),
            below(level),
        )
        for level in levels
    ]  # fmt: skip
    head = ("κ", "mean angle", "σ", "error", "of frequencies", "below it")
    return Section("denoising", TITLES["denoising"], note, [Table(head, rows)])


def _langevin(found: Row) -> Section:
    samplers, temperature = found["samplers"], found["temperature"]
    test = (
        "Tokens of the chains are tested against p(v|c) by χ²; the p-values of a sampler share one false alarm in "
        f"{round(1 / found['level']):,}."
        if temperature == 1
        else "At another temperature than 1 chains do not have the law p(v|c), which their tokens are held against."
    )
    note = (
        f"{found['contexts']}; {found['steps']} steps, temperature {temperature:g}. {test} "
        "Annealed Langevin is not adjusted: it accepts every step."
    )
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
        for own in samplers
    ]  # fmt: skip
    head = (
        "sampler", "chains", "tokens", "least p", "TV at most (99 %)", "kinetic temperature", "accepted",
        "off the sphere", "exchanged or moved",
    )  # fmt: skip
    each = [
        (f"{row['label']!r}", number(row["entropy"], ".2f"), number(row["p"], ".2g"), number(row["bound"], ".4f"))
        for row in samplers[0]["contexts"]
    ]
    contexts = Table((f"context of {samplers[0]['sampler']}", "entropy, nats", "p", "TV at most (99 %)"), each)
    return Section("langevin", TITLES["langevin"], note, [Table(head, rows), contexts])


def _lexical(found: Row) -> Section:
    note = (
        f"A token is a splat with a direction μ and a concentration κ. {found['unseen']:,} of {found['tokens']:,} "
        f"tokens never occur in the training text; {found['twins']:,} of {found['asked']:,} lie within 2.6° of another "
        f"one; usage Gini {number(found['usage_gini'], '.3f')}."
    )
    rows = [(" and ".join(map(shown, own["tokens"])), number(own["cosine"])) for own in found["nearest"]]
    return Section("lexical", TITLES["lexical"], note, [Table(("tokens nearest to each other", "cosine"), rows)])


def _splats(found: Row) -> Section:
    rows = [
        (
            own["name"], f"{own['splats']:,}", _count(own["active"]), _count(own["dead"]),
            f"{own['twins']:,} of {own['asked']:,}", percent(own["coverage"]), number(own["usage_gini"], ".3f"),
            number(own["kappa_quantiles"][2], ".3g"), f"{number(math.degrees(own['nearest_angle']), '.1f')}°",
            number(own["age_epochs"], ".2f"), number(own["tokens_per_splat"], ".1f"),
        )
        for own in found["stores"]
    ]  # fmt: skip
    head = (
        "splats", "number", "active", "dead", "doubles", "coverage", "usage Gini", "median κ", "nearest", "age, epochs",
        "tokens each",
    )  # fmt: skip
    tables = [Table(head, rows)]
    for own in found["stores"]:
        chosen = [
            (
                f"{splat['id']}", number(splat["mass"], ",.1f"), number(splat["kappa"], ".3g"),
                ", ".join(f"{shown(token)} {number(p, '.2f')}" for token, p in splat["law"]),
                ", ".join(map(shown, splat["near"])),
            )
            for splat in own["chosen"]
        ]  # fmt: skip
        columns = (f"{own['name']}: splat", "mass", "κ", "its likeliest tokens", "tokens nearest to it")
        tables.append(Table(columns, chosen, words=True))
    note = (
        f"Coverage is the mean share of {found['stores'][0]['coverage_tokens']:,} validation contexts that the splats "
        "explain rather than the background. Doubles lie within 2.6° of another splat and have nearly its token law. "
        "Dead ones were not recalled at the last checks; usage is the frequency of recall in training, or the mass "
        "where a memory was built at once."
    )
    return Section("splats", TITLES["splats"], note, tables)


def _count(value: int | None) -> str:
    return number(value, ",d")


def _memory(found: Row) -> Section:
    rows: list[Cells]
    if found["of"] == "splats of training":
        note = (
            "The checkpoint has no memory file. The splats of training as a static memory, a gate fitted on one half "
            f"of {2 * found['tokens']:,} validation tokens and measured on the other. Calibrated: without memory, the "
            "model's own law made flatter or sharper by a gate that was fitted likewise:"
        )
        rows = [(name, number(found[name])) for name in ("without", "calibrated", "with") if name in found]
        return Section("memory", TITLES["memory"], note, [Table(("memory", "nats / token"), rows)])
    rows = [
        (law, number(nats), _exp(nats), _gain(found["gains"], law), _gain(found.get("gains_over_calibrated", {}), law))
        for law, nats in found["nats_per_token"].items()
    ]
    gates = [
        (name, percent(own["mean"]), *(percent(value) for value in own["quantiles"]))
        for name, own in found["gate"].items()
    ]
    note = (
        f"{found['splats']:,} static splats; the first {found['tokens']:,} tokens of validation. Intervals (95 %): "
        f"{basis(next(iter(found['gains'].values())))}. Each tier's law includes the model's. "
        f"{_calibration(found)} {_in_sample(found)}"
    )
    tables = [
        Table(("memory", "nats / token", "perplexity", "against none", "against calibrated"), rows),
        Table(("share in the mixture", "mean", "5 %", "median", "95 %"), gates),
    ]
    return Section("memory", TITLES["memory"], note, tables)


def _gain(gains: Row, law: str) -> str:
    return interval(gains[law]) if law in gains else DASH


def _calibration(found: Row) -> str:
    if "calibrated" in found["nats_per_token"]:
        return (
            "Calibrated: without memory, the model's own law made flatter or sharper by a gate, fitted on the same "
            "tokens; a memory is worth what it gains over that."
        )
    return (
        "An earlier version wrote the memory's file, without a calibration: a part of the gain may come from "
        "flattening the model's own law."
    )


def _in_sample(found: Row) -> str:
    fitted_on, here = found["fitted_on"], found["in_sample_tokens"]
    flatter = "these figures are in sample and flatter the memory; with --fit-on training they are not."
    if fitted_on is None:
        return f"What gates were fitted on was not recorded by an earlier version. If it was validation, {flatter}"
    text = f"Gates were fitted on {fitted_on['tokens']:,} tokens of {fitted_on['text']}"
    return f"{text}, {here:,} of which are these: {flatter}" if here else f"{text}, which are others."


def _external(found: Row) -> Section:
    low, middle, high = (number(value, ".3f") for value in found["strength"]["quantiles"])
    note = (
        f"{found['slots']} slots, threshold {number(found['threshold'], '.3f')}. Tokens write with strength "
        f"{number(found['strength']['mean'], '.3f')} in the mean (5 % {low}, median {middle}, 95 % {high})."
    )
    rows = [("with the memory, against the same model without", f"{interval(found['gain'])}, {basis(found['gain'])}")]
    return Section("external", TITLES["external"], note, [Table(("", "nats / token (95 %)"), rows)])


def _experts(found: Row) -> Section:
    balance = [
        (
            own["layer"],
            f"{number(own['effective'], '.2f')} of {len(own['load'])}",
            percent(own["largest"]),
            number(own["gini"], ".3f"),
        )
        for own in found["layers"]
    ]
    rows = [
        (
            f"{own['layer']}, {place}", percent(load),
            ", ".join(f"{shown(token)} {percent(share, 0)}" for token, share in own["top"][place - 1]) or DASH,
        )
        for own in found["layers"]
        for place, load in enumerate(own["load"], start=1)
    ]  # fmt: skip
    tables = [
        Table(("layer", "effective experts", "largest load", "Gini"), balance),
        Table(("layer, expert", "load", "tokens that go there most beyond its load"), rows, words=True),
    ]
    note = "Effective experts: exp of the entropy of the load, all of them where loads are equal."
    return Section("experts", TITLES["experts"], note, tables)


def _attention(found: Row) -> Section:
    rows = [
        (own["layer"], f"{head}", number(nats, ".2f"), number(back, ".1f"))
        for own in found["layers"]
        for head, (nats, back) in enumerate(zip(own["entropy"], own["distance"], strict=True), start=1)
    ]
    note = (
        f"The first {len(found['tokens'])} tokens of validation; entropy and distance are means over positions. In the "
        "first half of the heads a position carries the token before it."
    )
    return Section(
        "attention", TITLES["attention"], note, [Table(("layer", "head", "entropy, nats", "tokens back"), rows)]
    )


def _samples(found: Row) -> Section:
    rows = [
        (who, percent(own["repetition_rate"]), *(number(own[f"distinct_{n}"], ".3f") for n in (1, 2, 3)))
        for who, own in (("model", found["model"]), ("human text", found["human"]))
    ]
    note = (
        f"{len(found['texts'])} beginnings of documents of at most {found['tokens']} tokens, {found['sampler']}, "
        "temperature 1."
    )
    head = ("text", "repetition", "distinct-1", "distinct-2", "distinct-3")
    texts = [(f"sample {place}", text.strip()) for place, text in enumerate(found["texts"], start=1)]
    return Section("samples", TITLES["samples"], note, [Table(head, rows)], texts)


SECTIONS: dict[str, Callable[[Any], Section]] = {
    "likelihood": _likelihood,
    "convergence": _convergence,
    "energy": _energy,
    "denoising": _denoising,
    "langevin": _langevin,
    "lexical": _lexical,
    "splats": _splats,
    "memory": _memory,
    "external": _external,
    "experts": _experts,
    "attention": _attention,
    "samples": _samples,
}
