"""Alerts: warn once about each symptom of a failing run, and say what to change.

A watch is a small state machine over the rows of metrics.jsonl in their order, so the alerts of a
run can be computed again from this file. To add one, write its class and name it in `WATCHES`. Each
threshold is next to the watch that uses it, with its reason.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Protocol

from ebmvk.config.schema import Config
from ebmvk.errors import NonFinite
from ebmvk.memory.alerts import STUCK
from ebmvk.monitoring.advice import OVERFITTED, lower_rate, more_dropout, why_it_diverged
from ebmvk.runs.metrics import Alert

Row = Mapping[str, Any]
SETTLED = 100  # steps after the warm-up: gates and energies still settle then


class Watch(Protocol):
    """Looks for one symptom, or a few related ones."""

    def see(self, row: Row) -> Iterator[Alert]:
        """The alerts about a row; called with every row of a run, in order."""
        ...


class Alerts:
    """All watches of one run, or of its part since it was resumed."""

    def __init__(self, config: Config) -> None:
        self._said: set[str] = set()
        self._watches = [watch(config) for watch in WATCHES]

    def see(self, row: Row) -> list[Alert]:
        """The alerts about a row; each symptom is reported once."""
        found = [alert for watch in self._watches for alert in watch.see(row) if alert.sign not in self._said]
        self._said.update(alert.sign for alert in found)
        return found


# ---- energy --------------------------------------------------------------------------------------

BLOCK = 25  # steps whose mean energy is compared: a batch varies by .1 nats, a block by .02
RISE = 0.2  # nats; healthy runs rise by less between blocks, and gain more in the first 100 steps
ERRORS = 5.0  # standard errors, for batches so small that a block varies by more than RISE


@dataclass(frozen=True)
class Block:
    """The mean energy of BLOCK steps, in nats per token, and its squared standard error."""

    mean: float
    error2: float


class _Blocks:
    """Collects the energies of steps into blocks."""

    def __init__(self) -> None:
        self._energies: list[float] = []

    def add(self, row: Row) -> Block | None:
        """The block that this row completes; None if it completes none."""
        if row["event"] == "step":
            self._energies.append(row["parts"]["ce"])
        if len(self._energies) < BLOCK:
            return None
        energies, self._energies = self._energies, []
        return Block(fmean(energies), variance(energies) / BLOCK)


class RisingEnergy:
    """The mean energy E(v|c) = -log p(v|c) of training tokens rises above its best block."""

    def __init__(self, config: Config) -> None:
        self._config, self._blocks = config, _Blocks()
        self._best: Block | None = None

    def see(self, row: Row) -> Iterator[Alert]:
        block = self._blocks.add(row)
        if block is None:
            return
        best = self._best
        if best and block.mean - best.mean > max(RISE, ERRORS * math.sqrt(block.error2 + best.error2)):
            yield Alert(
                "energy rising",
                f"the mean of {BLOCK} steps is {block.mean:.2f} nats, {block.mean - best.mean:.2f} above the best",
                f"continue an earlier checkpoint with {lower_rate(self._config)}",
            )
        if best is None or block.mean < best.mean:
            self._best = block


DIVERGED = 5  # steps in a row
WORSE_THAN_NOTHING = 1.0  # nats above a blind guess; a batch of a few short windows varies by less


class Diverging:
    """Each of the last steps had a higher loss than guessing with all tokens equally likely.

    A run starts below that loss and no text is that hard, so the weights have diverged.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._blind = config, math.inf
        self._last: deque[float] = deque(maxlen=DIVERGED)

    def see(self, row: Row) -> Iterator[Alert]:
        if "vocabulary" in row:
            self._blind = math.log(row["vocabulary"])
        if row["event"] != "step":
            return
        self._last.append(row["parts"]["ce"])
        if len(self._last) == DIVERGED and min(self._last) > self._blind + WORSE_THAN_NOTHING:
            yield Alert(
                "training diverges",
                f"each of the last {DIVERGED} steps had a loss of {min(self._last):,.2f} nats per token or more, and a "
                f"blind guess has {self._blind:.2f}; {why_it_diverged(self._config)}",
                f"start a new run with {lower_rate(self._config)}",
            )


LEAST_LEARNED = 0.1  # nats below the entropy of token frequencies; a bigram table gains more
SHARE_OF_RUN = 0.25  # share of the steps, but at least SETTLED steps, after which a run must have learned that


class PoorConvergence:
    """After a quarter of the run the model knows little more than token frequencies.

    The entropy of token frequencies is in the row that starts or resumes a run.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._blocks = config, _Blocks()
        self._due = config.training.warmup_steps + max(SETTLED, SHARE_OF_RUN * config.training.steps)
        self._unigram = math.inf

    def see(self, row: Row) -> Iterator[Alert]:
        self._unigram = row.get("unigram_nats", self._unigram)
        block = self._blocks.add(row)
        if block is None or row["step"] < self._due or block.mean < self._unigram - LEAST_LEARNED:
            return
        lr = self._config.training.learning_rate
        slow = block.mean < self._unigram + LEAST_LEARNED  # otherwise the rate was too high
        yield Alert(
            "poor convergence",
            f"after {row['step']} steps the mean energy is {block.mean:.2f} nats; token frequencies alone reach "
            f"{self._unigram:.2f}",
            f"use --lr {lr * 4 if slow else lr / 4:g}" + (f" (now {lr:g}), or more --steps" if slow else ""),
        )


# ---- validation ----------------------------------------------------------------------------------

WORSE = 0.02  # nats above the best evaluation: 2 % in perplexity, on the same tokens each time
TWICE = 2  # evaluations in a row


class WorseningPerplexity:
    """The validation loss has risen and doesn't fall again."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._trained: deque[float] = deque(maxlen=2 * BLOCK)
        self._best, self._tokens, self._worse = math.inf, 0, 0

    def see(self, row: Row) -> Iterator[Alert]:
        if row["event"] == "step":
            self._trained.append(row["parts"]["ce"])
        if row["event"] != "eval":
            return
        nats, tokens = row["validation"]["nats_per_token"], row["validation"]["tokens"]
        if tokens != self._tokens:  # --eval-tokens was changed, so figures can't be compared
            self._best, self._tokens, self._worse = math.inf, tokens, 0
        self._worse = self._worse + 1 if nats > self._best + WORSE else 0
        self._best = min(self._best, nats)
        if self._worse >= TWICE:
            yield self._alert(nats)

    def _alert(self, nats: float) -> Alert:
        model = self._config.model
        by_heart = bool(self._trained) and nats - fmean(self._trained) > OVERFITTED
        return Alert(
            "perplexity worsening",
            f"validation perplexity is {math.exp(nats):.2f} per token, {math.exp(nats - self._best) - 1:.1%} above the "
            f"best, for {TWICE} evaluations",
            f"use {more_dropout(model.dropout)} or --patience 3: the model learns the text by heart"
            if by_heart
            else f"continue the best checkpoint with {lower_rate(self._config)}",
        )


# ---- splats --------------------------------------------------------------------------------------

CHECKS = 5  # consolidations over which created and removed splats are counted
FEW = 20  # splats, below which shares mean nothing


class FastConsolidation:
    """Splats are removed faster than they can gather statistics: five checks remove as many as
    exist.

    This is twice the usual maximum: at capacity a check replaces at most a tenth of the splats.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._gone: deque[int] = deque(maxlen=CHECKS)
        self._splats: deque[int] = deque(maxlen=CHECKS)

    def see(self, row: Row) -> Iterator[Alert]:
        if row["event"] != "soc":
            return
        self._gone.append(row["merged"] + row["pruned"])
        self._splats.append(row["splats"])
        gone, splats, config = sum(self._gone), fmean(self._splats), self._config.splats
        if len(self._gone) == CHECKS and gone > max(FEW, splats):
            keep = min(1.0, round((1 + config.soc_keep) / 2, 3))
            yield Alert(
                "consolidation too fast",
                f"{gone:,} splats were merged or pruned in {CHECKS} checks, and there are only {splats:,.0f}",
                f"start a new run with --soc-check-interval {2 * config.soc_check_interval}"
                + (f" --soc-keep {keep:g}" if keep > config.soc_keep else ""),
            )


DEAD = 0.5  # share of dead splats; healthy runs have a quarter at most
CLOSE = 0.1  # share of a splat's width, the angle sqrt((d-1)/kappa); healthy runs have 1 or more


class SickSplats:
    """Many splats are no longer recalled, or splats lie on top of one another."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def see(self, row: Row) -> Iterator[Alert]:
        if row["event"] != "soc" or row["splats"] < FEW:
            return
        config = self._config.splats
        dead = row["dead"] / row["splats"]
        if dead > DEAD:
            keep = max(0.5, config.soc_keep - 0.2)
            faster = f"--soc-keep {keep:.2g}, so that they fade, or " if keep < config.soc_keep else ""
            yield Alert(
                "dead splats",
                f"{dead:.0%} of {row['splats']:,} splats were not recalled within the last checks",
                f"start a new run with {faster}{self._fewer(row['splats'])}",
            )
        width = math.sqrt((self._config.model.latent_dim - 1) / row["kappa_quantiles"][2])
        if row["nearest_angle"] < CLOSE * width:
            yield Alert(
                "splats collapsed",
                f"the nearest splat is {row['nearest_angle']:.2g} rad away on average, and a splat is {width:.2g} wide",
                f"start a new run with {self._fewer(row['splats'])}",
            )

    def _fewer(self, splats: int) -> str:
        name = "--curriculum-target-splats" if self._config.splats.enable_curriculum_learning else "--n-splats-init"
        return f"{name} {max(1, splats // 2)}"


# ---- gates ---------------------------------------------------------------------------------------

WRITING = "memory"  # infinito's module


class StuckGates:
    """The mean of a gate over validation is 0 or 1 in two evaluations in a row.

    Gates are the strength with which infinito writes to its memory, and the routers' shares: an
    expert may get no tokens or all of them.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._stuck = config, dict[str, int]()

    def see(self, row: Row) -> Iterator[Alert]:
        if row["event"] != "eval" or row["step"] < self._config.training.warmup_steps + SETTLED:
            return
        for name, means in row.get("gates", {}).items():
            stuck = [mean for mean in means if mean > 1 - STUCK or mean < STUCK / len(means)]
            self._stuck[name] = self._stuck.get(name, 0) + 1 if stuck else 0
            if self._stuck[name] >= TWICE:
                yield self._alert(name, stuck[0])

    def _alert(self, name: str, mean: float) -> Alert:
        training, sign = self._config.training, f"gate of {name} stuck at {round(mean)}"
        if name.endswith(WRITING):
            reason = f"tokens of validation write to the external memory with strength {mean:.2g} on average"
            return Alert(
                sign, reason, f"use --lr {training.learning_rate / 2:g}; if that doesn't help, --no-use-memory"
            )
        reason = f"an expert of {name} gets a share of {mean:.2g} of the validation tokens"
        return Alert(sign, reason, f"start a new run with --moe-balance {10 * training.moe_balance or 0.01:g}")


WATCHES: tuple[Callable[[Config], Watch], ...] = (
    RisingEnergy,
    Diverging,
    PoorConvergence,
    WorseningPerplexity,
    FastConsolidation,
    SickSplats,
    StuckGates,
)
"""All watches, in the order that their alerts are reported."""


def non_finite(error: NonFinite) -> Alert:
    """The alert of a run that ended because a number wasn't finite. The number never reached the
    weights."""
    return Alert("non-finite values", error.what, error.hint)
