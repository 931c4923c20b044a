"""Exact likelihood of a stream of tokens: nothing is sampled, bounded or estimated (model section 5)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.data import ngram
from ebmvk.data.datasets import count_words
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.errors import NonFinite
from ebmvk.model.ebm import EnergyModel

# Log-probabilities held at once: 2^24 float32 values are 64 MiB.
_LOGITS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class TextSize:
    """What a stream stands for. tokens: predicted ones, all but the first; words, bytes: of its text."""

    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class Likelihood:
    """Total nats of a stream and the figures that follow from them; context and stride say how it was read.

    The mean energy of a token is its mean nats: E(v|c) = -log p(v|c).
    """

    nats: float
    tokens: int
    words: int
    bytes: int
    context: int
    stride: int
    seconds: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def ppl_token(self) -> float:
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def ppl_word(self) -> float | None:
        """exp(total nats / words); None where the text has no word."""
        return math.exp(min(self.nats / self.words, 700.0)) if self.words else None

    @property
    def bits_per_byte(self) -> float:
        return ngram.bits_per_byte(self.nats, self.bytes)

    def record(self) -> dict[str, float | int | None]:
        """Every figure, JSON-able."""
        derived = ("nats_per_token", "ppl_token", "ppl_word", "bits_per_byte")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def text_size(stream: TokenStream, tokenizer: Tokenizer) -> TextSize:
    """Words and bytes by the text itself, document by document, so that a cut stream is counted as cut."""
    ends = [*stream.starts[1:], len(stream)]
    documents = (stream.tokens[start:end] for start, end in zip(stream.starts, ends, strict=True))
    words = sum(count_words(tokenizer.decode(ids), word_level=stream.word_level) for ids in documents)
    return TextSize(len(stream) - 1, words, tokenizer.count_bytes(stream.tokens))


def likelihood(
    model: EnergyModel, stream: TokenStream, size: TextSize, *, context: int, stride: int, device: torch.device
) -> Likelihood:
    """Score each token of the stream but the first exactly once, in float32 with sums in float64.

    Raises:
        ArgumentError: stride out of range. NonFinite: the model gives a token no finite log-probability.
    """
    began = time.perf_counter()
    was_training = model.training
    model.eval()
    nats = 0.0
    with torch.no_grad():
        mu = model.embeddings()
        for tokens, first in _batches(stream, context, stride, model.vocab_size):
            nats += float(_nats(model, tokens.to(device), first, mu))
    model.train(was_training)
    if not math.isfinite(nats):
        raise NonFinite(
            f"the likelihood of {stream.name} is {nats}",
            why="the weights diverged",
            hint="take an earlier checkpoint, or train with a smaller --lr",
        )
    return Likelihood(nats, size.tokens, size.words, size.bytes, context, stride, time.perf_counter() - began)


def _nats(model: EnergyModel, tokens: Tensor, first: int, mu: Tensor) -> Tensor:
    """Total -log p of tokens[:, 1 + first:], each given what stands before it in its window."""
    seen = model(tokens[:, :-1], mu)
    seen = dataclasses.replace(seen, query=seen.query[:, first:])
    log_p = model.log_p_lex(seen, mu)
    return -log_p.gather(-1, tokens[:, 1 + first :, None]).double().sum()


def _batches(stream: TokenStream, context: int, stride: int, vocab_size: int) -> Iterator[tuple[Tensor, int]]:
    """Windows of equal shape stacked, as many as the memory for their log-probabilities allows."""
    rows = max(1, _LOGITS_AT_ONCE // (stride * vocab_size))
    group: list[Tensor] = []
    shape = (0, 0)
    for tokens, first in evaluation_windows(stream, context, stride):
        if group and ((len(tokens), first) != shape or len(group) == rows):
            yield torch.stack(group), shape[1]
            group = []
        shape = (len(tokens), first)
        group.append(tokens)
    yield torch.stack(group), shape[1]


def trigram(train: TokenStream, stream: TokenStream, size: TextSize, vocab_size: int) -> Likelihood:
    """An interpolated Kneser-Ney trigram fitted to the same training tokens, on the same stream."""
    began = time.perf_counter()
    nats = ngram.fit(train.tokens, vocab_size).nats(stream.tokens)
    return Likelihood(nats, size.tokens, size.words, size.bytes, 2, 1, time.perf_counter() - began)
