"""Text, token by token: context → latent law → a state x → Bayes decoder (model sections 6 and 7).

`--sampler exact` draws a token from p(v|c). Every other sampler decodes a token from states on the
sphere. If the strategy changes nothing, all samplers aim at the same law, whose perplexity is
reported; `ebmvk.sampling.registry` says how close each sampler comes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebmvk.config.schema import LangevinConfig
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.decoding.reading import Reading
from ebmvk.decoding.strategies import Strategy
from ebmvk.decoding.texts import Generated, Text
from ebmvk.engine import Backend
from ebmvk.errors import ConfigError
from ebmvk.memory.law import Reader
from ebmvk.model.language import LanguageModel
from ebmvk.model.token_layers import TokenLayers, TorchTokens, Wanted
from ebmvk.sampling import registry
from ebmvk.sampling.interface import TokenPoints
from ebmvk.sampling.latent import draw
from ebmvk.sampling.registry import SamplerName
from ebmvk.sampling.tokens import SamplingHealth, TokenSampler


@dataclass(frozen=True)
class Decoding:
    """How to generate.

    strategy: the changes to p(v|c); all samplers use the changed law. The strategy's temperature
        isn't the temperature of the chains, `LangevinConfig.langevin_T`.
    sampler: a name of `ebmvk.sampling.registry.SAMPLERS`.
    seed: fixes every draw, together with the text's number and the position.
    stop: strings. Each of them ends a text, which is cut before the string.
    """

    max_tokens: int
    strategy: Strategy = field(default_factory=Strategy)
    sampler: SamplerName = registry.USUAL
    seed: int = 42
    stop: tuple[str, ...] = ()


class Generator:
    """Generates text with one model on one backend. While it writes, the model is in evaluation
    mode.

    Args:
        memory: the model's memory. Each text, beginning with its prompt, is also added to an
            episodic memory of its own.
        layers: what runs the model's layers; by default torch, with the model's current weights.

    Attributes:
        health: diagnostics of the samplers, over all calls.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        backend: Backend,
        langevin: LangevinConfig,
        memory: Reader | None = None,
        layers: TokenLayers | None = None,
    ) -> None:
        self.model, self.tokenizer, self.backend, self.langevin = model, tokenizer, backend, langevin
        self.memory, self.layers = memory, layers
        self.health = SamplingHealth()
        self._prepared: dict[str, Any] = {}

    def generate(self, prompts: Sequence[str], how: Decoding, batch_size: int = 16) -> list[Generated]:
        """Continue each prompt until end-of-text, a stop string, or `max_tokens`.

        Args:
            prompts: each starts a document; for an empty prompt the model writes a whole document.
            batch_size: number of texts continued at once; it changes texts only through rounding.

        Raises:
            ConfigError: the sampler needs points on the sphere and the model has none, or the
                sampler doesn't work at the temperature of the run's chains.
            ArgumentError: no sampler has this name.
        """
        texts = self._texts(prompts, how)
        for first in range(0, len(texts), batch_size):
            for _ in self._tokens(texts[first : first + batch_size], how):
                pass
        return [text.generated() for text in texts]

    def stream(self, prompt: str, how: Decoding, number: int = 0) -> Iterator[str]:
        """Yields the text that `generate` would make of prompt `number`, in pieces that are final.

        Raises:
            ConfigError, ArgumentError: as `generate`.
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

    def _texts(self, prompts: Sequence[str], how: Decoding, first: int = 0) -> list[Text]:
        if registry.named(how.sampler).module and not self.model.on_sphere:
            raise ConfigError(
                f"--sampler {how.sampler} doesn't work with a run of --model {self.model.config.model}",
                why="the tokens of this model aren't points on the sphere, where chains could move",
                hint=f"add --sampler {registry.WITHOUT_STATES}",
            )
        return [
            Text(
                *(i, [int(token) for token in self.tokenizer.encode_prompt(prompt)], self.tokenizer, how.stop),
                reader=self.memory.again() if self.memory else None,
            )
            for i, prompt in enumerate(prompts, start=first)
        ]

    def _tokens(self, texts: list[Text], how: Decoding) -> Iterator[None]:
        """Gives every text that hasn't ended one more token at a time."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                mu = self.model.embeddings()
                sampler = self._sampler(how.sampler, mu)
                wanted = Wanted(query=sampler is not None, states=self.memory is not None)
                reading = Reading(self.layers or TorchTokens(self.model, mu), self.model.reach, texts, wanted)
            for position in range(how.max_tokens):
                with torch.no_grad():  # not around the yield: whoever reads the stream keeps their own mode
                    if position:
                        reading.go_on()
                    if not reading.texts:
                        break
                    query, log_p = reading.law()
                    log_p = how.strategy.law(log_p, [text.ids for text in reading.texts], self.tokenizer.eos_id)
                    drawn = self._draw(reading.texts, query, log_p, sampler, how, position)
                    for text, token in zip(reading.texts, drawn, strict=True):
                        text.add(token)
                yield
        finally:
            self.model.train(was_training)

    def _draw(
        self,
        texts: list[Text],
        query: Tensor | None,
        log_p: Tensor,
        sampler: TokenSampler | None,
        how: Decoding,
        position: int,
    ) -> list[int]:
        """Draw one token for each text.

        A draw depends on the text's number and the position, not on its neighbours.
        """
        tokens = []
        # Each text's chain has the text's number, so it doesn't matter if other texts have ended.
        for first, block in _blocks([text.number for text in texts]):
            part = log_p[block]
            if sampler is None:
                u = [_uniform(how.seed, position, first + i) for i in range(len(part))]
                drawn = draw(part.double().exp(), torch.tensor(u, dtype=torch.float64, device=part.device))
            else:
                assert query is not None
                drawn = sampler.tokens(query[block], part, seed=_seed(how.seed, position), first_chain=first)
            tokens += [int(token) for token in drawn]
        return tokens

    def _sampler(self, name: SamplerName, mu: Tensor) -> TokenSampler | None:
        """The sampler of this name; None if tokens are drawn from p(v|c) itself."""
        if registry.named(name).module is None:
            return None
        own = (self.model.bias, self.model.concentrations())
        # If training goes on, `_prepared` may belong to older embeddings; samplers allow that.
        space = TokenPoints(self.backend, mu, self.backend.points(mu), *own, self._prepared)
        return TokenSampler(name, space, self.langevin, self.health)


def _blocks(numbers: list[int]) -> list[tuple[int, slice]]:
    """Groups of consecutive numbers, each as (first number, places of the group)."""
    starts = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1] + 1]
    return [(numbers[i], slice(i, j)) for i, j in zip(starts, [*starts[1:], len(numbers)], strict=True)]


def _seed(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"generate/{seed}/{position}".encode(), digest_size=7).digest(), "little")


def _uniform(seed: int, position: int, row: int) -> float:
    """A uniform number in [0, 1), from 53 bits."""
    return (_seed(_seed(seed, position), row) >> 3) / 2.0**53
