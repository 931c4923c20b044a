"""Samples that a training run writes now and then, with diagnostics of their chains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ebmvk.config.schema import Config
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.engine import Backend
from ebmvk.errors import StorageError
from ebmvk.model.language import LanguageModel

SAMPLES = 3


class Probe:
    """When called with a step, appends samples to `path` and returns diagnostics of their chains.

    Raises:
        StorageError: the file could not be written.
    """

    def __init__(
        self, config: Config, model: LanguageModel, tokenizer: Tokenizer, backend: Backend, path: Path
    ) -> None:
        self.config, self.model, self.tokenizer, self.backend, self.path = config, model, tokenizer, backend, path

    def __call__(self, step: int) -> dict[str, Any]:
        config = self.config
        if config.logging.sample_tokens == 0:
            return {}
        generator = Generator(self.model, self.tokenizer, self.backend, config.langevin)
        sampler = self.model.default_sampler
        how = Decoding(config.logging.sample_tokens, sampler=sampler, seed=config.run.seed)
        found = generator.generate([""] * SAMPLES, how)
        lines = []
        for number, sample in enumerate(found, start=1):
            lines.append(f"--- step {step}, sample {number}, {how.sampler}, temperature 1, seed {how.seed}")
            lines.append(sample.text.strip("\n") + "\n\n")
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines))
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written: {error.strerror or error}", hint="free some space, then --resume"
            ) from error
        health = generator.health.record()
        return {"langevin": health | {"temperature": config.langevin.langevin_T}} if health else {}
