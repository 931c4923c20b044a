"""The trigram that a model should beat: interpolated modified Kneser–Ney over the same token ids.

Chen and Goodman (1998), "An empirical study of smoothing techniques for language modeling", section
4.1.6: three discounts per order from the counts of counts; lower orders use continuation counts;
the lowest is mixed with 1/V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ebmvk.errors import ArgumentError, DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_AT_ONCE = 1 << 16  # tokens looked up at once; this needs about twenty arrays of this length


@dataclass(frozen=True)
class _Order:
    """One order: discounted counts by n-gram; total and back-off mass by context.

    Keys are sorted.
    """

    keys: Ints
    discounted: Floats
    contexts: Ints
    totals: Floats
    left_over: Floats

    def probability(self, key: Ints, context: Ints, lower: Floats) -> Floats:
        """(discounted count + left_over · lower) / total if the context is known, else `lower`."""
        at, known = _find(self.contexts, context)
        gram_at, gram_known = _find(self.keys, key)
        count = np.where(gram_known, self.discounted[gram_at], 0.0)
        mixed: Floats = np.where(known, (count + self.left_over[at] * lower) / self.totals[at], lower)
        return mixed


class KneserNey:
    """A trigram model that `fit` has made. Its `nats` measures other ids."""

    def __init__(self, vocab_size: int, unigram: Floats, bigram: _Order, trigram: _Order) -> None:
        self._vocab = vocab_size
        self._unigram, self._bigram, self._trigram = unigram, bigram, trigram

    def probabilities(self, first: Ints, second: Ints, third: Ints) -> Floats:
        """p(third | first, second), elementwise over arrays of one shape."""
        pair, context = second * self._vocab + third, first * self._vocab + second
        lower = self._bigram.probability(pair, second, self._unigram[third])
        return self._trigram.probability(context * self._vocab + third, context, lower)

    def token_nats(self, ids: npt.NDArray[np.integer]) -> Floats:
        """−log p of every token but the first, (n−1,).

        The second token has one token of context.
        """
        stream = _checked(ids, self._vocab, minimum=2)
        p = np.empty(len(stream) - 1)
        p[:1] = self._bigram.probability(stream[:1] * self._vocab + stream[1:2], stream[:1], self._unigram[stream[1:2]])
        for at in range(1, len(p), _AT_ONCE):
            a, b, c = (stream[at + k : at + k + _AT_ONCE] for k in (-1, 0, 1))
            p[at : at + _AT_ONCE] = self.probabilities(a[: len(c)], b[: len(c)], c)
        nats: Floats = -np.log(p, out=p)
        return nats

    def nats(self, ids: npt.NDArray[np.integer]) -> float:
        """Total −log p of every token but the first."""
        return float(self.token_nats(ids).sum())


def fit(ids: npt.NDArray[np.integer], vocab_size: int) -> KneserNey:
    """Fit a trigram to a stream of ids.

    Args:
        ids: (n,) integers in 0 … vocab_size − 1, n ≥ 3.
        vocab_size: V ≤ 2,000,000, so that V³ fits 63 bits.

    Raises:
        DataError: fewer than three tokens.
        ArgumentError: ids or vocab_size out of range.
    """
    if not 1 <= vocab_size <= 2_000_000:
        raise ArgumentError(f"vocab_size {vocab_size} is not between 1 and 2,000,000", hint="use a smaller vocabulary")
    stream = _checked(ids, vocab_size, minimum=3)
    trigrams, counts = np.unique(
        (stream[:-2] * vocab_size + stream[1:-1]) * vocab_size + stream[2:], return_counts=True
    )
    # Lower orders count the different tokens seen before an n-gram, not how often it occurs.
    bigrams, continuations = np.unique(trigrams % (vocab_size * vocab_size), return_counts=True)
    unigrams, before = np.unique(bigrams % vocab_size, return_counts=True)
    lowest = _order(unigrams, before, vocab_size)
    every = np.arange(vocab_size)
    unigram = lowest.probability(every, np.zeros_like(every), np.full(vocab_size, 1.0 / vocab_size))
    return KneserNey(
        vocab_size, unigram, _order(bigrams, continuations, vocab_size), _order(trigrams, counts, vocab_size)
    )


def perplexity(nats: float) -> float:
    """e^nats, for nats per token, word or byte. Nats above 700 count as 700, so the result is
    finite.
    """
    return math.exp(min(nats, 700.0))


def bits_per_byte(nats: float, byte_count: int) -> float:
    """Bits per byte of a text from its total nats. Raises DataError if it has no bytes."""
    if byte_count < 1:
        raise DataError(f"bits per byte of {byte_count} bytes are undefined", hint="give a text that is not empty")
    return nats / math.log(2.0) / byte_count


def _order(keys: Ints, counts: Ints, vocab_size: int) -> _Order:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    contexts, index = np.unique(keys // vocab_size, return_inverse=True)
    return _Order(
        keys=keys,
        discounted=counts - discount,
        contexts=contexts,
        totals=np.bincount(index, weights=counts.astype(np.float64)).astype(np.float64),
        left_over=np.bincount(index, weights=discount).astype(np.float64),
    )


def _discounts(counts: Ints) -> Floats:
    """The discounts of counts 0, 1, 2 and ≥ 3, (4,).

    n_c is the number of n-grams seen c times. The closed form needs n1 to n4 above 0, and each
    discount D_c in (0, c]. A text that is too small or too regular for that gets the absolute
    discount n1 / (n1 + 2 n2), or ½ if n1 or n2 is 0.
    """
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    single = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    if min(n1, n2, n3, n4) > 0:
        three = np.array([0.0, 1 - 2 * single * n2 / n1, 2 - 3 * single * n3 / n2, 3 - 4 * single * n4 / n3])
        if all(0 < three[c] <= c for c in (1, 2, 3)):
            return three
    return np.array([0.0, single, single, single])


def _find(table: Ints, keys: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def _checked(ids: npt.NDArray[np.integer], vocab_size: int, *, minimum: int) -> Ints:
    stream = np.asarray(ids).astype(np.int64)
    if len(stream) < minimum:
        raise DataError(
            f"the text has {len(stream)} tokens; an n-gram model needs at least {minimum}", hint="give a longer text"
        )
    if stream.min() < 0 or stream.max() >= vocab_size:
        raise ArgumentError(
            f"ids run from {stream.min()} to {stream.max()}, but they must be between 0 and {vocab_size - 1}",
            hint="use the tokenizer that the vocabulary size belongs to",
        )
    return stream
