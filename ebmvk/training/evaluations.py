"""Measurements of a run while it trains, and at its end."""

from __future__ import annotations

import dataclasses
from typing import Any

from ebmvk.config.schema import Config
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.engine import Backend
from ebmvk.engine.device import Device
from ebmvk.evaluation.likelihood import Likelihood, likelihood, text_size, trigram
from ebmvk.evaluation.score_matching import ScoreMatching, frequencies, score_matching, windows
from ebmvk.model import inspection
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers
from ebmvk.objective import noise
from ebmvk.training.streams import Streams

# Numbers of validation tokens.
LOOKED_AT = 32  # whose attention the report shows
EXPERT_TOKENS = 4096  # from which the report tells what experts specialise in
SCORED_TOKENS = 512  # for score matching and gates


class Evaluations:
    """Measures a run's model on its validation text.

    unigram: (V,) token frequencies of the training text.
    """

    def __init__(
        self, config: Config, model: LanguageModel, tokenizer: Tokenizer, streams: Streams, device: Device
    ) -> None:
        self._config, self._model, self._tokenizer, self._streams, self._device = (
            config, model, tokenizer, streams, device
        )  # fmt: skip
        self.unigram = frequencies(streams.train, tokenizer.vocab_size)

    def part(self, layers: Layers) -> Likelihood:
        """The exact likelihood of the first `--eval-tokens` tokens, which `layers` read."""
        return self._likelihood(self._part, layers)

    def details(self) -> dict[str, Any]:
        """Score matching and gates on the first tokens of validation, as JSON values. torch runs
        the layers for them."""
        scored = self._score_matching(self._part) if self._model.on_sphere else []
        return {"score_matching": [level.record() for level in scored], "gates": self._gates(self._part)}

    @property
    def _part(self) -> TokenStream:
        return self._streams.validation.take(self._config.logging.eval_tokens + 1)

    def whole(self, layers: Layers) -> tuple[Likelihood, Likelihood]:
        """The exact likelihood of all of validation, which `layers` read, and that of a trigram on
        the same tokens."""
        validation = self._streams.validation
        size = text_size(validation, self._tokenizer)
        base = trigram(self._streams.train, validation, size, self._tokenizer.vocab_size)
        return self._likelihood(validation, layers), base

    def looks(self) -> dict[str, Any]:
        """Where attention heads look and which tokens experts take, on the first tokens of
        validation, as JSON values."""
        tokens = self._streams.validation.tokens
        experts = inspection.specialisation_in(self._model, tokens[:EXPERT_TOKENS])
        return inspection.record(self._model, self._tokenizer, tokens[:LOOKED_AT], experts)

    def _score_matching(self, stream: TokenStream) -> list[ScoreMatching]:
        """L_kappa for each noise level on the first tokens of validation, without dropout."""
        self._model.eval()
        found = score_matching(
            self._model,
            windows(stream, self._config.data.seq_length, SCORED_TOKENS).to(self._device.torch),
            self._device.backend,
            self.unigram.to(self._device.torch),
            starts=stream.starts,
            k=self._config.langevin.knn_k,
            seed=self._config.run.seed,
            extra=noise.given(self._config.training, self._config.model.latent_dim),
        )
        self._model.train()
        return found

    def _gates(self, stream: TokenStream) -> dict[str, list[float]]:
        """Means of the model's gates on the first tokens of validation, without dropout."""
        looked = windows(stream, self._config.data.seq_length, SCORED_TOKENS)[:, :-1]
        return inspection.gates(self._model, looked.to(self._device.torch))

    def _likelihood(self, stream: TokenStream, layers: Layers) -> Likelihood:
        context, device = self._config.data.seq_length, self._device.torch
        size = text_size(stream, self._tokenizer)
        return likelihood(self._model, stream, size, context=context, stride=context, device=device, layers=layers)


def counts_record(backend: Backend) -> dict[str, dict[str, float]]:
    """The engine's operation counts so far, as JSON values."""
    return {name: dataclasses.asdict(count) for name, count in backend.counts().items()}
