"""What a model writes, beside what people wrote; and what it looks at while it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

import numpy as np
import torch

from ebmvk.data.windows import TokenStream
from ebmvk.decoding.generate import Decoding, Generator, Sampler
from ebmvk.decoding.metrics import distinct, repetition_rate
from ebmvk.diagnosis.subject import Absent, Row, Subject
from ebmvk.model import inspection
from ebmvk.splats.health import gini


@torch.no_grad()
def samples(subject: Subject) -> Row:
    """Beginnings of documents, written as training samples them, without memory and without a strategy."""
    sizes, run = subject.sizes, subject.run
    sampler: Sampler = subject.model.default_sampler
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
    """Repetition and diversity of texts in tokens."""
    repeated = mean(repetition_rate([], text) for text in texts) if texts else 0.0
    return {"repetition_rate": repeated} | {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}


def passages(stream: TokenStream, count: int, length: int) -> list[list[int]]:
    """Runs of at most `length` tokens of a text, `count` at even distances."""
    last = max(0, len(stream) - length)
    places = sorted({round(float(place)) for place in np.linspace(0, last, count)})
    return [stream.tokens[place : place + length].tolist() for place in places]


@torch.no_grad()
def looks(subject: Subject) -> Row:
    """Attention of every head on the beginning of validation, and what its experts are for."""
    tokens, sizes = subject.text.validation.tokens, subject.sizes
    experts = inspection.specialisation_in(subject.model, tokens[: sizes.routed])
    return inspection.record(subject.model, subject.run.tokenizer, tokens[: sizes.looked], experts)


def attention(looked: Row) -> Row | Absent:
    """Maps of every head. looked: what `looks` returned."""
    if not looked["attention"]:
        return Absent("the model has no attention")
    return {"tokens": looked["tokens"], "layers": looked["attention"]}


def experts(looked: Row, kind: str) -> Row | Absent:
    """Balance of every layer of experts. effective: exp of the load's entropy, all of them where loads are equal."""
    if not looked["experts"]:
        return Absent(f"this --model {kind} has no experts")
    return {"layers": [own | balance(own["load"]) for own in looked["experts"]]}


def balance(load: Sequence[float]) -> dict[str, float]:
    """Of shares (E,) that sum to 1."""
    entropy = -sum(share * math.log(share) for share in load if share > 0)
    return {"effective": math.exp(entropy), "largest": max(load), "gini": gini(torch.tensor(load))}
