"""Text, token by token: context → latent law → a state x → Bayes decoder (model sections 6 and 7).

With `exact` a token is drawn from p(v|c). With every other sampler it is decoded from states alone, of annealed
Langevin chains, block Gibbs, tempering, or two Langevin chains, coarse to fine. At temperature 1 all have the same law,
the one whose perplexity is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.config import LangevinConfig
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.decoding.states import SamplingHealth, States, StateSampler
from ebmvk.engine import Backend
from ebmvk.errors import ConfigError
from ebmvk.model.coarse import Neighbourhoods
from ebmvk.model.language import LanguageModel
from ebmvk.model.latent import draw
from ebmvk.splats.memory import Reader

Sampler = StateSampler | Literal["exact"]


@dataclass(frozen=True)
class Decoding:
    """How to generate.

    temperature: of the token law, p(v|c)^(1/T) normalised; all samplers use the law so changed. The temperature of the
        chains is a different one: `LangevinConfig.langevin_T`.
    seed: with the row and the position it fixes every draw.
    context: most tokens the model is shown.
    """

    max_tokens: int
    temperature: float = 1.0
    sampler: Sampler = "langevin"
    seed: int = 42
    context: int = 128


@dataclass(frozen=True)
class Generated:
    """prompt and tokens: ids without the leading end-of-text; ended: the model wrote end-of-text itself."""

    prompt: list[int]
    tokens: list[int]
    ended: bool


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

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], how: Decoding) -> list[Generated]:
        """Continue each prompt until end-of-text or `max_tokens`.

        Args:
            prompts: each starts a document; an empty one asks for a document from its beginning.

        Raises:
            ConfigError: a sampler of states, of a model that is not on the sphere; one that does not fit the run's
                chains.
        """
        if how.sampler != "exact" and not self.model.on_sphere:
            raise ConfigError(
                f"--sampler {how.sampler} with a run of --model {self.model.config.model}",
                why="its tokens are no points of the sphere for a chain to move among",
                hint="add --sampler exact",
            )
        was_training = self.model.training
        self.model.eval()
        mu = self.model.embeddings()
        states = None if how.sampler == "exact" else self._states(how.sampler, mu)
        rows = [[int(i) for i in self.tokenizer.encode_prompt(prompt)] for prompt in prompts]
        starts = [len(row) for row in rows]
        active = list(range(len(rows)))
        readers = [self.memory.again() for _ in rows] if self.memory else []
        for position in range(how.max_tokens):
            if not active:
                break
            found = self._next([rows[i][-how.context :] for i in active], active, readers, mu, states, how, position)
            for i, token in zip(active, found, strict=True):
                rows[i].append(token)
            active = [i for i in active if rows[i][-1] != self.tokenizer.eos_id]
        self.model.train(was_training)
        return [self._generated(row, start) for row, start in zip(rows, starts, strict=True)]

    def _generated(self, row: list[int], start: int) -> Generated:
        tokens = row[start:]
        ended = bool(tokens) and tokens[-1] == self.tokenizer.eos_id
        return Generated(row[1:start], tokens[:-1] if ended else tokens, ended)

    def _next(
        self,
        contexts: list[list[int]],
        chains: list[int],
        readers: list[Reader],
        mu: Tensor,
        states: States | None,
        how: Decoding,
        position: int,
    ) -> list[int]:
        """The next token of each context, from p(v|c) itself where no points are given.

        Row i's draws depend on its own number and the position, not on the batch.
        """
        own = [readers[i] for i in chains] if readers else []
        query, log_p = self._law(contexts, own, mu, how.temperature, first=position == 0)
        tokens = []
        # Chains that still run are numbered by their row, so that a finished neighbour changes nothing.
        for first, block in _blocks(chains):
            part = log_p[block]
            if states is None:
                u = [_uniform(how.seed, position, first + i) for i in range(len(part))]
                drawn = draw(part.double().exp(), torch.tensor(u, dtype=torch.float64, device=part.device))
                tokens += [int(token) for token in drawn]
            else:
                drawn = states.tokens(query[block], part, seed=_seed(how.seed, position), first_chain=first)
                tokens += [int(token) for token in drawn]
        return tokens

    def _law(
        self, contexts: list[list[int]], readers: list[Reader], mu: Tensor, temperature: float, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        """Query (rows, d) and log p(v|c)^(1/T), normalised, (rows, V), of each context's next token.

        Padding stands after the last token, where causality hides it.
        """
        length = max(map(len, contexts))
        ids = torch.tensor([row + [self.tokenizer.eos_id] * (length - len(row)) for row in contexts], device=mu.device)
        context = self.model(ids, mu)
        last = torch.tensor([len(row) - 1 for row in contexts], device=mu.device)
        query = context.query[torch.arange(len(contexts), device=mu.device), last]
        logits = F.linear(query, self.model.outputs(mu), self.model.bias).double()
        if readers:
            log_p = torch.log_softmax(logits, -1)
            for i, (reader, end) in enumerate(zip(readers, last.tolist(), strict=True)):
                # Whoever begins reads all of the context; after that one token more has been written.
                new = slice(0 if first else end - 1, end)
                reader.read(context.h[i, new], ids[i, 1:][new])
                log_p[i] = reader.log_prob(context.h[i, end : end + 1], log_p[i : i + 1])[0]
            logits = log_p
        # Float64, and less the largest: the smallest temperature must neither be 0 nor overflow all of them.
        log_p = torch.log_softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
        return query, log_p.to(query.dtype)

    def _states(self, sampler: StateSampler, mu: Tensor) -> States:
        if sampler == "coarse" and self._neighbourhoods is None:
            self._neighbourhoods = Neighbourhoods.of(self.backend, mu)  # exact with any split: an old one will do
        return States(
            *(sampler, self.backend, mu, self.backend.points(mu), self.model.bias, self.model.concentrations()),
            *(self.langevin, self.health),
            neighbourhoods=self._neighbourhoods if sampler == "coarse" else None,
        )


def _blocks(chains: list[int]) -> list[tuple[int, slice]]:
    """Runs of consecutive numbers as (first number, their places)."""
    starts = [i for i in range(len(chains)) if i == 0 or chains[i] != chains[i - 1] + 1]
    return [(chains[i], slice(i, j)) for i, j in zip(starts, [*starts[1:], len(chains)], strict=True)]


def _seed(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"generate/{seed}/{position}".encode(), digest_size=7).digest(), "little")


def _uniform(seed: int, position: int, row: int) -> float:
    """In [0, 1), from 53 bits."""
    return (_seed(_seed(seed, position), row) >> 3) / 2.0**53
