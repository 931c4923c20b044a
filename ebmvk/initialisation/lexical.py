"""Directions for the tokens of a vocabulary, from a text or from a table of pretrained vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebmvk.data.tokenizer import Ids, Tokenizer
from ebmvk.errors import DataError
from ebmvk.initialisation.spectral import spectral_rows
from ebmvk.initialisation.tables import Table


@dataclass(frozen=True)
class Directions:
    """mu: (V, d) float32, unit rows where `known` (V,) bool, else zero.

    facts: what was done, for JSON.
    """

    mu: Tensor
    known: Tensor
    facts: dict[str, object]


def from_corpus(tokens: Ids, vocab_size: int, d: int, seed: int) -> Directions:
    """Directions from the statistics of a training text. tokens: (n,)."""
    rows = spectral_rows(tokens, vocab_size, d, seed)
    return _directions(rows, d, seed, {"tokens": len(tokens)})


def from_table(table: Table, tokenizer: Tokenizer, d: int, seed: int) -> Directions:
    """Rows of a pretrained table for the tokens of `tokenizer`.

    A token that the table has only in several pieces gets the mean of their rows.

    Raises:
        DataError: the table has none of the tokens.
    """
    found = [table.find(tokenizer.symbol(i), tokenizer.decode([i])) for i in range(tokenizer.vocab_size)]
    rows = torch.zeros(tokenizer.vocab_size, table.rows.shape[1], dtype=torch.float64)
    for i, ids in enumerate(found):
        if ids:
            rows[i] = table.rows[ids].double().mean(0)
    whole, pieces = sum(len(ids) == 1 for ids in found), sum(len(ids) > 1 for ids in found)
    facts = {"source": table.source, "rows": len(table.rows), "whole": whole, "pieces": pieces}
    known = rows.any(1)
    centred = torch.where(known[:, None], rows - rows[known].mean(0), 0.0) if known.any() else rows
    result = _directions(_leading(centred, d), d, seed, facts | {"width": rows.shape[1]})
    if not result.known.any():
        raise DataError(
            f"--init {table.source}: it has none of the {tokenizer.vocab_size:,} tokens",
            why="it has another language or spelling, or its rows are zero",
            hint="give another table, or --init corpus",
        )
    return result


def _leading(rows: Tensor, d: int) -> Tensor:
    """Coordinates along the d directions of largest variance, or fewer. rows: (V, D), centred."""
    if rows.shape[1] <= d:
        return rows
    vectors: Tensor = torch.linalg.eigh(rows.T @ rows)[1]  # the largest last
    return rows @ vectors[:, -d:]


def _directions(rows: Tensor, d: int, seed: int, facts: dict[str, object]) -> Directions:
    """Unit rows of width d.

    Narrower rows go through a random orthonormal map, which keeps their angles.
    """
    generator = torch.Generator().manual_seed(seed)
    if rows.shape[1] < d:
        frame = torch.linalg.qr(torch.randn(d, rows.shape[1], generator=generator, dtype=torch.float64))[0]
        rows = rows @ frame.T
    length = torch.linalg.vector_norm(rows, dim=1)
    known = length > 1e-6 * length.max().clamp_min(1e-300)
    mu = torch.where(known[:, None], normalize(rows, dim=1), 0.0).float()
    return Directions(mu, known, facts | {"known": int(known.sum())})
