"""The trigram is a probability distribution, matches Kneser–Ney, and beats weaker models."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from ebmvk.data import ngram
from ebmvk.errors import ArgumentError, DataError

Ids = npt.NDArray[np.int64]


def markov(n: int, vocab: int, seed: int) -> Ids:
    """Skewed text with memory: the next token depends on the last, rare tokens included."""
    random = np.random.default_rng(seed)
    steps = np.minimum(random.geometric(0.25, n), vocab)
    return np.cumsum(steps) * 7 % vocab


@pytest.mark.parametrize(("vocab", "n"), [(5, 40), (50, 3000), (300, 2000), (7, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_sum_to_one_in_seen_and_unseen_contexts(vocab: int, n: int, seed: int) -> None:
    ids = markov(n, vocab, seed)
    model = ngram.fit(ids, vocab)
    every = np.arange(vocab)
    contexts = [
        (ids[0], ids[1]),
        (ids[-2], ids[-1]),
        (0, 0),
        (vocab - 1, 0),
        *np.random.default_rng(seed).integers(0, vocab, (20, 2)),
    ]
    for a, b in contexts:
        p = model.probabilities(np.full(vocab, a), np.full(vocab, b), every)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-12)  # float64, at most 300 terms


def test_probabilities_match_the_definition() -> None:
    """Check against the formulas with dictionaries, on text with the long tail of words."""
    vocab = 400
    ids = np.minimum(np.random.default_rng(0).zipf(1.4, 6000), vocab) - 1
    model = ngram.fit(ids, vocab)
    triples = Counter(zip(ids.tolist(), ids[1:].tolist(), ids[2:].tolist(), strict=False))
    pairs = Counter((b, c) for _, b, c in triples)
    singles = Counter((c,) for _, c in pairs)

    def interpolate(counts: Counter[tuple[int, ...]], key: tuple[int, ...], lower: float) -> float:
        n = [0] + [sum(1 for v in counts.values() if v == i) for i in range(1, 5)]
        y = n[1] / (n[1] + 2 * n[2])
        d = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        assert all(0 < d[i] <= i for i in (1, 2, 3)), "the text must be one that needs no fallback"
        followers = {k: v for k, v in counts.items() if k[:-1] == key[:-1]}
        if not followers:
            return lower
        left = sum(d[min(v, 3)] for v in followers.values())
        count = followers.get(key, 0)
        return (count - d[min(count, 3)] + left * lower) / sum(followers.values())

    unseen = np.random.default_rng(1).integers(0, vocab, (60, 3)).tolist()
    for a, b, c in [*unseen, *list(triples)[:60]]:
        one = interpolate(singles, (c,), 1 / vocab)
        two = interpolate(pairs, (b, c), one)
        three = interpolate(triples, (a, b, c), two)
        (found,) = model.probabilities(np.array([a]), np.array([b]), np.array([c]))
        assert found == pytest.approx(three, rel=1e-10)


def test_nats_cover_each_token_but_the_first() -> None:
    ids = markov(500, 20, 0)
    model = ngram.fit(ids, 20)
    held_out = markov(300, 20, 1)
    nats = model.token_nats(held_out)
    assert nats.shape == (299,)
    assert model.nats(held_out) == pytest.approx(nats.sum())
    a, b, c = held_out[:-2], held_out[1:-1], held_out[2:]
    assert np.allclose(nats[1:], -np.log(model.probabilities(a, b, c)))
    assert np.isfinite(nats).all()


def test_the_trigram_uses_its_context() -> None:
    """On a repeated cycle the third token is almost certain; on noise nothing beats log V."""
    cycle = np.tile(np.random.default_rng(0).permutation(64), 50)
    assert ngram.fit(cycle, 64).nats(cycle) / len(cycle) < 0.05
    noise = np.random.default_rng(0).integers(0, 64, 20_000)
    fresh = np.random.default_rng(1).integers(0, 64, 20_000)
    assert ngram.fit(noise, 64).nats(fresh) / len(fresh) == pytest.approx(math.log(64), rel=0.05)


def test_discounts_never_exceed_their_counts_even_for_tiny_or_odd_texts() -> None:
    ones, no_ones = [1] * 10, [5, 6, 7]
    rising = [1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4]
    usual = [1] * 100 + [2] * 40 + [3] * 20 + [4] * 10
    for counts in (ones, no_ones, rising, usual):
        d = ngram._discounts(np.array(counts))
        assert d[0] == 0
        assert all(0 < d[c] <= c for c in (1, 2, 3)), counts
    # Y = 100/180: 1 - 2 Y 40/100, 2 - 3 Y 20/40, 3 - 4 Y 10/20.
    assert ngram._discounts(np.array(usual))[1:] == pytest.approx([5 / 9, 7 / 6, 17 / 9])


def test_bits_per_byte_and_bad_arguments() -> None:
    assert ngram.bits_per_byte(100 * math.log(2), 50) == pytest.approx(2)
    with pytest.raises(DataError, match="0 bytes"):
        ngram.bits_per_byte(1.0, 0)
    with pytest.raises(DataError, match="at least 3"):
        ngram.fit(np.array([1, 2]), 5)
    with pytest.raises(ArgumentError, match="between 0 and 4"):
        ngram.fit(np.array([1, 2, 5]), 5)
    with pytest.raises(ArgumentError, match="vocab_size"):
        ngram.fit(np.array([0, 0, 0]), 3_000_000)
