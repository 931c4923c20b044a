"""Rows of tokens as a model's layers read them: each position once, with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.model.cache import Cache
from ebmvk.model.language import LanguageModel

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Wanted:
    """What a reader of rows needs beside log p. query: `Read.query`. states: `Read.h`."""

    query: bool = False
    states: bool = False


@dataclass(frozen=True)
class Read:
    """What the layers say about the newest positions of B rows.

    log_p: (B, V) float32 or float64, log p(v|c) of the next token. query: (B, d), of the newest
    position. h: (B, n, d), states of the last n positions; a row that got fewer than n new ones has
    them at its end. None: not wanted.
    """

    log_p: Tensor
    query: Tensor | None
    h: Tensor | None


class TokenLayers(Protocol):
    """Runs a model's layers over rows of tokens, one call at a time. Dropout is off.

    Rows have the numbers 0 to B - 1. Only one set of rows is read at a time.

    starts: the number of calls of `start`. It shows a caller if another caller has started since.
    """

    starts: int

    def start(self, rows: Rows, wanted: Wanted) -> Read:
        """Forget everything, and read these rows, none of which is empty."""
        ...

    def follow(self, tokens: Sequence[int]) -> Read:
        """Read the next token of each row."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only; they get the numbers from 0 on."""
        ...

    def again(self, rows: Sequence[int], tokens: Rows) -> None:
        """Forget what these rows had, and read other tokens there, equally many in each row."""
        ...


class TorchTokens:
    """Reads rows with torch, in float32; see `TokenLayers`.

    mu: the result of `model.embeddings()`.
    """

    def __init__(self, model: LanguageModel, mu: Tensor) -> None:
        self.model, self.mu = model, mu
        self._outputs = model.outputs(mu)
        self._cache = Cache(self._tensor([]))
        self.starts = 0

    def start(self, rows: Rows, wanted: Wanted) -> Read:
        """See `TokenLayers.start`. Everything is computed in any case, so `wanted` has no
        effect."""
        del wanted
        self.starts += 1
        longest = max(map(len, rows), default=0)
        pads = [longest - len(row) for row in rows]
        self._cache = Cache(self._tensor(pads))
        return self._extended([[0] * pad + list(row) for pad, row in zip(pads, rows, strict=True)])

    def follow(self, tokens: Sequence[int]) -> Read:
        """See `TokenLayers.follow`."""
        return self._extended([[token] for token in tokens])

    def keep(self, rows: Sequence[int]) -> None:
        """See `TokenLayers.keep`."""
        self._cache.keep(self._tensor(rows))

    def again(self, rows: Sequence[int], tokens: Rows) -> None:
        """See `TokenLayers.again`."""
        new = self._tensor(tokens)
        begin = self._cache.length - new.shape[1]  # so that these rows end where the others do
        again = Cache(self._tensor([begin] * len(rows)), length=begin)
        self.model.extend(new, again, self.mu)
        self._cache.replace(self._tensor(rows), again)

    def _extended(self, tokens: Rows) -> Read:
        seen = self.model.extend(self._tensor(tokens), self._cache, self.mu)
        query = seen.query[:, -1]
        log_p = torch.log_softmax(F.linear(query, self._outputs, self.model.bias).double(), -1)
        return Read(log_p, query, seen.h)

    def _tensor(self, values: Sequence[int] | Rows) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.mu.device)
