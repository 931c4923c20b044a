"""Token directions from a text alone: the leading singular vectors of its positive pointwise mutual
information (PPMI).

Levy, Goldberg & Dagan, "Improving distributional similarity with lessons learned from word
embeddings", TACL 2015: windows weighted by distance, context frequencies to the power 3/4. Rows are
U S, which train faster here than the U sqrt(S) of that paper. Tokens before and tokens after are
separate contexts (V x 2V): what follows a token and what comes before it are different questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from ebmvk.data.tokenizer import Ids

WINDOW = 5  # tokens to each side; the o-th has weight (WINDOW - o + 1) / WINDOW
SMOOTHING = 0.75  # power of the context frequencies; without it, rare contexts count too much
OVERSAMPLING, ROUNDS = 32, 2  # extra columns and power iterations of the randomised decomposition
_Sparse = Any  # scipy.sparse.csr_matrix, which has no types


def cooccurrence(tokens: Ids, vocab_size: int) -> _Sparse:
    """(V, V) float64: total weight of token j in the window after token i. tokens: (n,)."""
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float64)
    for offset in range(1, min(WINDOW, len(tokens) - 1) + 1):
        weight = np.full(len(tokens) - offset, (WINDOW - offset + 1) / WINDOW)
        pairs = (tokens[:-offset], tokens[offset:])
        total = total + sparse.coo_matrix((weight, pairs), shape=(vocab_size, vocab_size)).tocsr()
    return total


def positive_pmi(counts: _Sparse) -> _Sparse:
    """max(0, log p(i, j) / (p(i) q(j))) with q(j) ~ p(j)^(3/4), over columns j. counts: (V, C)."""
    rows = np.asarray(counts.sum(axis=1)).ravel()
    columns = np.asarray(counts.sum(axis=0)).ravel() ** SMOOTHING
    cells = counts.tocoo()
    value = np.log(cells.data * columns.sum() / (rows[cells.row] * columns[cells.col]))
    keep = value > 0
    places = (cells.row[keep], cells.col[keep])
    return sparse.coo_matrix((value[keep], places), shape=counts.shape).tocsr()


def singular_vectors(matrix: _Sparse, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """The k leading left singular vectors (V, k) and values (k,), float64.

    Computed by the randomised range finder with power iterations (Halko, Martinsson & Tropp 2011,
    algorithm 4.4). The same seed gives the same result.
    """
    random = np.random.default_rng(seed)
    width = min(k + OVERSAMPLING, *matrix.shape)
    basis = _orthonormal(matrix @ random.standard_normal((matrix.shape[1], width), dtype=np.float32))
    for _ in range(ROUNDS):
        basis = _orthonormal(matrix @ _orthonormal(matrix.T @ basis))
    small = torch.from_numpy(np.asarray(matrix.T @ basis)).double()  # (C, width); matrix ~ basis small^T
    values, vectors = torch.linalg.eigh(small.T @ small)
    values, vectors = values.flip(0)[:k].clamp_min(0).sqrt(), vectors.flip(1)[:, :k]
    return torch.from_numpy(basis).double() @ vectors, values


def _orthonormal(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = torch.linalg.qr(torch.from_numpy(columns))[0].numpy()
    return found


def spectral_rows(tokens: Ids, vocab_size: int, d: int, seed: int) -> Tensor:
    """Rows U S (V, min(d, V)) float64, of any length; zero for a token without statistics.

    tokens: (n,), the training text.
    """
    after = cooccurrence(tokens, vocab_size)
    matrix = sparse.hstack([positive_pmi(after), positive_pmi(after.T.tocsr())]).tocsr().astype(np.float32)
    vectors, values = singular_vectors(matrix, min(d, vocab_size), seed)
    unknown = torch.from_numpy(np.diff(matrix.indptr) == 0)
    return (vectors * values).masked_fill(unknown[:, None], 0.0)
