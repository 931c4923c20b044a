"""What a corpus is like, and what to train on it: lengths of documents, block size, stride, preset, perplexity."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ebmvk.data import ngram
from ebmvk.data.tokenizer import Tokenizer

FEW_TOKENS = 20_000_000  # below, windows overlap: another cut of the same text is worth more than nothing new
TRIGRAM_TOKENS = 2_000_000  # on which the reference is fitted at most
REACHED = (0.5, 1.0)  # of the trigram's perplexity per token, by our models on texts of 1 to 11 MB
PRESETS = ((200_000_000, "small"), (500_000_000, "medium"))  # below so many bytes; from there on: large
BLOCKS = (128, 256, 512, 1024)


@dataclass(frozen=True)
class Analysis:
    """Lengths are in tokens, without end-of-text. perplexity: what to expect per token, from a trigram on the last
    tenth; None where the text is too short to say."""

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


def analyse(documents: Sequence[str], tokenizer: Tokenizer) -> Analysis:
    """documents: at least one."""
    encoded = tokenizer.encode_many(list(documents))
    lengths = [len(ids) for ids in encoded]
    size = sum(len(document.encode()) for document in documents)
    median = statistics.median(lengths)
    # A window that most documents fill: longer ones would be padding, shorter ones would cut what belongs together.
    block = max([length for length in BLOCKS if length <= median], default=BLOCKS[0])
    preset = next((name for below, name in PRESETS if size < below), "large")
    return Analysis(
        len(documents), sum(lengths), size, statistics.mean(lengths), median, min(lengths), max(lengths),
        block, block * 3 // 4 if sum(lengths) < FEW_TOKENS else block, preset, _expected(encoded, tokenizer),
    )  # fmt: skip


def _expected(encoded: Sequence[np.ndarray], tokenizer: Tokenizer) -> tuple[float, float] | None:
    stream = np.concatenate([part for ids in encoded for part in (np.array([tokenizer.eos_id]), ids)])[:TRIGRAM_TOKENS]
    cut = len(stream) * 9 // 10
    if len(stream) - cut < 100:
        return None
    nats = ngram.fit(stream[:cut], tokenizer.vocab_size).nats(stream[cut:])
    trigram = float(np.exp(nats / (len(stream) - cut - 1)))
    low, high = REACHED
    return low * trigram, high * trigram
