"""The spectral start against dense float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ebmvk.initialisation.lexical import from_corpus
from ebmvk.initialisation.spectral import SMOOTHING, WINDOW, cooccurrence, positive_pmi, singular_vectors, spectral_rows


def _tokens(n: int, vocab_size: int, seed: int) -> np.ndarray:
    """A Zipf-like text, so that some tokens are rare or missing."""
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocab_size + 1)
    return random.choice(vocab_size, n, p=weights / weights.sum()).astype(np.int32)


def _brute_force(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.zeros((vocab_size, vocab_size))
    for i in range(len(tokens)):
        for offset in range(1, WINDOW + 1):
            if i + offset < len(tokens):
                counts[tokens[i], tokens[i + offset]] += (WINDOW - offset + 1) / WINDOW
    return counts


@pytest.mark.parametrize(("n", "vocab_size"), [(2, 3), (5, 4), (300, 17), (1000, 60)])
def test_cooccurrence_and_pmi_equal_their_definitions(n: int, vocab_size: int) -> None:
    tokens = _tokens(n, vocab_size, seed=n)
    dense = _brute_force(tokens, vocab_size)
    counts = cooccurrence(tokens, vocab_size)
    np.testing.assert_allclose(counts.toarray(), dense, rtol=1e-12)
    q = dense.sum(0) ** SMOOTHING
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(dense / dense.sum(1, keepdims=True)) - np.log(q / q.sum())
    np.testing.assert_allclose(positive_pmi(counts).toarray(), np.where(dense > 0, np.maximum(pmi, 0), 0), atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_singular_vectors_equal_those_of_numpy(k: int) -> None:
    random = np.random.default_rng(3)
    # A falling spectrum, as counts have: the subspace of the k largest is then well defined.
    matrix = (random.standard_normal((80, 60)) * 0.8 ** np.arange(60)) @ random.standard_normal((60, 90)) / 9
    from scipy import sparse

    vectors, values = singular_vectors(sparse.csr_matrix(matrix.astype(np.float32)), k, seed=0)
    u, s, _ = np.linalg.svd(matrix)
    np.testing.assert_allclose(values.numpy(), s[:k], rtol=2e-3)
    # Projectors, since vectors have no sign: float32 products, and two power iterations.
    difference = vectors.numpy() @ vectors.numpy().T - u[:, :k] @ u[:, :k].T
    assert np.linalg.norm(difference, 2) < 0.05
    np.testing.assert_allclose((vectors.T @ vectors).numpy(), np.eye(k), atol=1e-5)


def test_tokens_of_one_kind_have_similar_directions() -> None:
    """In a language of pairs (noun, verb), nouns occur in the same contexts as other nouns."""
    random = np.random.default_rng(0)
    nouns, verbs = random.integers(0, 10, 4000), random.integers(10, 20, 4000)
    tokens = np.stack([nouns, verbs, np.full(4000, 20)], 1).ravel().astype(np.int32)
    mu = from_corpus(tokens, 25, 8, seed=0).mu[:20]
    cosine = mu @ mu.T
    same = torch.arange(20) // 10 == (torch.arange(20) // 10)[:, None]
    off = ~torch.eye(20, dtype=torch.bool)
    assert float(cosine[same & off].min()) > float(cosine[~same].max()) + 0.2


@pytest.mark.parametrize(("vocab_size", "d"), [(30, 8), (30, 30), (30, 77), (5, 64)])
def test_directions_are_unit_where_known_and_repeat_with_the_seed(vocab_size: int, d: int) -> None:
    tokens = _tokens(400, vocab_size - 1, seed=1)  # the last token is never seen
    one, again, other = (from_corpus(tokens, vocab_size, d, seed) for seed in (4, 4, 5))
    assert torch.equal(one.mu, again.mu)
    assert not torch.equal(one.mu, other.mu) or vocab_size > d
    assert one.mu.shape == (vocab_size, d)
    length = torch.linalg.vector_norm(one.mu, dim=1)
    torch.testing.assert_close(length, one.known.float(), atol=1e-5, rtol=0)
    assert not bool(one.known[-1])
    assert int(one.known.sum()) == len(np.unique(tokens)) == one.facts["known"]


def test_a_text_without_neighbours_gives_no_directions() -> None:
    assert not bool(spectral_rows(np.array([3], dtype=np.int32), 10, 4, 0).any())
