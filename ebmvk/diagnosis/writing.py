"""What a model writes, compared with what people wrote; and what it looks at while it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

import numpy as np
import torch

from ebmvk.data.windows import TokenStream
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.decoding.metrics import distinct, repetition_rate
from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.report import shared
from ebmvk.report.section import Absent, Section, Shown
from ebmvk.report.tables import Table, number, percent
from ebmvk.splats.health import gini


@torch.no_grad()
def samples(subject: Subject) -> Row:
    """Beginnings of documents, drawn as in training: temperature 1, no memory, no strategy."""
    sizes, run = subject.sizes, subject.run
    sampler = subject.model.default_sampler
    generator = Generator(subject.model, run.tokenizer, subject.device.backend, run.config.langevin)
    how = Decoding(sizes.sample_tokens, sampler=sampler, seed=subject.seed)
    found = generator.generate([""] * sizes.samples, how)
    return {
        "sampler": sampler,
        "tokens": sizes.sample_tokens,
        "texts": [text.text for text in found],
        "model": figures([text.tokens for text in found]),
        "human": figures(passages(subject.text.validation, sizes.samples, sizes.sample_tokens)),
    }


def figures(texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Repetition and diversity of texts, each a list of tokens."""
    repeated = mean(repetition_rate([], text) for text in texts) if texts else 0.0
    return {"repetition_rate": repeated} | {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}


def passages(stream: TokenStream, count: int, length: int) -> list[list[int]]:
    """`count` evenly spaced passages of a text, each of at most `length` tokens."""
    last = max(0, len(stream) - length)
    places = sorted({round(float(place)) for place in np.linspace(0, last, count)})
    return [stream.tokens[place : place + length].tolist() for place in places]


def attention(subject: Subject) -> Row | Absent:
    """The attention map of every head, computed on the start of the validation text."""
    looked = subject.looks
    if not looked["attention"]:
        return Absent("the model has no attention")
    return {"tokens": looked["tokens"], "layers": looked["attention"]}


def experts(subject: Subject) -> Row | Absent:
    """Load, balance and favourite tokens of the experts of every layer."""
    layers = subject.looks["experts"]
    if not layers:
        return Absent(f"this --model {subject.kind} has no experts")
    return {"layers": [own | balance(own["load"]) for own in layers]}


def balance(load: Sequence[float]) -> dict[str, float]:
    """Figures on how even the shares (E,) are; the shares sum to 1. effective: exp of their
    entropy, which is E if all shares are equal.
    """
    entropy = -sum(share * math.log(share) for share in load if share > 0)
    return {"effective": math.exp(entropy), "largest": max(load), "gini": gini(torch.tensor(load))}


# ---- on the page ---------------------------------------------------------------------------------


def show_experts(found: Row) -> Shown:
    """How evenly the experts are used, and for which tokens."""
    rows = [
        (
            own["layer"],
            f"{number(own['effective'], '.2f')} of {len(own['load'])}",
            percent(own["largest"]),
            number(own["gini"], ".3f"),
        )
        for own in found["layers"]
    ]
    own = shared.experts(found["layers"])
    note = f"Effective experts: the number of equally used experts that would have the same entropy. {own.note}"
    head = ("layer", "effective experts", "largest load", "Gini coefficient")
    return Shown(note, tables=[Table(head, rows), *own.tables])


def show_attention(found: Row) -> Shown:
    """Maps of the heads, with their figures."""
    rows = [
        (own["layer"], f"{head}", number(nats, ".2f"), number(back, ".1f"))
        for own in found["layers"]
        for head, (nats, back) in enumerate(zip(own["entropy"], own["distance"], strict=True), start=1)
    ]
    own = shared.attention(found["layers"], found.get("tokens", []))
    table = Table(("layer", "head", "entropy, nats", "tokens back"), rows)
    return Shown(own.note, tables=[table], pictures=own.pictures)


def show_samples(found: Row) -> Shown:
    """The texts, and how they compare with human text."""
    rows = [
        (who, percent(own["repetition_rate"]), *(number(own[f"distinct_{n}"], ".3f") for n in (1, 2, 3)))
        for who, own in (("model", found["model"]), ("human text", found["human"]))
    ]
    note = (
        f"{len(found['texts'])} beginnings of documents, of at most {found['tokens']} tokens each; sampler "
        f"{found['sampler']}, temperature 1. Good text repeats itself about as much as human text does."
    )
    head = ("text", "repetition", "distinct-1", "distinct-2", "distinct-3")
    texts = [(f"sample {place}", text.strip()) for place, text in enumerate(found["texts"], start=1)]
    return Shown(note, tables=[Table(head, rows)], texts=texts)


SECTIONS: tuple[Section[Subject, Row], ...] = (
    Section("experts", "Experts", experts, show_experts),
    Section("attention", "Attention", attention, show_attention),
    Section("samples", "Samples", samples, show_samples),
)
