"""A generated text, while it is being written and when it is finished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ebmvk.data.tokenizer import Tokenizer
from ebmvk.memory.law import Reader

UNFINISHED = "\ufffd"  # what the tokenizer decodes the first bytes of a character to


@dataclass(frozen=True)
class Generated:
    """One generated text.

    prompt: ids, without the end-of-text before it. tokens: ids, without the end-of-text after them.
    text: what the tokens spell, up to a stop string. reason: why the text ended: the model wrote
    end-of-text ("end"), a stop string came ("stop"), or it had `max_tokens` tokens ("length").
    """

    prompt: list[int]
    tokens: list[int]
    text: str
    reason: Literal["end", "stop", "length"]


class Text:
    """One text while it is written.

    number: its place among all texts of a call. ids: its tokens, end-of-text first. reader: reads
    the memory for this text; None without a memory.
    """

    def __init__(
        self, number: int, ids: list[int], tokenizer: Tokenizer, stop: tuple[str, ...], reader: Reader | None
    ) -> None:
        self.number, self.ids, self.tokenizer, self.stop, self.reader = number, ids, tokenizer, stop, reader
        self.start = len(ids)
        self._state: Tensor | None = None  # of the newest token, whose successor is not known yet
        self.reason: Literal["end", "stop", "length"] = "length"

    @property
    def ended(self) -> bool:
        return self.reason != "length"

    def add(self, token: int) -> None:
        """Append a token, and note whether it ends the text."""
        self.ids.append(token)
        if token == self.tokenizer.eos_id:
            self.reason = "end"
        elif self.stop and self._cut() is not None:
            self.reason = "stop"

    def remember(self, h: Tensor) -> None:
        """Add pairs to the memory, each of a state and the token after it. The first call adds all
        pairs of the prompt, and each later call adds one pair.

        h: (n, d), states of the last n tokens.
        """
        assert self.reader is not None
        if self._state is None:
            self.reader.remember(h[:-1], torch.tensor(self.ids[len(self.ids) - len(h) + 1 :], dtype=torch.int64))
        else:
            self.reader.remember(self._state, torch.tensor(self.ids[-1:]))
        self._state = h[-1:]

    def _written(self) -> str:
        tokens = self.ids[self.start :]
        return self.tokenizer.decode(tokens[:-1] if self.reason == "end" else tokens)

    def _cut(self) -> int | None:
        """Where the first stop string begins; None if the text has no stop string."""
        written = self._written()
        return min((at for at in map(written.find, self.stop) if at >= 0), default=None)

    def settled(self) -> str:
        """The final part of the text: no incomplete character, no start of a stop string."""
        written = self._written()[: self._cut()].rstrip(UNFINISHED)
        if self.ended:
            return written
        held = [n for stop in self.stop for n in range(1, len(stop)) if written.endswith(stop[:n])]
        return written[: len(written) - max(held, default=0)]

    def generated(self) -> Generated:
        """The text as it is now."""
        tokens = self.ids[self.start :]
        if self.reason == "end":
            tokens = tokens[:-1]
        return Generated(self.ids[1 : self.start], tokens, self._written()[: self._cut()], self.reason)
