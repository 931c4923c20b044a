"""Exact likelihood: of the whole text, and by how often a token occurs in the training text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.data.ngram import perplexity
from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.evaluation.likelihood import Likelihood, text_size
from ebmvk.report.charts import Bars
from ebmvk.report.section import Picture, Section, Shown
from ebmvk.report.tables import Table, number, per_word, percent, why_no_word

EDGES = (0, 1, 10, 100, 1_000, 10_000, 100_000)
"""Least training count of each bucket."""
X_FREQUENCY = "occurrences in the training text"


@dataclass(frozen=True)
class Bucket:
    """Validation tokens that occur `low` to `high` times in the training text; `low` or more if
    `high` is None.

    types: number of vocabulary entries that occur this often; tokens: how many times they occur in
    validation; nats: their total cost under the model; unigram: their total cost under training
    frequencies smoothed by one.
    """

    low: int
    high: int | None
    types: int
    tokens: int
    nats: float
    unigram: float

    def record(self) -> Row:
        """The bucket as JSON values; figures per token are None for an empty bucket."""
        means = {"nats_per_token": self.nats, "unigram_nats_per_token": self.unigram}
        return vars(self) | {name: total / self.tokens if self.tokens else None for name, total in means.items()}


def buckets(nats: Tensor, tokens: Tensor, counts: Tensor) -> list[Bucket]:
    """Buckets by training frequency; buckets that no vocabulary entry falls into are omitted. Their
    nats add up to those of the text.

    nats: (n,) float64, the cost of each of the tokens (n,) int64. counts: (V,) int64, how often
    each token occurs in the training text.
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
    """Likelihood of the start of validation, also by bucket, and of the start of training."""
    stream, nats = subject.validation, subject.nats
    size = text_size(stream, subject.run.tokenizer)
    whole = Likelihood(float(nats.sum()), size.tokens, size.words, size.bytes, *subject.window, 0.0).record()
    del whole["seconds"]  # was not measured
    tokens = torch.from_numpy(stream.tokens[1:]).long()
    train = subject.nats_of(subject.text.train.take(subject.sizes.tokens + 1))
    return {
        "validation": whole,
        "whole_split": len(stream) == len(subject.text.validation),
        "training": {"nats_per_token": float(train.mean()), "tokens": len(train)},
        "buckets": [bucket.record() for bucket in buckets(nats, tokens, subject.text.counts)],
    }


# ---- on the page ---------------------------------------------------------------------------------


def show(found: Row) -> Shown:
    """Tables and pictures of what `likelihood` returned."""
    own = found["validation"]
    main = Table(
        ("bits per byte", "perplexity / token", "perplexity / word", "nats / token", "tokens", "words", "bytes"),
        [(
            number(own["bits_per_byte"]), number(own["ppl_token"], ",.2f"), number(per_word(own), ",.2f"),
            number(own["nats_per_token"]), *(f"{own[name]:,}" for name in ("tokens", "words", "bytes")),
        )],
    )  # fmt: skip
    rows = [
        (
            bucket_label(bucket), f"{bucket['types']:,}", f"{bucket['tokens']:,}", number(bucket["nats_per_token"]),
            number(bucket["unigram_nats_per_token"]), _perplexity(bucket["nats_per_token"]),
            percent(bucket["nats"] / own["nats"]),
        )
        for bucket in found["buckets"]
    ]  # fmt: skip
    head = (
        "occurrences in training", "entries of the vocabulary", "tokens in validation", "nats / token",
        "by frequency alone", "perplexity", "of all nats",
    )  # fmt: skip
    return Shown(_note(found), tables=[main, Table(head, rows)], pictures=_pictures(found))


def _note(found: Row) -> str:
    own, train = found["validation"], found["training"]
    part = "All of validation" if found["whole_split"] else f"The first {own['tokens']:,} tokens of validation"
    gap = own["nats_per_token"] - train["nats_per_token"]
    note = (
        f"{part}, context {own['context']}, stride {own['stride']}. The first {train['tokens']:,} tokens of the "
        f"training text cost {number(train['nats_per_token'])} nats each; validation costs {number(abs(gap))} "
        f"{'more' if gap >= 0 else 'less'}. The table groups validation's tokens by how often training showed them, "
        "beside a model that knows nothing but these frequencies."
    )
    return note if per_word(own) is not None else f"{note} Perplexity per word: {why_no_word(own)}."


def _pictures(found: Row) -> list[Picture]:
    rows, whole = [bucket for bucket in found["buckets"] if bucket["tokens"]], found["validation"]
    if not rows:
        return []
    labels = [short_label(bucket) for bucket in rows]
    costs = {
        "the model": [bucket["nats_per_token"] for bucket in rows],
        "frequencies alone": [bucket["unigram_nats_per_token"] for bucket in rows],
    }
    shares = {what: [100 * bucket[what] / whole[what] for bucket in rows] for what in ("nats", "tokens")}
    return [
        Picture(
            "Nats per token by frequency",
            "Tokens of validation, by how often they occur in the training text.",
            Bars(labels, costs, X_FREQUENCY, "nats per token"),
        ),
        Picture(
            "Where the nats are",
            "Share of all nats beside the share of all tokens.",
            Bars(labels, shares, X_FREQUENCY, "per cent"),
        ),
    ]


def bucket_label(bucket: Row) -> str:
    """The range of a bucket, such as '10 to 99'."""
    low, high = bucket["low"], bucket["high"]
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,}" if high is not None else f"{low:,} or more"


def short_label(bucket: Row) -> str:
    """The range of a bucket on an axis, such as '10+'."""
    low = bucket["low"]
    label = f"{low // 1000}k" if low >= 1000 else f"{low}"
    return label if bucket["high"] == low else f"{label}+"


def _perplexity(nats: float | None) -> str:
    return number(None if nats is None else perplexity(nats), ",.1f")


SECTIONS: tuple[Section[Subject, Row], ...] = (Section("likelihood", "Exact likelihood", likelihood, show),)
