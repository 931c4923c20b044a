"""The exact likelihood of a stream of tokens (model section 5).

Nothing is sampled, bounded or estimated.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.data import ngram
from ebmvk.data.corpus import count_words
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.errors import ConfigError, NonFinite
from ebmvk.memory.law import Law, Reader, Terms, log_probs
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.model.reading import Layers, TorchLayers


@dataclass(frozen=True)
class TextSize:
    """Counts of a stream. tokens: the predicted ones, all but the first; words, bytes: those of its
    text; unknown: number of characters that became unknown tokens. The nats don't cover which
    characters these are."""

    tokens: int
    words: int
    bytes: int
    unknown: int = 0


@dataclass(frozen=True)
class Likelihood:
    """The total nats of a stream, read with a context and a stride, and the figures derived from
    them.

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
        return ngram.perplexity(self.nats / self.tokens)

    @property
    def ppl_word(self) -> float | None:
        """exp(total nats / words); None if the text has no words."""
        return ngram.perplexity(self.nats / self.words) if self.words else None

    @property
    def bits_per_byte(self) -> float:
        return ngram.bits_per_byte(self.nats, self.bytes)

    def record(self) -> dict[str, float | int | None]:
        """Every figure, as JSON values."""
        derived = ("nats_per_token", "ppl_token", "ppl_word", "bits_per_byte")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def window(context: int | None, stride: int | None, config: Config) -> tuple[int, int]:
    """(context, stride) of windows. The defaults are the length of a training window and half of
    it. Raises ConfigError.
    """
    context = config.data.seq_length if context is None else context
    if context < 1:
        raise ConfigError(f"--context {context} is below 1", hint="give a number of tokens")
    usual = max(1, context // 2)
    stride = usual if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(
            f"--stride {stride} is not between 1 and {context}, the context", hint=f"use --stride {usual}"
        )
    return context, stride


def text_size(stream: TokenStream, tokenizer: Tokenizer) -> TextSize:
    """Words, bytes and unknown characters of the text itself, even if its tokens omit or change
    some.

    If the last document is cut, only the part that its tokens stand for counts.
    """
    words = size = unknown = 0
    for text, ids, whole in stream.documents():
        raw = text.encode() if whole else tokenizer.beginning(text, ids)
        part = text if whole else raw.decode(errors="replace")  # the cut may split a character
        words += count_words(part, word_level=stream.word_level)
        size += len(raw)
        unknown += tokenizer.unknown_characters(part, ids)
    return TextSize(len(stream) - 1, words, size, unknown)


def likelihood(
    model: LanguageModel,
    stream: TokenStream,
    size: TextSize,
    *,
    context: int,
    stride: int,
    device: torch.device,
    layers: Layers | None = None,
) -> Likelihood:
    """Score each token but the first once, without memory, in float32 with sums in float64.

    layers: what runs the model's layers; by default torch on `device`.

    Raises:
        ArgumentError: the stride is out of range. NonFinite: a token has no finite log-probability.
    """
    began = time.perf_counter()
    nats = token_nats(model, stream, context=context, stride=stride, device=device, layers=layers)["none"]
    seconds = time.perf_counter() - began
    return Likelihood(float(nats.sum()), size.tokens, size.words, size.bytes, context, stride, seconds)


def token_nats(
    model: LanguageModel,
    stream: TokenStream,
    *,
    context: int,
    stride: int,
    device: torch.device,
    reader: Reader | None = None,
    layers: Layers | None = None,
) -> dict[Law, Tensor]:
    """{law: -log p of each token but the first, (n - 1,) float64}, for the model alone and for each
    law of `reader`.

    layers: what runs the model's layers; by default torch on `device`. A memory is read on the CPU
    and the engine, from the states that the layers give.

    Raises:
        ArgumentError: the stride is out of range. NonFinite: a token has no finite log-probability.
    """
    at = 0
    # One array for the whole text: the results of many pieces would keep the freed memory around
    # them in use.
    laws: list[Law] = reader.laws if reader else ["none"]
    nats = {mode: torch.empty(len(stream) - 1, dtype=torch.float64) for mode in laws}
    for found in _log_p(model, stream, reader, layers or TorchLayers(model, device), context, stride):
        for mode, log_p in found.items():
            torch.neg(log_p, out=nats[mode][at : at + len(log_p)])
        at += len(found["none"])
    if not all(bool(torch.isfinite(values).all()) for values in nats.values()):
        raise diverged(stream.name)
    return nats


def diverged(name: str) -> NonFinite:
    """The error to raise if a text has no finite likelihood."""
    return NonFinite(
        f"the likelihood of {name} is not finite",
        why="the weights diverged",
        hint="use an earlier checkpoint, or train with a smaller --lr",
    )


def _log_p(
    model: LanguageModel, stream: TokenStream, reader: Reader | None, layers: Layers, context: int, stride: int
) -> Iterator[dict[Law, Tensor]]:
    """log p (m,) by law of the next tokens of a text, on the CPU in float64."""
    if reader is None:
        for log_p in layers.log_p(stream, context=context, stride=stride):
            yield {"none": log_p.double().cpu()}
        return
    law = TokenLaw(model)
    for seen, following in layers.contexts(stream, context=context, stride=stride):
        with torch.no_grad():
            terms = read_text(law, reader, seen.query[0], seen.h[0], following)
            found = log_probs(terms, reader.memory.gates, reader.mode)
        yield found


def read_text(law: TokenLaw, reader: Reader, query: Tensor, h: Tensor, tokens: Tensor) -> Terms:
    """The terms of the laws for the next part of a text.

    query, h: (n, d) queries and states of its contexts; tokens: (n,) those that followed.
    """
    terms = reader.empty_terms(len(tokens))
    for rows, log_p in law.pieces(query):
        terms.put(rows, reader.read(h[rows], log_p, tokens[rows]))
    return terms


def trigram(train: TokenStream, stream: TokenStream, size: TextSize, vocab_size: int) -> Likelihood:
    """The likelihood of `stream` under an interpolated Kneser-Ney trigram, fitted to `train`."""
    began = time.perf_counter()
    nats = ngram.fit(train.tokens, vocab_size).nats(stream.tokens)
    return Likelihood(nats, size.tokens, size.words, size.bytes, 2, 1, time.perf_counter() - began)
