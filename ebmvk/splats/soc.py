"""Self-organised consolidation during training (model section 8).

Splats are born, grow, split, merge and fade.

Between checks, states are collected. A check is one step of online EM. First, old statistics are
multiplied by `soc_keep`, because the trunk that made them has changed since. Then the new states
are assigned to nearby splats with posterior weights, their statistics are added, and concentrations
and background are fitted again. If too little of the held-out fold is covered (phi > phi*), splats
are created where states are surprising and uncovered. Broad splats are split; at capacity, the
pairs whose merging costs least in description length are merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ebmvk.config.schema import SplatConfig
from ebmvk.engine.api import Backend
from ebmvk.errors import CheckpointError
from ebmvk.splats.consolidation import consolidate
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.creation import candidates, created, split
from ebmvk.splats.curriculum import due, phases, threshold
from ebmvk.splats.health import ASKED, health, nearest_angles
from ebmvk.splats.history import History
from ebmvk.splats.store import BETA, SplatStore

NEAR = 16  # splats looked up for each state
# Smaller assignment weights go to the background, so that token counts stay sparse
LEAST_WEIGHT = 0.05
LEAST_MASS = 0.5  # splats that have faded below this mass, in contexts, are pruned
LEAST_COUNT = 0.01  # smaller counts of a token in a splat are forgotten
# At capacity, one check may replace 1/20 of the splats by creation, and 1/20 by splitting
CHURN = 20
FOLD_SHARE = 8  # the held-out fold keeps 1/8 as many states as the history
ACTIVE_CHECKS = 5  # a splat counts as dead after this many checks without a recall
RETRY_CHECKS = 4  # checks until growth that was rejected is tried again

Judge = Callable[[SplatStore | None], float]
"""Validation nats per token of the model with these splats as its memory; None: no memory."""


@dataclass
class Counters:
    """The values that a consolidation keeps from one check to the next.

    phase: the current phase of the curriculum. tried: the check that last rejected growth.
    checks: number done.
    step, phi, rate: the training step of the last check, its order parameter, and its events per
    1000 states.
    """

    phase: int = 0
    tried: int = -RETRY_CHECKS
    checks: int = 0
    step: int = 0
    phi: float = 1.0
    rate: float = 0.0


@dataclass(frozen=True)
class Events:
    """What one check did to the store. The avalanche is the number of all events."""

    created: int = 0
    split: int = 0
    merged: int = 0
    pruned: int = 0

    @property
    def avalanche(self) -> int:
        return self.created + self.split + self.merged + self.pruned


class Consolidation:
    """The splats of one training run.

    Args:
        steps: number of steps of the whole run.
        steps_per_epoch: to report ages in epochs.
        seed: a function from a step to the random seed of the consolidation check at that step.
            torch's own generator isn't used.
    """

    def __init__(
        self,
        config: SplatConfig,
        backend: Backend,
        *,
        d: int,
        vocab_size: int,
        steps: int,
        steps_per_epoch: int,
        seed: Callable[[int], int],
    ) -> None:
        self.config, self.backend, self.vocab_size, self.seed = config, backend, vocab_size, seed
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.phases = phases(config)
        self.store: SplatStore | None = None
        self.history = History.empty(config.soc_history, d)
        self.fold = History.empty(max(1, config.soc_history // FOLD_SHARE), d)
        self.counters = Counters()

    def observe(self, states: Tensor, tokens: Tensor, energies: Tensor, held_out: Tensor, step: int) -> None:
        """Collect the states of one step: (m, d) float32 unit rows, on the CPU.

        held_out: (m,) bool, marks states that only measure phi and never enter a splat.
        """
        for ring, mine in ((self.history, ~held_out), (self.fold, held_out)):
            ring.add(states[mine], tokens[mine], energies[mine], step)

    # ---- one check -------------------------------------------------------------------------------

    def check(self, step: int, judge: Judge) -> dict[str, Any]:
        """Consolidate after training step `step`. Returns a record of JSON values of the check."""
        began, counters = time.perf_counter(), self.counters
        seen = int(self.history.pending)
        self.store, faded = self._faded(step)
        owner = self._assign(step)
        before, phase = self.store, counters.phase
        target, left = threshold(self.config, step, self.steps), self.history.left.clone()
        growth: dict[str, Any] | None = None
        if due(self.config, step, self.steps, self.steps_per_epoch) > phase and self._may_try():
            grown, events = self._events(before, phase + 1, owner, step, target)
            before, grown = self._fitted(before)[0], self._fitted(grown)[0]
            growth = {"phase": phase + 1, "before": judge(before), "after": judge(grown)}
            growth["accepted"] = growth["after"] <= growth["before"]
            if growth["accepted"]:
                self.store, counters.phase = grown, phase + 1
            else:  # undo everything
                self.history.left.copy_(left)
                events, counters.tried, self.store = Events(), counters.checks, before
        else:
            self.store, events = self._events(before, phase, owner, step, target)
        self.store, counters.phi = self._fitted(self.store)
        events = replace(events, pruned=faded)
        counters.checks, counters.step = counters.checks + 1, step
        counters.rate = 1000 * events.avalanche / max(1, seen)
        return {
            **asdict(events),
            "avalanche": events.avalanche,
            "states": seen,
            "threshold": target,
            "growth": growth,
            **self.summary(step),
            "seconds": time.perf_counter() - began,
        }

    def summary(self, step: int) -> dict[str, Any]:
        """Coverage and the health of the splats at a step, as JSON values."""
        counters, capacity = self.counters, self.phases[self.counters.phase].capacity
        since = step - ACTIVE_CHECKS * self.config.soc_check_interval
        told = {
            "phi": counters.phi,
            "coverage": 1 - counters.phi,
            "rate": counters.rate,
            "phase": counters.phase,
            "capacity": capacity,
            "fold": self.fold.n,
        }
        if self.store is None:
            return {**told, "splats": 0}
        _, angles = nearest_angles(self.store, self.backend, ASKED)
        return told | health(self.store, angles, step=step, since=since, steps_per_epoch=self.steps_per_epoch)

    def _may_try(self) -> bool:
        return self.counters.checks - self.counters.tried >= RETRY_CHECKS

    def _faded(self, step: int) -> tuple[SplatStore | None, int]:
        """The store after fading, and the number of splats pruned.

        All statistics fade. Old splats also fade by the weight decay, a rate per epoch, for the
        part of an epoch that has passed.
        """
        store, config = self.store, self.config
        if store is None:
            return None, 0
        epochs = (step - self.counters.step) / self.steps_per_epoch
        old = (step - store.birth) > config.splat_weight_decay_start * self.steps_per_epoch
        factor = torch.full_like(store.mass, config.soc_keep)
        factor[old] *= (1 - config.splat_weight_decay) ** epochs
        store = store.scaled(factor).trimmed(LEAST_COUNT)
        keep = store.mass >= LEAST_MASS
        pruned = int((~keep).sum())
        return (store.kept(keep) if bool(keep.any()) else None), pruned

    def _assign(self, step: int) -> Tensor:
        """Assign new states (E step) and add them to the splats (sums of the M step).

        Returns (n,): for each state of the history the splat that got more than half of it, or -1
        if no splat did or the state isn't new.
        """
        history, place = self.history, self.history.unassigned()
        owner = torch.full((history.n,), -1)
        history.assigned()
        if self.store is not None and len(place):
            states = history.states[place]
            ids, weights = posterior(self.store, states, self.backend, NEAR)
            weights = torch.where(weights >= LEAST_WEIGHT, weights, 0.0)
            self.store = self.store.absorbed(states, history.tokens[place], ids, weights, step)
            history.left[place] = (1 - weights.sum(1)).clamp(0, 1)
            most, first = weights.max(1)
            owner[place] = torch.where(most > 0.5, ids.gather(1, first[:, None])[:, 0], -1)
        return owner

    def _fitted(self, store: SplatStore | None) -> tuple[SplatStore | None, float]:
        """The store with the background that fits the fold, and phi (1 without store or fold)."""
        if store is None or not self.fold.n:
            return store, 1.0
        return fit_background(store, self.fold.states[: self.fold.n], self.backend, NEAR)

    def _events(
        self, store: SplatStore | None, phase: int, owner: Tensor, step: int, target: float
    ) -> tuple[SplatStore | None, Events]:
        """The store after splitting, creating and merging as a phase allows, and what was done.

        Created splats take their states' shares out of the history.
        """
        history, (capacity, kappa) = self.history, (self.phases[phase].capacity, self.phases[phase].kappa)
        split_off, merged = 0, 0
        store, phi = self._fitted(store and replace(store, kappa_min=kappa[0], kappa_max=kappa[1]))
        if store is not None:
            n = store.n
            most = max(min(n // 2, capacity - n), n // CHURN)
            store = split(store, history.states[: history.n], history.tokens[: history.n], owner, most)
            split_off = store.n - n
        room = capacity - (store.n if store else 0)
        most = max(room, capacity // CHURN) if phi > target else 0
        born, taken = self._created(store, most, kappa, step)
        if born is not None:
            history.left[taken] = 0.0
        over = (store.n if store else 0) + (born.n if born else 0) - capacity
        if store is not None and over > 0:
            n = store.n
            store = consolidate(store, max(1, n - over), self.backend)
            merged += n - store.n
        events = Events(born.n if born else 0, split_off, merged)
        return (store.joined(born) if store and born else store or born), events

    def _created(
        self, store: SplatStore | None, most: int, kappa: tuple[float, float], step: int
    ) -> tuple[SplatStore | None, Tensor]:
        place = torch.zeros(0, dtype=torch.int64)
        if most > 0 and self.history.n:
            place = candidates(self.history, store, self.backend, NEAR)
        random = torch.Generator().manual_seed(self.seed(step))
        return created(self.history, place, most, (self.vocab_size, BETA, kappa), self.backend, random, step)

    # ---- files -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        tensors = {f"counter.{k}": torch.tensor(v, dtype=torch.float64) for k, v in asdict(self.counters).items()}
        for name, part in (("history", self.history), ("fold", self.fold), ("store", self.store)):
            tensors |= {f"{name}.{key}": value.clone() for key, value in (part.state() if part else {}).items()}
        return tensors

    def restore(self, state: dict[str, Tensor], source: str) -> None:
        """Continue from what `state` returned. source: the file, for messages.

        Raises:
            CheckpointError: a tensor is missing or doesn't fit this run.
        """
        counters = {}
        for name, default in asdict(Counters()).items():
            value = state.get(f"counter.{name}")
            if value is None or value.numel() != 1:
                raise CheckpointError(f"{source}: lacks 'counter.{name}'", hint="use an older checkpoint")
            counters[name] = type(default)(value)
        self.counters = Counters(**counters)
        if not 0 <= self.counters.phase < len(self.phases):
            raise CheckpointError(
                f"{source}: its curriculum is in phase {self.counters.phase}; the run has {len(self.phases)} phases",
                hint="resume with the config.toml that this checkpoint was trained with",
            )
        self.history.restore(_part(state, "history"), source)
        self.fold.restore(_part(state, "fold"), source)
        store = _part(state, "store")
        self.store = store_of(state, source) if store else None


def store_of(state: dict[str, Tensor], source: str) -> SplatStore | None:
    """The splats of a saved consolidation; None if it had none yet.

    Raises CheckpointError if damaged.
    """
    store = _part(state, "store")
    return SplatStore.from_state(store, source) if store else None


def _part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
