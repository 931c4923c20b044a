"""Measures a run on a text: its exact likelihood with and without memory, with intervals, and
beside another run.

`ebmvk evaluate` opens what its flags name, calls `measure`, and prints the record that it returns.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ebmvk.data.corpus import Corpus
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.engine import Backend
from ebmvk.engine.device import Device
from ebmvk.evaluation.intervals import paired
from ebmvk.evaluation.likelihood import Likelihood, text_size, token_nats
from ebmvk.evaluation.score_matching import frequencies, score_matching, windows
from ebmvk.memory.files import load
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.memory.law import Law, Mode, Reader
from ebmvk.model.reading import Layers
from ebmvk.objective import noise
from ebmvk.runs.folder import OpenRun, check_same_text
from ebmvk.runs.known_faults import known_faults
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.runs.progress import Progress
from ebmvk.runs.text import Comparison, compared_by_text, own_text

SCORED_TOKENS = 4096  # tokens of the text that `score_levels` looks at


@dataclass(frozen=True)
class Subject:
    """A run, and the memory that it is measured with.

    reader: None without memory. layers: what runs the model's layers; None for torch.
    """

    run: OpenRun
    memory: Mode
    reader: Reader | None
    layers: Layers | None = None

    @classmethod
    def open(
        cls,
        run: OpenRun,
        memory: Mode,
        backend: Backend,
        capacity: int | None = None,
        *,
        scramble: bool = False,
        layers: Layers | None = None,
    ) -> Subject:
        """A run with the memory of its checkpoint.

        Args:
            capacity: most splats of the episodic tier; None keeps the memory's own.
            scramble: swap tokens between contexts, as a control.
            layers: see `Subject`.

        Raises:
            CheckpointError: the checkpoint has no such memory, or a damaged one.
        """
        if memory == "none":
            return cls(run, memory, None, layers)
        found = load(run.checkpoint.path, run.model, memory).using(capacity, scramble=scramble)
        return cls(run, memory, Reader(found, memory, backend), layers)

    def nats(self, stream: TokenStream, device: Device, *, context: int, stride: int) -> dict[Law, Tensor]:
        """Nats of a text by law; see `token_nats`."""
        how: dict[str, Any] = {"context": context, "stride": stride, "device": device.torch}
        model = self.run.model.to(device.torch)
        return token_nats(model, stream, **how, reader=self.reader, layers=self.layers)

    def splats(self) -> dict[str, Any]:
        """The number of splats by tier; empty without memory."""
        return {str(tier): n for tier, n in self.reader.splats().items()} if self.reader else {}

    def in_sample(self, whole: TokenStream, tokens: int) -> dict[str, Any]:
        """What the memory was fitted on, and how many of the text's first tokens belong to that.

        Empty without memory. The values are None if an older memory's file doesn't record them.
        """
        if not self.reader:
            return {}
        fitted_on = FittedOn.read(self.run.checkpoint.path / MEMORY_FILE)
        if fitted_on is None:
            return {"fitted_on": None, "in_sample_tokens": None}
        return {"fitted_on": dataclasses.asdict(fitted_on), "in_sample_tokens": fitted_on.among(whole, tokens)}


@dataclass(frozen=True)
class Text:
    """A split of a corpus, and how it compares with the text that the run was trained on."""

    corpus: Corpus
    split: str
    own: Comparison

    def tokens(self, run: OpenRun) -> TokenStream:
        """The split in the tokens of a run."""
        return encode_split(self.corpus, self.split, run.tokenizer, apart=run.config.data.apart)


def measure(
    subject: Subject,
    text: Text,
    device: Device,
    *,
    context: int,
    stride: int,
    limit: int | None = None,
    against: Subject | None = None,
    scrambled: bool = False,
) -> dict[str, Any]:
    """All figures of a run on a text, as JSON values.

    Args:
        context, stride: number of tokens in a window, and from one window to the next.
        limit: only score this many tokens; None scores all.
        against: another run with the same tokenizer, compared on the same tokens.
        scrambled: True if the subject's memory is scrambled. It is only recorded.

    Raises:
        ArgumentError: the stride is out of range. NonFinite: a token has no finite log-probability.
    """
    run, reader = subject.run, subject.reader
    whole = text.tokens(run)
    stream = whole if limit is None else whole.take(limit + 1)
    model = run.model.to(device.torch)
    size = text_size(stream, run.tokenizer)
    began = time.perf_counter()
    nats = subject.nats(stream, device, context=context, stride=stride)
    spent = time.perf_counter() - began
    found: dict[str, dict[str, Any]] = {
        law: Likelihood(float(part.sum()), size.tokens, size.words, size.bytes, context, stride, spent).record()
        for law, part in nats.items()
    }
    for law in nats.keys() - {"none"}:
        found[law]["gain"] = paired(nats[law], nats["none"], stream.starts).record()
    if "calibrated" in nats:
        for law in nats.keys() - {"none", "calibrated"}:
            found[law]["gain_over_calibrated"] = paired(nats[law], nats["calibrated"], stream.starts).record()
    record: dict[str, Any] = {
        "checkpoint": str(run.checkpoint.path),
        "step": run.checkpoint.step,
        "dataset": text.corpus.name,
        "split": text.split,
        "sha256": text.corpus.digest(text.split),
        **text.own.record(),
        "whole_split": size.tokens == len(whole) - 1,
        "memory": subject.memory,
        "scrambled": scrambled,
        **(_calibration(reader) if reader else {}),
        "splats": subject.splats(),
        **subject.in_sample(whole, size.tokens),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_tokens": Progress.of(run.checkpoint).tokens,
        "seed": run.config.run.seed,
        "known_faults": known_faults(run),
        "unknown_characters": size.unknown,
        **found[subject.memory],
        "tiers": found if reader else {},
    }
    if against is None:
        return record
    other_nats = against.nats(stream, device, context=context, stride=stride)
    base = other_nats[against.memory]
    record["against"] = {
        "checkpoint": str(against.run.checkpoint.path),
        "memory": against.memory,
        "splats": against.splats(),
        **against.in_sample(whole, size.tokens),
        "nats_per_token": float(base.mean()),
        "laws": {law: float(part.mean()) for law, part in other_nats.items()},
        "modes": {law: paired(part, base, stream.starts).record() for law, part in nats.items()},
    }
    return record


def _calibration(reader: Reader) -> dict[str, Any]:
    """The power of the calibration, and True if the scrambled control has its own gate.

    Memory files from earlier versions have neither (None, False): their scrambled memory is read
    with the gate of the true one.
    """
    own = reader.memory.calibration
    return {
        "calibration": None if own is None else {"power": own.power},
        "control_fitted": reader.memory.control is not None,
    }


def score_levels(
    run: OpenRun, text: Text, device: Device, limit: int | None = None, data_dir: Path | None = None
) -> list[dict[str, Any]]:
    """L_kappa by noise level on the first tokens of a text, without memory, as rows of JSON values.

    The unigram frequencies are those of the run's training text. If `text` is another corpus, the
    run's own is read as well. data_dir: the folder of data sets in which to find the run's own.

    Raises:
        DataError: the run's own text doesn't exist. CheckpointError: its files have changed.
    """
    config, corpus = run.config, text.corpus
    if "train" not in corpus.splits or not compared_by_text(run, corpus, "train").same:
        corpus = own_text(config, data_dir=data_dir)
    train = encode_split(corpus, "train", run.tokenizer)
    check_same_text(run.checkpoint, train, config)
    whole = text.tokens(run)
    stream = whole if limit is None else whole.take(limit + 1)
    found = score_matching(
        *(run.model, windows(stream, config.data.seq_length, SCORED_TOKENS).to(device.torch), device.backend),
        frequencies(train, run.tokenizer.vocab_size).to(device.torch),
        starts=stream.starts,
        k=config.langevin.knn_k,
        seed=config.run.seed,
        extra=noise.given(config.training, config.model.latent_dim),
    )
    return [level.record() for level in found]
