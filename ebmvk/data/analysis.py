"""Measures a corpus and suggests how to train on it.

The lengths of documents determine block size and stride, the number of bytes determines the preset,
and a trigram fitted on the same text shows what perplexity to expect.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ebmvk.data import ngram
from ebmvk.data.splitting import hold_out
from ebmvk.data.tokenizer import Ids, Tokenizer

# The windows of a corpus shorter than this overlap, so that each epoch cuts its text elsewhere
FEW_TOKENS = 20_000_000
# The trigram is fitted on at most the first number of tokens, and measured on at most the second
FITTED, MEASURED = 5_000_000, 1_000_000
# (lowest, highest) perplexity to expect, divided by the trigram's. Measured with preset small on
# Spanish text, with the same tokens as the trigram: .30 (33.2 / 111.2) after 5 epochs of 9 MB of
# science, .99 (128.0 / 129.7) after two thirds of an epoch of 14 MB of history.
REACHED = (0.25, 1.0)
# (fewer bytes than this, preset); above both: large
PRESETS = ((200_000_000, "small"), (500_000_000, "medium"))
BLOCKS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Analysis:
    """What `ebmvk analyze-corpus` prints. Lengths of documents are in tokens, without end-of-text.

    perplexity: (low, high) to expect per token of the held-out last tenth; None if the text is too
        short. It is computed from a trigram, fitted on `fitted` tokens before that tenth and
        measured on `measured` tokens of it. In a folder, the last tenth of each file with many
        documents is held out.
    """

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
    """The largest preset that there is enough text for."""
    size = _bytes(documents)
    return next((name for below, name in PRESETS if size < below), "large")


def analyse(documents: Sequence[str], tokenizer: Tokenizer, preset: str, longest: int) -> Analysis:
    """Measure a corpus of at least one document.

    longest: the largest block size to suggest, which is the preset's; memory grows with it.
    """
    parts = [tokenizer.encode_many(part) for part in hold_out(documents)]
    lengths = [len(ids) for ids in chain(*parts)]
    if len(lengths) > len(documents):  # the cut divides a document; count it as one
        at = len(parts[0]) - 1
        lengths[at : at + 2] = [sum(lengths[at : at + 2])]
    median = statistics.median(lengths)
    # Suggest the longest window that most documents fill. A longer window would be mostly padding,
    # and a shorter one would cut documents.
    block = max([length for length in BLOCKS if length <= min(median, longest)], default=BLOCKS[0])
    # A document that fits into one window can't be cut at different places
    overlap = sum(lengths) < FEW_TOKENS and median > block
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
    """Documents one after another, each with end-of-text before it."""
    eos = np.array([tokenizer.eos_id], dtype=np.int32)
    return np.concatenate([eos[:0], *(part for ids in encoded for part in (eos, ids))])


def _expected(train: Ids, held: Ids, vocab_size: int) -> tuple[float, float] | None:
    if len(held) < 100:
        return None
    nats = ngram.fit(train, vocab_size).nats(held)
    trigram = float(np.exp(nats / (len(held) - 1)))
    low, high = (max(1.0, share * trigram) for share in REACHED)  # a perplexity is at least 1
    return low, high
