"""Texts as a model reads them: with a cache, so that each position is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.decoding.texts import Text
from ebmvk.model.cache import Cache
from ebmvk.model.language import LanguageModel


class Reading:
    """Texts as a model reads them, each position once.

    A text that fills the model's reach is read again, from the part that the model may still see.
    Which part that is depends on this text alone, not on the texts that are read with it.
    """

    def __init__(self, model: LanguageModel, mu: Tensor, texts: list[Text]) -> None:
        self.model, self.mu, self.texts = model, mu, list(texts)
        self.outputs = model.outputs(mu)
        self._restart()

    def _restart(self) -> None:
        """Start with an empty cache: all that the model may see is yet to be read."""
        rows = [self._visible(text.ids) for text in self.texts]
        longest = max(map(len, rows), default=0)
        pads = [longest - len(row) for row in rows]
        self.cache = Cache(self._tensor(pads))
        self.new = self._tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])

    def _visible(self, ids: list[int]) -> list[int]:
        """The part of a text to read: all, or an end that leaves a quarter of the reach free."""
        reach = self.model.reach
        return ids if reach is None or len(ids) < reach else ids[-max(1, reach - reach // 4) :]

    def _tensor(self, values: Sequence[int] | Sequence[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.mu.device)

    def law(self) -> tuple[Tensor, Tensor]:
        """The query (B, d) and log p(v|c) (B, V) of each text's next token."""
        before = self.cache.lengths()
        seen = self.model.extend(self.new, self.cache, self.mu)
        query, after = seen.query[:, -1], self.cache.lengths()
        log_p = torch.log_softmax(F.linear(query, self.outputs, self.model.bias).double(), -1)
        for i, text in enumerate(self.texts):
            if text.reader:
                text.remember(seen.h[i, before[i] - after[i] :])
                log_p[i] = text.reader.log_prob(seen.h[i, -1:], log_p[i : i + 1])[0]
        return query, log_p.to(query.dtype)

    def go_on(self) -> None:
        """Move on to the texts' newest tokens, and drop the texts that have ended."""
        rows = [i for i, text in enumerate(self.texts) if not text.ended]
        if len(rows) < len(self.texts):
            self.texts = [self.texts[i] for i in rows]
            self.cache.keep(self._tensor(rows))
        full = [i for i, length in enumerate(self.cache.lengths()) if length == self.model.reach]
        if full and len(full) == len(self.texts):
            self._restart()
            return
        if full:
            self._read_again(full)
        self.new = self._tensor([[text.ids[-1]] for text in self.texts])

    def _read_again(self, rows: list[int]) -> None:
        """Read these full texts again, up to but without their newest tokens."""
        tokens = self._tensor([self._visible(self.texts[i].ids)[:-1] for i in rows])
        begin = self.cache.length - tokens.shape[1]  # so that they end where the others do
        again = Cache(self._tensor([begin] * len(rows)), length=begin)
        self.model.extend(tokens, again, self.mu)
        self.cache.replace(self._tensor(rows), again)
