"""What the methods of `Model` and the functions `train`, `evaluate` and `diagnose` return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Energy:
    """The exact energy E(v|c) = -log p(v|c) of each token of a text.

    tokens: their texts. nats: (n,) float64. total: the sum of nats.
    """

    tokens: list[str]
    nats: Tensor

    @property
    def total(self) -> float:
        return float(self.nats.sum())


@dataclass(frozen=True)
class NearToken:
    """A token near a point. cosine: between the point and the token's direction mu_v."""

    id: int
    text: str
    cosine: float


@dataclass(frozen=True)
class NearSplat:
    """A splat of the static memory near a point.

    cosine: between the point and the splat's mean mu_k. kappa: its concentration. mass: its n_k.
    tokens: its most probable tokens, with their probabilities.
    """

    id: int
    cosine: float
    kappa: float
    mass: float
    tokens: list[tuple[str, float]]


@dataclass(frozen=True)
class Trained:
    """How a training run ended.

    folder: the run folder, which has everything else. step: number of steps done. validation,
    trigram: figures over all of the validation text (`nats_per_token`, `ppl_token`, `ppl_word`,
    `bits_per_byte`, `tokens` …) for the model, and for a Kneser-Ney trigram on the same tokens;
    None unless the run has finished.
    """

    folder: Path
    outcome: Literal["finished", "stopped", "interrupted"]
    step: int
    validation: dict[str, Any] | None
    trigram: dict[str, Any] | None


@dataclass(frozen=True)
class Evaluated:
    """Exact figures of a text under a model.

    ppl_word: None if the text has no words. record: everything that `ebmvk evaluate --json` prints.
    """

    nats_per_token: float
    ppl_token: float
    ppl_word: float | None
    bits_per_byte: float
    tokens: int
    words: int
    bytes: int
    record: dict[str, Any]


@dataclass(frozen=True)
class Diagnosed:
    """The diagnosis of a checkpoint.

    verdict: converging, converged, stalled, diverging or undecided, with its reason; None if the
    run has no metrics. recommendations: lines that name a flag and a value. record: everything that
    `ebmvk diagnose --json` prints.
    """

    verdict: str | None
    reason: str | None
    recommendations: list[str]
    record: dict[str, Any]
