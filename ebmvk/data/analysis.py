"""Measures a corpus and suggests how to train on it.

The lengths of documents determine block size and stride, the number of bytes determines the preset,
and a trigram on the same text tells what perplexity to expect.
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

# Windows of shorter corpora overlap, so that each epoch sees the text cut elsewhere
FEW_TOKENS = 20_000_000
# Most tokens that the trigram is fitted on, and measured on
FITTED, MEASURED = 5_000_000, 1_000_000
# The perplexity to expect, as a share of the trigram's. Measured with preset small on Spanish, on
# the trigram's tokens: .30 after 5 epochs of 9 MB of science (33.2 of 111.2), .99 after two thirds
# of an epoch of 14 MB of history (128.0 of 129.7).
REACHED = (0.25, 1.0)
# (fewer bytes than this, preset); above both: large
PRESETS = ((200_000_000, "small"), (500_000_000, "medium"))
BLOCKS = (32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Analysis:
    """What `ebmvk analyze-corpus` prints. Lengths of documents are in tokens, without end-of-text.

    perplexity: (low, high) to expect per token of the held-out last tenth. It derives from a
        trigram that was fitted on `fitted` tokens before that tenth and measured on `measured`
        tokens of it; None if the text is too short. In a folder, each file with many documents has
        its own last tenth held out.
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

    longest: the largest block size to suggest, that of the preset; memory grows with it.
    """
    parts = [tokenizer.encode_many(part) for part in hold_out(documents)]
    lengths = [len(ids) for ids in chain(*parts)]
    if len(lengths) > len(documents):  # the cut divides a document; count it as one
        at = len(parts[0]) - 1
        lengths[at : at + 2] = [sum(lengths[at : at + 2])]
    median = statistics.median(lengths)
    # The longest window that most documents fill: a longer one would be mostly padding, a shorter
    # one would cut documents.
    block = max([length for length in BLOCKS if length <= min(median, longest)], default=BLOCKS[0])
    # A document within one window can't be cut elsewhere
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
