"""Exact likelihood, whole and by how often a token occurs in the training text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.evaluation.likelihood import Likelihood, text_size

EDGES = (0, 1, 10, 100, 1_000, 10_000, 100_000)
"""Least training count of each bucket."""


@dataclass(frozen=True)
class Bucket:
    """Validation tokens whose training count is within low to high (None: any larger one).

    types: of the vocabulary; tokens: of the text; unigram: nats of the same tokens under training frequencies, smoothed
    by one."""

    low: int
    high: int | None
    types: int
    tokens: int
    nats: float
    unigram: float

    def record(self) -> Row:
        """JSON-able; what is per token is None where no token is."""
        means = {"nats_per_token": self.nats, "unigram_nats_per_token": self.unigram}
        return vars(self) | {name: total / self.tokens if self.tokens else None for name, total in means.items()}


def buckets(nats: Tensor, tokens: Tensor, counts: Tensor) -> list[Bucket]:
    """By training frequency; empty ones are left out. The nats of all add up to those of the text.

    nats: (n,) float64; tokens: (n,) int64, whose nats they are; counts: (V,) int64, of the training text.
    """
    edges = torch.tensor(EDGES[1:])
    place, kind = torch.bucketize(counts[tokens], edges, right=True), torch.bucketize(counts, edges, right=True)
    frequency = (counts.double() + 1) / (counts.double() + 1).sum()
    unigram = -frequency.log()[tokens]
    found = []
    for i, low in enumerate(EDGES):
        mine = place == i
        high = EDGES[i + 1] - 1 if i + 1 < len(EDGES) else None
        sums = (float(nats[mine].sum()), float(unigram[mine].sum()))
        found.append(Bucket(low, high, int((kind == i).sum()), int(mine.sum()), *sums))
    return [bucket for bucket in found if bucket.types]


def likelihood(subject: Subject) -> Row:
    """Of the beginning of validation; buckets; and the same figures of the beginning of the training text."""
    stream, nats = subject.validation, subject.nats
    size = text_size(stream, subject.run.tokenizer)
    whole = Likelihood(float(nats.sum()), size.tokens, size.words, size.bytes, *subject.window, 0.0).record()
    del whole["seconds"]  # not taken
    tokens = torch.from_numpy(stream.tokens[1:]).long()
    train = subject.nats_of(subject.text.train.take(subject.sizes.tokens + 1))
    return {
        "validation": whole,
        "whole_split": len(stream) == len(subject.text.validation),
        "training": {"nats_per_token": float(train.mean()), "tokens": len(train)},
        "buckets": [bucket.record() for bucket in buckets(nats, tokens, subject.text.counts)],
    }
