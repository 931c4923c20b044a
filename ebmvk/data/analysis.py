"""What a corpus is like, and what to train on it: lengths of documents, block size, stride, preset, perplexity."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ebmvk.data import ngram
from ebmvk.data.splitting import hold_out
from ebmvk.data.tokenizer import Ids, Tokenizer

FEW_TOKENS = 20_000_000  # below, windows overlap: another cut of the same text is worth more than nothing new
FITTED, MEASURED = 5_000_000, 1_000_000  # tokens of the trigram at most: those before the cut, those behind it
# Of the trigram's perplexity per token. Preset small on Spanish, on the same tokens as the trigram: .30 after 5 epochs
# of 9 MB of science (33.2 of 111.2), .99 after two thirds of an epoch of 14 MB of history (128.0 of 129.7).
REACHED = (0.25, 1.0)
PRESETS = ((200_000_000, "small"), (500_000_000, "medium"))  # below so many bytes; from there on: large
BLOCKS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Analysis:
    """Lengths are in tokens, without end-of-text. perplexity: what to expect per token of the last tenth, which
    training holds out (of a folder, one of each file that has many documents), from a trigram fitted on `fitted` tokens
    before it and measured on `measured` of it; None where the text is too short to say."""

    documents: int
    tokens: int
    bytes: int
    mean: float
    median: float
    least: int
    most: int
    block_size: int
    stride: int
    preset: str
    perplexity: tuple[float, float] | None
    fitted: int
    measured: int


def preset_for(documents: Sequence[str]) -> str:
    """The preset that so much text is enough for."""
    size = _bytes(documents)
    return next((name for below, name in PRESETS if size < below), "large")


def analyse(documents: Sequence[str], tokenizer: Tokenizer, preset: str, longest: int) -> Analysis:
    """documents: at least one. longest: the preset's own block, which no other one exceeds: memory grows with it."""
    parts = [tokenizer.encode_many(part) for part in hold_out(documents)]
    lengths = [len(ids) for ids in chain(*parts)]
    if len(lengths) > len(documents):  # what is held out begins inside a document
        at = len(parts[0]) - 1
        lengths[at : at + 2] = [sum(lengths[at : at + 2])]
    median = statistics.median(lengths)
    # A window that most documents fill: longer ones would be padding, shorter ones would cut what belongs together.
    block = max([length for length in BLOCKS if length <= min(median, longest)], default=BLOCKS[0])
    overlap = sum(lengths) < FEW_TOKENS and median > block  # a document within one window has no other cut
    train, held = (_stream(part, tokenizer) for part in parts)
    train, held = train[-FITTED:], held[:MEASURED]
    return Analysis(
        len(documents), sum(lengths), _bytes(documents), statistics.mean(lengths), median, min(lengths), max(lengths),
        block, block * 3 // 4 if overlap else block, preset, _expected(train, held, tokenizer.vocab_size),
        len(train), len(held),
    )  # fmt: skip


def _bytes(documents: Sequence[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def _stream(encoded: Sequence[Ids], tokenizer: Tokenizer) -> Ids:
    """Documents one after another, each led by end-of-text."""
    eos = np.array([tokenizer.eos_id], dtype=np.int32)
    return np.concatenate([eos[:0], *(part for ids in encoded for part in (eos, ids))])


def _expected(train: Ids, held: Ids, vocab_size: int) -> tuple[float, float] | None:
    if len(held) < 100:
        return None
    nats = ngram.fit(train, vocab_size).nats(held)
    trigram = float(np.exp(nats / (len(held) - 1)))
    low, high = (max(1.0, share * trigram) for share in REACHED)  # 1: every token is certain
    return low, high
