"""A checkpoint to diagnose, with the text it is diagnosed on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.engine.device import Device
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.model import inspection
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import states
from ebmvk.runs.folder import OpenRun, check_same_text
from ebmvk.runs.manifest import SOC
from ebmvk.runs.metrics import History, read_history
from ebmvk.runs.text import check_own, own_text
from ebmvk.splats.soc import store_of
from ebmvk.splats.store import SplatStore

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much a diagnosis looks at.

    Each field is a count. tokens: those whose likelihood is measured, in validation and in the
    training text. scored: tokens for denoising. remembered: tokens read with a memory. contexts:
    contexts for the samplers; chains: chains in each context. samples: texts to write;
    sample_tokens: tokens of each text. looked: tokens for attention maps. routed: tokens for
    experts. splats: splats whose nearest neighbours are looked up. drawn: points on a map.
    """

    tokens: int = 20_000
    scored: int = 4096
    remembered: int = 8192
    contexts: int = 6
    chains: int = 1000
    samples: int = 4
    sample_tokens: int = 80
    looked: int = 48
    routed: int = 16_384
    splats: int = 4096
    drawn: int = 1000


QUICK = Sizes(
    tokens=4000, scored=512, remembered=2048, contexts=3, chains=300, samples=2, sample_tokens=32, routed=4096,
    splats=1024, drawn=300,
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A corpus in tokens. counts: (V,) int64, how often each token occurs in the training split."""

    name: str
    validation: TokenStream
    train: TokenStream
    counts: Tensor

    @classmethod
    def of(cls, run: OpenRun, dataset: str | None, data_dir: Path | None) -> Text:
        """The text that a run was trained on. dataset, data_dir: where the text is now, if it has
        moved.

        Raises:
            DataError: the text can't be found. CheckpointError: its files have changed (for
                `builtin`: the files of Python).
        """
        data = run.config.data
        corpus = own_text(run.config, dataset, data_dir)
        check_own(run, corpus, "validation")
        train, validation = (
            encode_split(corpus, split, run.tokenizer, apart=data.apart) for split in ("train", "validation")
        )
        check_same_text(run.checkpoint, train, run.config)
        counts = torch.bincount(torch.from_numpy(train.tokens).long(), minlength=run.tokenizer.vocab_size)
        return cls(corpus.name, validation, train, counts)


@dataclass(frozen=True)
class Subject:
    """What every section measures. Anything that several sections use is computed once."""

    run: OpenRun
    device: Device
    text: Text
    sizes: Sizes

    @property
    def name(self) -> str:
        return f"{self.run.folder.name}, step {self.run.checkpoint.step:,}"

    @cached_property
    def model(self) -> LanguageModel:
        return self.run.model.to(self.device.torch)

    @property
    def kind(self) -> str:
        """The model's name, as --model gives it."""
        return self.run.config.model.model

    @property
    def seed(self) -> int:
        return self.run.config.run.seed

    @cached_property
    def history(self) -> History:
        """The metrics of the run up to this checkpoint; empty if the run folder has none."""
        return read_history(self.run.folder).until(self.run.checkpoint.step)

    @property
    def window(self) -> tuple[int, int]:
        """Context and stride, the same as in `ebmvk evaluate`."""
        context = self.run.config.data.seq_length
        return context, max(1, context // 2)

    @cached_property
    def validation(self) -> TokenStream:
        """The beginning of validation, as much of it as `sizes` asks for."""
        return self.text.validation.take(self.sizes.tokens + 1)

    @cached_property
    def nats(self) -> Tensor:
        """(n,) float64: -log p of each token of `validation` except the first, without memory."""
        return self.nats_of(self.validation)

    def nats_of(self, stream: TokenStream) -> Tensor:
        """(n,) float64: the same as `nats`, for another stream."""
        context, stride = self.window
        return token_nats(self.model, stream, context=context, stride=stride, device=self.device.torch)["none"]

    @cached_property
    def states(self) -> Tensor:
        """(n, d) float32, on the CPU: the contexts h of `validation`."""
        context, stride = self.window
        how = (self.model, self.validation, ("h",))
        return states(*how, context=context, stride=stride, device=self.device.torch)[0]

    @cached_property
    def looks(self) -> Row:
        """Attention of every head on the start of validation, and each expert's tokens."""
        tokens = self.text.validation.tokens
        experts = inspection.specialisation_in(self.model, tokens[: self.sizes.routed])
        return inspection.record(self.model, self.run.tokenizer, tokens[: self.sizes.looked], experts)

    @cached_property
    def store(self) -> SplatStore | None:
        """The splats that training consolidated up to this checkpoint."""
        found = self.run.checkpoint
        return store_of(found.soc, str(found.path / SOC)) if found.soc else None
