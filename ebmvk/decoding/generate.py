"""Text, token by token: context → latent law → a state x → Bayes decoder (model sections 6 and 7).

With `exact` a token is drawn from p(v|c). With every other sampler it is decoded from states alone, of annealed
Langevin chains, block Gibbs, tempering, or two Langevin chains, coarse to fine. With the strategy that changes nothing
all have the same law, the one whose perplexity is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.config.schema import LangevinConfig
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.decoding.strategies import Strategy
from ebmvk.engine import Backend
from ebmvk.errors import ConfigError
from ebmvk.memory.law import Reader
from ebmvk.model.cache import Cache
from ebmvk.model.language import LanguageModel
from ebmvk.sampling.coarse import Neighbourhoods
from ebmvk.sampling.latent import draw
from ebmvk.sampling.states import SamplingHealth, States, StateSampler

Sampler = StateSampler | Literal["exact"]
UNFINISHED = "\ufffd"  # what the tokenizer decodes the first bytes of a character to


@dataclass(frozen=True)
class Decoding:
    """How to generate.

    strategy: what becomes of p(v|c); all samplers use the law so changed. The temperature of the chains is another one:
        `LangevinConfig.langevin_T`.
    seed: with the row and the position it fixes every draw.
    stop: strings, any of which ends a text, and is no part of it.
    """

    max_tokens: int
    strategy: Strategy = field(default_factory=Strategy)
    sampler: Sampler = "langevin"
    seed: int = 42
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """prompt and tokens: ids without the leading and the last end-of-text. text: what the tokens say, up to a stop
    string. reason: why it ended: the model wrote end-of-text, a stop string came, or there were tokens enough."""

    prompt: list[int]
    tokens: list[int]
    text: str
    reason: Literal["end", "stop", "length"]


class Generator:
    """Generates with one model on one backend. The model is put into evaluation mode while it works.

    memory: of the model; each text then reads itself, from its prompt on.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        backend: Backend,
        langevin: LangevinConfig,
        memory: Reader | None = None,
    ) -> None:
        self.model, self.tokenizer, self.backend, self.langevin = model, tokenizer, backend, langevin
        self.memory = memory
        self.health = SamplingHealth()
        self._neighbourhoods: Neighbourhoods | None = None

    def generate(self, prompts: Sequence[str], how: Decoding, batch_size: int = 16) -> list[Generated]:
        """Continue each prompt until end-of-text, a stop string, or `max_tokens`.

        Args:
            prompts: each starts a document; an empty one asks for a document from its beginning.
            batch_size: how many are continued at once; it changes no text but by rounding.

        Raises:
            ConfigError: a sampler of states, of a model that is not on the sphere; one that does not fit the run's
                chains.
        """
        texts = self._texts(prompts, how)
        for first in range(0, len(texts), batch_size):
            for _ in self._tokens(texts[first : first + batch_size], how):
                pass
        return [text.generated() for text in texts]

    def stream(self, prompt: str, how: Decoding, number: int = 0) -> Iterator[str]:
        """The text that `generate` writes of prompt `number`, piece by piece, each when no later token can change it.

        Raises:
            ConfigError: as `generate`.
        """
        (text,) = texts = self._texts([prompt], how, number)
        said = 0
        for _ in self._tokens(texts, how):
            settled = text.settled()
            if len(settled) > said:
                yield settled[said:]
                said = len(settled)
        if rest := text.generated().text[said:]:
            yield rest

    def _texts(self, prompts: Sequence[str], how: Decoding, first: int = 0) -> list[_Text]:
        if how.sampler != "exact" and not self.model.on_sphere:
            raise ConfigError(
                f"--sampler {how.sampler} with a run of --model {self.model.config.model}",
                why="its tokens are no points of the sphere for a chain to move among",
                hint="add --sampler exact",
            )
        return [
            _Text(
                *(i, [int(token) for token in self.tokenizer.encode_prompt(prompt)], self.tokenizer, how.stop),
                reader=self.memory.again() if self.memory else None,
            )
            for i, prompt in enumerate(prompts, start=first)
        ]

    def _tokens(self, texts: list[_Text], how: Decoding) -> Iterator[None]:
        """Gives every text that goes on one token more at a time."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                mu = self.model.embeddings()
                states = None if how.sampler == "exact" else self._states(how.sampler, mu)
                reading = _Reading(self.model, mu, texts)
            for position in range(how.max_tokens):
                with torch.no_grad():  # not around the yield: whoever reads the stream keeps their own mode
                    if position:
                        reading.go_on()
                    if not reading.texts:
                        break
                    query, log_p = reading.law()
                    log_p = how.strategy.law(log_p, [text.ids for text in reading.texts], self.tokenizer.eos_id)
                    drawn = self._draw(reading.texts, query, log_p, states, how, position)
                    for text, token in zip(reading.texts, drawn, strict=True):
                        text.add(token)
                yield
        finally:
            self.model.train(was_training)

    def _draw(
        self, texts: list[_Text], query: Tensor, log_p: Tensor, states: States | None, how: Decoding, position: int
    ) -> list[int]:
        """A token of each text. A text's draws depend on its own number and the position, not on its neighbours."""
        tokens = []
        # Chains that still run are numbered by their text, so that a finished neighbour changes nothing.
        for first, block in _blocks([text.number for text in texts]):
            part = log_p[block]
            if states is None:
                u = [_uniform(how.seed, position, first + i) for i in range(len(part))]
                drawn = draw(part.double().exp(), torch.tensor(u, dtype=torch.float64, device=part.device))
            else:
                drawn = states.tokens(query[block], part, seed=_seed(how.seed, position), first_chain=first)
            tokens += [int(token) for token in drawn]
        return tokens

    def _states(self, sampler: StateSampler, mu: Tensor) -> States:
        if sampler == "coarse" and self._neighbourhoods is None:
            self._neighbourhoods = Neighbourhoods.of(self.backend, mu)  # exact with any split: an old one will do
        return States(
            *(sampler, self.backend, mu, self.backend.points(mu), self.model.bias, self.model.concentrations()),
            *(self.langevin, self.health),
            neighbourhoods=self._neighbourhoods if sampler == "coarse" else None,
        )


class _Text:
    """One text while it is written. ids: its tokens, end-of-text first. reader: of the memory, where there is one."""

    def __init__(
        self, number: int, ids: list[int], tokenizer: Tokenizer, stop: tuple[str, ...], reader: Reader | None
    ) -> None:
        self.number, self.ids, self.tokenizer, self.stop, self.reader = number, ids, tokenizer, stop, reader
        self.start = len(ids)
        self._state: Tensor | None = None  # of the last position, which nothing had followed yet
        self.reason: Literal["end", "stop", "length"] = "length"

    @property
    def ended(self) -> bool:
        return self.reason != "length"

    def add(self, token: int) -> None:
        self.ids.append(token)
        if token == self.tokenizer.eos_id:
            self.reason = "end"
        elif self.stop and self._cut() is not None:
            self.reason = "stop"

    def remember(self, h: Tensor) -> None:
        """Tells the memory of what was read: at first of all of it, then of the newest token and the state before it.

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
        """Where the first stop string begins."""
        written = self._written()
        return min((at for at in map(written.find, self.stop) if at >= 0), default=None)

    def settled(self) -> str:
        """What no later token can change: neither a character that is not complete nor a stop string's beginning."""
        written = self._written()[: self._cut()].rstrip(UNFINISHED)
        if self.ended:
            return written
        held = [n for stop in self.stop for n in range(1, len(stop)) if written.endswith(stop[:n])]
        return written[: len(written) - max(held, default=0)]

    def generated(self) -> Generated:
        tokens = self.ids[self.start :]
        if self.reason == "end":
            tokens = tokens[:-1]
        return Generated(self.ids[1 : self.start], tokens, self._written()[: self._cut()], self.reason)


class _Reading:
    """Texts as a model reads them, each position once; a text that fills a model's reach again, from what it may see.

    What a text is read from depends on that text alone, whichever ones it is read with.
    """

    def __init__(self, model: LanguageModel, mu: Tensor, texts: list[_Text]) -> None:
        self.model, self.mu, self.texts = model, mu, list(texts)
        self.outputs = model.outputs(mu)
        self._restart()

    def _restart(self) -> None:
        """An empty cache, and everything the model may see still to be read."""
        rows = [self._visible(text.ids) for text in self.texts]
        longest = max(map(len, rows), default=0)
        pads = [longest - len(row) for row in rows]
        self.cache = Cache(self._tensor(pads))
        self.new = self._tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])

    def _visible(self, ids: list[int]) -> list[int]:
        """What of a text is read: all of it, or so much of its end that tokens follow before it is full again."""
        reach = self.model.reach
        return ids if reach is None or len(ids) < reach else ids[-max(1, reach - reach // 4) :]

    def _tensor(self, values: Sequence[int] | Sequence[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.mu.device)

    def law(self) -> tuple[Tensor, Tensor]:
        """Query (B, d) and log p(v|c) (B, V) of each text's next token."""
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
        """To the texts' newest tokens; texts that ended are left behind."""
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
        """These full texts from what the model may still see, up to their newest tokens, which are yet to be read."""
        tokens = self._tensor([self._visible(self.texts[i].ids)[:-1] for i in rows])
        begin = self.cache.length - tokens.shape[1]  # so that they end where the others do
        again = Cache(self._tensor([begin] * len(rows)), length=begin)
        self.model.extend(tokens, again, self.mu)
        self.cache.replace(self._tensor(rows), again)


def _blocks(numbers: list[int]) -> list[tuple[int, slice]]:
    """Runs of consecutive numbers as (first number, their places)."""
    starts = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1] + 1]
    return [(numbers[i], slice(i, j)) for i, j in zip(starts, [*starts[1:], len(numbers)], strict=True)]


def _seed(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"generate/{seed}/{position}".encode(), digest_size=7).digest(), "little")


def _uniform(seed: int, position: int, row: int) -> float:
    """In [0, 1), from 53 bits."""
    return (_seed(_seed(seed, position), row) >> 3) / 2.0**53
