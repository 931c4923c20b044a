"""What the methods of `Model` and the functions `train`, `evaluate` and `diagnose` return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ebmvk.report.tables import number

_WIDEST = 100  # columns of a result that is shown


def _line(name: str, *parts: str) -> str:
    """One line for `repr`: what matters most first, cut if it is too long."""
    whole = ", ".join(parts)
    most = _WIDEST - len(name) - 2
    return f"{name}({whole if len(whole) <= most else whole[: most - 1] + '…'})"


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

    def __repr__(self) -> str:
        return _line("Energy", f"{len(self.tokens):,} tokens", f"{number(self.total, '.4f')} nats")


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

    def __repr__(self) -> str:
        likely = " ".join(f"{text!r} {number(p, '.2f')}" for text, p in self.tokens[:3])
        return _line("NearSplat", f"id={self.id}", f"cosine={number(self.cosine)}", f"mass={self.mass:.4g}", likely)


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

    def __repr__(self) -> str:
        folder = str(self.folder)
        parts = [f"{self.outcome} at step {self.step:,}"]
        if self.validation and self.trigram:
            own, base = (number(row["bits_per_byte"], ".3f") for row in (self.validation, self.trigram))
            parts.append(f"{own} bits per byte (trigram {base})")
        room = _WIDEST - len(", ".join(["Trained()", *parts]))  # the end of a path says more than its beginning
        return _line("Trained", folder if len(folder) <= room else "…" + folder[len(folder) - room + 1 :], *parts)


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

    def __repr__(self) -> str:
        perplexity = f"perplexity {number(self.ppl_token, ',.2f')} per token"
        bits = f"{number(self.bits_per_byte)} bits per byte"
        return _line("Evaluated", bits, perplexity, f"{self.tokens:,} tokens")


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

    def __repr__(self) -> str:
        count = len(self.recommendations)
        told = f"{count} recommendation{'' if count == 1 else 's'}"
        return _line("Diagnosed", self.verdict or "no verdict", told, *([self.reason] if self.reason else []))
