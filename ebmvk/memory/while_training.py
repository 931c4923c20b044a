"""Connects consolidation to training: chooses the states that it sees and judges its growth.

Consolidation (`ebmvk.splats.soc`) turns the states of the model into splats while the model trains.
Nothing here changes the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.data.windows import Batches, TokenStream
from ebmvk.engine.device import Device
from ebmvk.engine.seeds import step_seed
from ebmvk.memory.fit import Fit
from ebmvk.memory.gate import fit_gate, mix
from ebmvk.memory.law import Memory
from ebmvk.memory.static import Reading
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers
from ebmvk.objective.losses import Losses
from ebmvk.ranks import Share
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.manifest import SOC
from ebmvk.sphere.geometry import projx
from ebmvk.splats.soc import NEAR, Consolidation, Judge
from ebmvk.splats.store import SplatStore

FOLD = 16  # 1 in 16 blocks of seq_length tokens of the training text is held out of the splats
MOST_STATES = 256  # most states of a step, so that the cost doesn't grow with the batch
JUDGE_TOKENS = 4096  # tokens of validation that decide whether the number of splats may grow


def _seed(config: Config, step: int) -> int:
    # Differs from the seeds of steps and of the model
    return step_seed(config.run.seed, -10 - step)


def samples(config: Config) -> int:
    """The largest number of tokens of a step that consolidation sees."""
    # No more states than the history can hold between two checks, so that none is lost.
    return min(MOST_STATES, config.splats.soc_history // config.splats.soc_check_interval)


def sampled(config: Config, n: int, step: int) -> Tensor:
    """The positions of the tokens, among a step's n, that consolidation sees: (m,) int64.

    step: the number of steps done, including this one.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(_seed(config, step)))[: samples(config)]


def observed(config: Config, losses: Losses, tokens: Tensor, share: Share, step: int) -> Tensor:
    """States and energies of the tokens that consolidation sees: (m, d + 1) float32.

    Empty without consolidation.

    Each process fills in the tokens of its share of the batch and leaves 0 for the others, so that
    the sum over processes is the sample of the whole batch.

    tokens: (B, T+1), the whole batch. step: see `sampled`.
    """
    if not config.splats.enable_soc:
        return losses.states.new_zeros(0, dtype=torch.float32)
    own = torch.zeros(config.training.accumulation_steps, config.training.batch_size, dtype=torch.bool)
    own[:, share.rows(config.training.batch_size)] = True
    there = tokens[:, 1:] >= 0
    mine = own.flatten()[:, None].to(there.device).expand_as(there)[there]
    rows = sampled(config, len(mine), step).to(mine.device)
    found = losses.states.new_zeros(len(rows), losses.states.shape[1] + 1, dtype=torch.float32)
    place = (mine.cumsum(0) - 1)[rows[mine[rows]]]
    found[mine[rows]] = torch.cat((losses.states[place].float(), losses.energies[place, None].float()), dim=1)
    return found


@dataclass(frozen=True)
class _Noted:
    """A step whose sample is awaited. following: (m,) int64, the tokens that followed its states;
    held_out: (m,) bool, those in held-out blocks."""

    step: int
    following: Tensor
    held_out: Tensor


class TrainingSoc:
    """Consolidates the splats (the memory) of a model while it trains.

    It changes neither the model nor torch's own random generator.

    Args:
        validation: the text whose first tokens decide whether the number of splats may grow.
        batches: says which tokens of the training text a step reads.
    """

    def __init__(
        self, config: Config, model: LanguageModel, train: TokenStream, validation: TokenStream, batches: Batches,
        device: Device,
    ) -> None:  # fmt: skip
        self.config, self.model, self.validation, self.batches, self.device = config, model, validation, batches, device
        seed, splats = config.run.seed, config.splats
        blocks = -(-len(train) // config.data.seq_length)
        # Blocks are chosen by their place in the text, so that they are held out in every epoch.
        self._held_out = np.random.default_rng([seed, FOLD]).integers(FOLD, size=blocks) == 0
        self.consolidation = Consolidation(
            splats,
            device.backend,
            d=config.model.latent_dim,
            vocab_size=model.vocab_size,
            steps=config.training.steps,
            steps_per_epoch=batches.steps_per_epoch,
            seed=partial(_seed, config),
        )
        self._noted: list[_Noted] = []
        self._bytes = 0  # of samples read from a device since the last check
        self._seconds, self._run_seconds = 0.0, 0.0

    def restore(self, found: Checkpoint, run_seconds: float) -> bool:
        """Continue from a checkpoint after run_seconds of training.

        Returns False if the checkpoint has no consolidation; then it starts without splats.
        """
        self._run_seconds = run_seconds
        if found.soc:
            self.consolidation.restore(found.soc, str(found.path / SOC))
        else:
            self.consolidation.counters.step = found.step
        return bool(found.soc)

    def due(self, step: int) -> bool:
        """True if a consolidation follows `step` steps. A consolidation reads the model."""
        return step % self.config.splats.soc_check_interval == 0

    def after(self, step: int, batch: int, sample: Tensor | None, tokens: Tensor) -> None:
        """Note what a step has read.

        Args:
            step: the number of steps done, including this one.
            batch: the number of the batch.
            sample: (m, d + 1), as `observed` returns it, summed over all processes; None if it will
                be given to `collect`.
            tokens: (B, T+1), the batch.
        """
        began = time.perf_counter()
        places, following = self.batches.positions(batch)[:, 1:].reshape(-1), tokens[:, 1:].flatten().cpu()
        places, following = places[places >= 0], following[following >= 0]
        rows = sampled(self.config, len(places), step)
        held_out = self._held_out[places[rows.numpy()] // self.config.data.seq_length]
        self._noted.append(_Noted(step, following[rows], torch.from_numpy(held_out)))
        if sample is not None:
            self._observe(sample.cpu())
        self._seconds += time.perf_counter() - began

    def collect(self, samples: Sequence[Tensor]) -> None:
        """Take the samples of the steps that `after` noted without one, in order."""
        began = time.perf_counter()
        for sample in samples:
            self._observe(sample)
        self._bytes += sum(sample.nbytes for sample in samples)
        self._seconds += time.perf_counter() - began

    def check(self, step: int, layers: Callable[[], Layers]) -> dict[str, Any]:
        """Consolidate after `step` steps and return a record of it. The samples of these steps must
        have arrived.

        layers: called only if validation decides whether more splats are allowed. It returns what
            runs the model's layers, with the current weights.

        The record has `bytes_down` if samples came from a device.
        """
        began = time.perf_counter()
        record = self.consolidation.check(step, self._judge(JUDGE_TOKENS, layers))
        read, self._bytes = self._bytes, 0
        self._seconds += time.perf_counter() - began
        return record | ({"bytes_down": read} if read else {})

    def _observe(self, sample: Tensor) -> None:
        noted = self._noted.pop(0)
        self.consolidation.observe(projx(sample[:, :-1]), noted.following, sample[:, -1], noted.held_out, noted.step)

    def share(self, run_seconds: float) -> float:
        """The share of the training time that consolidation took since the last call.

        run_seconds: the training time so far.
        """
        share = self._seconds / max(run_seconds - self._run_seconds, 1e-9)
        self._seconds, self._run_seconds = 0.0, run_seconds
        return min(1.0, share)

    def gain(self, layers: Callable[[], Layers]) -> dict[str, float] | None:
        """How much the splats gain as a static memory; None if there are no splats yet.

        Three figures, in nats per token on the evaluated part of validation: for the model alone,
        for the model calibrated, and for the model with the splats. Gates are fitted on the first
        half of that part; the figures are for the second half. layers: see `check`.
        """
        store = self.consolidation.store
        if store is None:
            return None
        fit = self._read(self.config.logging.eval_tokens, layers)
        nats = {"without": nats_with(None, fit), "calibrated": nats_calibrated(fit), "with": nats_with(store, fit)}
        return {**nats, "splats": store.n}

    def _judge(self, limit: int, layers: Callable[[], Layers]) -> Judge:
        """A judge on the second half of the first `limit` tokens of validation, read when first
        asked."""
        read = lru_cache(maxsize=1)(partial(self._read, limit, layers))
        return lambda store: nats_with(store, read())

    def _read(self, limit: int, layers: Callable[[], Layers]) -> Fit:
        """The first `limit` tokens of validation."""
        part, reading = self.validation.take(limit + 1), Reading.evaluation(self.config.data.seq_length)
        return Fit(self.model, part, reading=reading, device=self.device, layers=layers())


def nats_with(store: SplatStore | None, fit: Fit) -> float:
    """Nats per token of a text's second half with splats as static memory.

    The gate is fitted on the first half.
    """
    half = len(fit.tokens) // 2
    memory = Memory.unfitted(store, d=fit.h.shape[1], vocab_size=fit.model.vocab_size)
    # Few splats suffice: posteriors are peaked, so looking up more would cost time and hardly
    # change the comparison.
    terms = fit.terms(replace(memory, k=NEAR), "none" if store is None else "static")
    if store is None:
        return -float(terms.log_p[half:, 0].double().mean())
    gate = fit_gate(terms.features[:half], terms.log_p[:half])
    return -float(mix(gate.log_weights(terms.features[half:]), terms.log_p[half:]).double().mean())


def nats_calibrated(fit: Fit) -> float:
    """Like `nats_with`, for a calibration without memory that is fitted on the same half."""
    half = len(fit.tokens) // 2
    own = fit.calibrated(half)
    return -float(fit.log_p_calibrated(own)[half:].double().mean())
