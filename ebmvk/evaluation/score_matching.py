"""Denoising loss by noise level, next to that of the exact denoiser that only knows unigram
frequencies (section 9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebmvk.data.windows import TokenStream
from ebmvk.engine.api import Backend, Points
from ebmvk.evaluation.intervals import ratio_error
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.objective.batch import mixed_seed
from ebmvk.objective.losses import score_loss
from ebmvk.objective.noise import Noise, critical, kappa_range
from ebmvk.sphere.geometry import proju
from ebmvk.sphere.vmf import log_c_ratio, sample_vmf

NAMED = {"1/2 kappa_c": 0.5, "kappa_c": 1.0}
"""{name: share of kappa_c = sqrt(2 d ln V)}. At these levels a model should be better than the
unigram denoiser.
"""
LEVELS = 5  # log-spaced over the default range of training


@dataclass(frozen=True)
class Level:
    """A noise level. name: a key of `NAMED`, or empty."""

    noise: Noise
    name: str = ""


@dataclass(frozen=True)
class ScoreMatching:
    """L_kappa at one level over `tokens` tokens.

    loss: the model's. unigram_loss: that of the exact Bayes denoiser that only knows unigram
    frequencies. error: standard error of loss / unigram_loss; None if the text is too short for it
    (`intervals.ratio_error`).
    """

    level: Level
    loss: float
    unigram_loss: float
    error: float | None
    tokens: int

    @property
    def kappa(self) -> float:
        return self.level.noise.kappa

    @property
    def ratio(self) -> float:
        """loss / unigram_loss. Below 1, the model is better than frequencies alone."""
        return self.loss / self.unigram_loss if self.unigram_loss > 0 else math.inf

    def record(self) -> dict[str, float | str | None]:
        """The figures of this level as JSON values.

        `explained` is 1 - L_kappa: 1 if the model knows the score of the noise exactly, 0 if it
        predicts a score of zero.
        """
        own = asdict(self)
        level = own.pop("level")
        ratio = self.ratio if math.isfinite(self.ratio) else None
        return {"name": level["name"], **level["noise"], **own, "explained": 1 - self.loss, "ratio": ratio}


def levels(d: int, vocabulary: int, extra: Sequence[float] = ()) -> list[Level]:
    """The named levels, plus those in `extra` or else `LEVELS` log-spaced ones, by rising kappa."""
    low, high = kappa_range(d, vocabulary)
    spaced = [low * (high / low) ** (i / (LEVELS - 1)) for i in range(LEVELS)]
    found = [Level(Noise.of(kappa, d)) for kappa in (extra or spaced)]
    found += [Level(Noise.of(share * critical(d, vocabulary), d), name) for name, share in NAMED.items()]
    return sorted(found, key=lambda level: level.noise.kappa)


@torch.no_grad()
def score_matching(
    model: LanguageModel,
    tokens: Tensor,
    backend: Backend,
    unigram: Tensor,
    *,
    starts: npt.NDArray[np.int64],
    k: int,
    seed: int,
    extra: Sequence[float] = (),
) -> list[ScoreMatching]:
    """The denoising loss at each of `levels`, on the tokens of some windows.

    Dropout stays as the model has it.

    Args:
        tokens: (B, T+1) int64, as `windows` returns them.
        unigram: (V,) probabilities.
        starts: where the documents of the tokens' stream begin.
        k: number of candidates of the model's score.
        extra: levels in kappa, in place of the log-spaced ones.
    """
    mu = model.embeddings()
    query, targets = model(tokens[:, :-1], mu).query.flatten(0, -2), tokens[:, 1:].flatten()
    handle, law, found = backend.points(mu), TokenLaw(model, mu), []
    # The losses of the model, and of the unigram denoiser.
    both = torch.empty(2, len(targets), dtype=torch.float64, device=mu.device)
    for number, level in enumerate(levels(mu.shape[1], len(mu), extra)):
        kappa = level.noise.kappa
        x = sample_vmf(mu[targets], kappa, seed=mixed_seed(seed, number))
        for rows, log_p in law.pieces(query):
            pull = kappa * (x[rows] @ mu.t())
            # All tokens are candidates, without a background, so this denoiser is exact.
            only_frequencies = kappa * proju(x[rows], torch.softmax(unigram.log().to(pull.dtype) + pull, -1) @ mu)
            own = _latent_score(backend, handle, x[rows], log_p, pull, kappa, k=k)
            each = torch.full_like(x[rows, 0], kappa)
            scores = (own, only_frequencies)
            both[:, rows] = torch.stack([score_loss(s, x[rows], mu[targets[rows]], each).double() for s in scores])
        mine, unigrams = both.mean(1).tolist()
        found.append(ScoreMatching(level, mine, unigrams, ratio_error(both[0], both[1], starts), both.shape[1]))
    return found


def windows(stream: TokenStream, length: int, most: int) -> Tensor:
    """The first windows of a stream, (B, T+1) int64: up to `length` tokens each, about `most` in
    all.
    """
    length = min(length, len(stream) - 1)
    rows = max(1, min(most, len(stream) - 1) // length)
    tokens = torch.from_numpy(stream.tokens[: rows * length + 1].astype("int64"))
    return torch.stack([tokens[i * length : (i + 1) * length + 1] for i in range(rows)])


def frequencies(train: TokenStream, vocabulary: int) -> Tensor:
    """The unigram probabilities (V,) of the training split."""
    return torch.bincount(torch.from_numpy(train.tokens).long(), minlength=vocabulary).float() / len(train)


def _latent_score(
    backend: Backend, handle: Points, x: Tensor, log_p: Tensor, pull: Tensor, kappa: float, *, k: int
) -> Tensor:
    """Score (B, d) of p_kappa(x|c), with the k most probable tokens given (x, c) as candidates.

    pull: (B, V) kappa mu.x.
    """
    level = torch.tensor(kappa, dtype=x.dtype, device=x.device)
    ids = torch.topk(log_p + pull, min(k, handle.n), dim=-1).indices
    chosen = log_p.gather(-1, ids)
    rest = (-torch.expm1(torch.logsumexp(chosen, -1))).clamp_min(torch.finfo(x.dtype).eps).log()
    concentrations = level.expand_as(chosen).contiguous()
    return backend.energy_score(x, handle, ids, chosen + log_c_ratio(level, handle.d), concentrations, rest).score
