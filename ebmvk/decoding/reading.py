"""Feeds texts to a model, with a cache, so that each position is computed once."""

from __future__ import annotations

from torch import Tensor

from ebmvk.decoding.texts import Text
from ebmvk.model.token_layers import Read, TokenLayers, Wanted


class Reading:
    """Texts that a model reads, each position once.

    When a text fills the model's reach (the tokens that it sees at once), its newest part is read
    again from an empty cache. The length of this part depends on the text alone, not on the texts
    that are read with it.

    Args:
        layers: the model's layers. If another reading has used them meanwhile, the texts are read
            again.
        reach: the number of tokens that the model sees; None for no limit.
        wanted: what `law` returns beside log p; states for texts with a memory.
    """

    def __init__(self, layers: TokenLayers, reach: int | None, texts: list[Text], wanted: Wanted) -> None:
        self.layers, self.reach, self.texts, self.wanted = layers, reach, list(texts), wanted
        self._starts = -1
        self._restart()

    def _restart(self) -> None:
        """Start with an empty cache, so that everything visible to the model is read again."""
        self._anew, self._new = True, [self._visible(text.ids) for text in self.texts]
        self._lengths = [0] * len(self.texts)

    def _visible(self, ids: list[int]) -> list[int]:
        """The part of a text to read: all, or an end that leaves a quarter of the reach free."""
        reach = self.reach
        return ids if reach is None or len(ids) < reach else ids[-max(1, reach - reach // 4) :]

    def law(self) -> tuple[Tensor | None, Tensor]:
        """For the next token of each text: the query (B, d), or None, and log p(v|c) (B, V)."""
        seen = self._read()
        log_p = seen.log_p.double() if any(text.reader for text in self.texts) else seen.log_p
        for i, text in enumerate(self.texts):
            if text.reader:
                assert seen.h is not None
                text.remember(seen.h[i, -len(self._new[i]) :])
                log_p[i] = text.reader.log_prob(seen.h[i, -1:], log_p[i : i + 1])[0]
        return seen.query, log_p.float()

    def _read(self) -> Read:
        """Read the new tokens of all texts."""
        if not self._anew and self._starts != self.layers.starts:  # the layers have read other texts since
            self._take_back()
        if self._anew:
            found = self.layers.start(self._new, self.wanted)
            self._starts, self._anew = self.layers.starts, False
        else:
            found = self.layers.follow([row[-1] for row in self._new])
        self._lengths = [length + len(row) for length, row in zip(self._lengths, self._new, strict=True)]
        return found

    def _take_back(self) -> None:
        """Read again the part of each text that was read before."""
        self._anew = True
        self._new = [text.ids[-1 - length :] for text, length in zip(self.texts, self._lengths, strict=True)]
        self._lengths = [0] * len(self.texts)

    def go_on(self) -> None:
        """Move on to the texts' newest tokens, and drop the texts that have ended."""
        rows = [i for i, text in enumerate(self.texts) if not text.ended]
        if len(rows) < len(self.texts):
            self.texts, self._lengths = [self.texts[i] for i in rows], [self._lengths[i] for i in rows]
            if self._starts == self.layers.starts:
                self.layers.keep(rows)
        full = [i for i, length in enumerate(self._lengths) if length == self.reach]
        if full and len(full) == len(self.texts):
            self._restart()
            return
        if full:
            self._read_again(full)
        self._new = [[text.ids[-1]] for text in self.texts]

    def _read_again(self, rows: list[int]) -> None:
        """Read these full texts again, except their newest tokens."""
        tokens = [self._visible(self.texts[i].ids)[:-1] for i in rows]
        for i, own in zip(rows, tokens, strict=True):
            self._lengths[i] = len(own)
        if self._starts == self.layers.starts:
            self.layers.again(rows, tokens)
