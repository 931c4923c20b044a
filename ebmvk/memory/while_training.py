"""Consolidation as a part of training: which states it sees, what judges its growth, how much of the time it takes."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.data.windows import Batches, TokenStream
from ebmvk.engine.device import Device
from ebmvk.engine.seeds import step_seed
from ebmvk.memory.fit import Fit, Reading
from ebmvk.memory.gate import fit_gate, mix
from ebmvk.memory.law import Memory
from ebmvk.model.language import LanguageModel
from ebmvk.objective.losses import Losses
from ebmvk.ranks import Share
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.manifest import SOC
from ebmvk.sphere.geometry import projx
from ebmvk.splats.soc import NEAR, Consolidation, Judge
from ebmvk.splats.store import SplatStore

FOLD = 16  # one block of seq_length tokens of the training text in so many is held out of the splats
MOST_STATES = 256  # of a step: the cost must not grow with the batch
JUDGE_TOKENS = 4096  # of validation, that decide on a growth


def _seed(config: Config, step: int) -> int:
    return step_seed(config.run.seed, -10 - step)  # apart from those of the steps and of the model


def sampled(config: Config, n: int, step: int) -> Tensor:
    """(m,) int64: which of a step's n tokens consolidation sees. step: steps done, this one included."""
    # As many states as the history holds from one check to the next: none is lost.
    most = min(MOST_STATES, config.splats.soc_history // config.splats.soc_check_interval)
    return torch.randperm(n, generator=torch.Generator().manual_seed(_seed(config, step)))[:most]


def observed(config: Config, losses: Losses, tokens: Tensor, share: Share, step: int) -> Tensor:
    """(m, d + 1) float32: states and energies of the tokens that consolidation sees, 0 for those of other shares, so
    that all shares' samples add up to the batch's. Empty without consolidation. tokens: (B, T+1), the whole batch."""
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


class TrainingSoc:
    """The consolidation of one run, fed with its steps. Nothing here touches the model, or torch's own generator.

    Args:
        batches: which tokens of the training text a step reads.
        windows: the validation text, whose first tokens judge.
    """

    def __init__(
        self, config: Config, model: LanguageModel, train: TokenStream, validation: TokenStream, batches: Batches,
        device: Device,
    ) -> None:  # fmt: skip
        self.config, self.model, self.validation, self.batches, self.device = config, model, validation, batches, device
        seed, splats = config.run.seed, config.splats
        blocks = -(-len(train) // config.data.seq_length)
        # By place in the text, so that a block held out once is held out in every epoch.
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
        self._seconds, self._run_seconds = 0.0, 0.0

    def restore(self, found: Checkpoint, run_seconds: float) -> bool:
        """Continue from a checkpoint after run_seconds of training; False where it has no consolidation, which then
        begins with no splats."""
        self._run_seconds = run_seconds
        if found.soc:
            self.consolidation.restore(found.soc, str(found.path / SOC))
        else:
            self.consolidation.counters.step = found.step
        return bool(found.soc)

    def after(self, step: int, batch: int, sample: Tensor, tokens: Tensor) -> dict[str, Any] | None:
        """Take the `sample` of a step's states; at a check consolidate, and return its record.

        step: steps done, this one included. batch: the number of the batch. tokens: (B, T+1), what it held.
        """
        began = time.perf_counter()
        places, following = self.batches.positions(batch)[:, 1:].reshape(-1), tokens[:, 1:].flatten().cpu()
        places, following = places[places >= 0], following[following >= 0]
        rows, sample = sampled(self.config, len(places), step), sample.cpu()
        held_out = self._held_out[places[rows.numpy()] // self.config.data.seq_length]
        self.consolidation.observe(
            projx(sample[:, :-1]), following[rows], sample[:, -1], torch.from_numpy(held_out), step
        )
        record = None
        if step % self.config.splats.soc_check_interval == 0:
            record = self.consolidation.check(step, self._judge(JUDGE_TOKENS))
        self._seconds += time.perf_counter() - began
        return record

    def share(self, run_seconds: float) -> float:
        """Share of the training time, run_seconds so far, that consolidation took since it was last asked."""
        share = self._seconds / max(run_seconds - self._run_seconds, 1e-9)
        self._seconds, self._run_seconds = 0.0, run_seconds
        return min(1.0, share)

    def gain(self) -> dict[str, float] | None:
        """Nats per token on the evaluated part of validation: without splats, without splats but calibrated, and with
        splats as static memory. Gates are fitted on its first half, and the figures are for the second. None before
        there are splats."""
        store = self.consolidation.store
        if store is None:
            return None
        fit = self._read(self.config.logging.eval_tokens)
        nats = {"without": nats_with(None, fit), "calibrated": nats_calibrated(fit), "with": nats_with(store, fit)}
        return {**nats, "splats": store.n}

    def _judge(self, limit: int) -> Judge:
        """Validation nats of the second half of `limit` tokens; the text is read at the first question."""
        read = lru_cache(maxsize=1)(partial(self._read, limit))
        return lambda store: nats_with(store, read())

    def _read(self, limit: int) -> Fit:
        """The first `limit` tokens of validation."""
        part, reading = self.validation.take(limit + 1), Reading.evaluation(self.config.data.seq_length)
        return Fit(self.model, part, reading=reading, device=self.device)


def nats_with(store: SplatStore | None, fit: Fit) -> float:
    """Nats per token of the second half of a text with the splats as static memory, the gate fitted on the first."""
    half = len(fit.tokens) // 2
    memory = Memory.unfitted(store, d=fit.h.shape[1], vocab_size=fit.model.vocab_size)
    # Posteriors are peaked: looking further costs more than it tells two stores apart.
    terms = fit.terms(replace(memory, k=NEAR), "none" if store is None else "static")
    if store is None:
        return -float(terms.log_p[half:, 0].double().mean())
    gate = fit_gate(terms.features[:half], terms.log_p[:half])
    return -float(mix(gate.log_weights(terms.features[half:]), terms.log_p[half:]).double().mean())


def nats_calibrated(fit: Fit) -> float:
    """Like `nats_with`, for a calibration without memory instead of the splats, fitted on the same half."""
    half = len(fit.tokens) // 2
    own = fit.calibrated(half)
    return -float(fit.log_p_calibrated(own)[half:].double().mean())
