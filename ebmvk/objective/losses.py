"""The training loss (model sections 9 and 10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.config.schema import Config, TrainingConfig
from ebmvk.engine import autograd
from ebmvk.engine.api import Backend, Points
from ebmvk.model.language import Context, LanguageModel
from ebmvk.objective import noise
from ebmvk.objective.cross_entropy import linear_cross_entropies
from ebmvk.ranks import WHOLE, Share
from ebmvk.sphere.geometry import proju
from ebmvk.sphere.vmf import log_c_ratio, mean_cosine, sample_vmf

Form = Literal["cross-entropy", "score"]
DENOISE_POSITIONS = 64  # positions per step, so that its cost doesn't grow with the batch
SPREAD_PAIRS = 1024  # pairs of tokens per step
SPREAD_EPSILON = 1e-3


@dataclass(frozen=True)
class Losses:
    """The loss of a step, or what a share of its rows adds to it.

    total: the scalar to differentiate. parts: detached scalars by name, without their weights.
    states: (N, d), the states h of the contexts, row after row. energies: (N,), -log p(v|c) of the
    tokens that followed. States and energies are detached, and those of this share only.
    """

    total: Tensor
    parts: dict[str, Tensor]
    states: Tensor
    energies: Tensor

    @classmethod
    def sum(cls, shares: Sequence[Losses]) -> Losses:
        """The sum over the shares of a step, with their states concatenated."""
        if len(shares) == 1:
            return shares[0]
        return cls(
            torch.stack([share.total for share in shares]).sum(),
            {name: torch.stack([share.parts[name] for share in shares]).sum() for name in shares[0].parts},
            torch.cat([share.states for share in shares]),
            torch.cat([share.energies for share in shares]),
        )


def objective(
    model: LanguageModel,
    tokens: Tensor,
    backend: Backend,
    config: Config,
    *,
    seed: int,
    step: int,
    share: Share = WHOLE,
    over_step: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Losses:
    """The loss of one step, or what a share of its rows adds to it.

    It is the cross-entropy, plus weighted parts: denoising and spread if the tokens are points on
    the sphere, and the model's own losses (of experts, of integration).

    Each part is a mean over all targets of the step, or a function of such means, so the losses and
    gradients of the shares add up to those of the step. The layers run in the caller's autocast;
    energies and all sums are float32. Random choices depend only on (seed, step) and are the same
    for every share. Dropout is the exception: it draws from torch's global generator, so dividing a
    step changes its masks, but not their distribution.

    tokens: (B, T+1) int64, all rows of the step. Each is a window whose last T tokens are
        predicted; a row ends at its first -1.
    over_step: turns sums over the share into sums over the step, for losses that aren't linear in
    them.
    """
    weights = config.training
    device = tokens.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    rng = torch.Generator(tokens.device).manual_seed(mixed_seed(seed, step))
    mu = model.embeddings()
    mine = tokens[share.rows(len(tokens))]
    context = model(mine[:, :-1].clamp_min(0), mu)
    query, targets, states = context.query.flatten(0, -2), mine[:, 1:].flatten(), context.h.detach().flatten(0, -2)
    everyone, there = tokens[:, 1:].flatten(), targets_of(mine)
    if there is not None:
        query, targets, states = query[there], targets[there], states[there]
    everyone = everyone[everyone >= 0]
    with torch.autocast(device, enabled=False):
        outputs = model.outputs(mu)
        mean, energies = linear_cross_entropies(query, outputs, model.bias, targets, narrow)
        parts = {"ce": mean * (len(targets) / len(everyone))}
        if model.on_sphere and weights.lambda_denoise > 0:
            rows = torch.randint(
                len(everyone), (min(DENOISE_POSITIONS, len(everyone)),), generator=rng, device=rng.device
            )
            place = rows - int((tokens[: share.rows(len(tokens)).start, 1:] >= 0).sum())
            parts["denoise"] = denoising(
                *(backend, query, mu, model.bias, everyone[rows]),
                k=config.langevin.knn_k,
                generator=rng,
                outputs=outputs,
                kappa=noise.draw(weights, mu, len(rows), rng),
                form=weights.denoise_form,
                place=place,
            )
        if model.on_sphere and weights.lambda_spread > 0:
            parts["spread"] = spread(mu, rng) / share.parts
        if context.aux:
            parts |= _own_losses(context, there, len(everyone), share, over_step)
        total = torch.stack([_weight(name, weights) * value for name, value in parts.items()]).sum()
    return Losses(total, {name: value.detach() for name, value in parts.items()}, states, energies)


def targets_of(rows: Tensor) -> Tensor | None:
    """(B T,) bool: which targets of rows (B, T+1) aren't padding; None if none is padding."""
    there = rows[:, 1:].flatten() >= 0
    return None if bool(there.all()) else there


def _own_losses(
    context: Context, there: Tensor | None, n: int, share: Share, over_step: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The model's own losses of a step with n targets.

    Every share computes the same value and returns an equal part of it. The gradient is that of
    this share's part of the sums.
    """
    own = context.sums(there)
    whole = over_step(own.detach())
    losses = context.losses(own + (whole - own.detach()), n)
    return {name: value - value.detach() * (1 - 1 / share.parts) for name, value in losses.items()}


def _weight(part: str, weights: TrainingConfig) -> float:
    """Weight of a part of the loss: the setting of that name, with or without `lambda_` before
    it."""
    if part == "ce":
        return 1.0
    weight: float = getattr(weights, part if hasattr(weights, part) else f"lambda_{part}")
    return weight


def mixed_seed(seed: int, step: int) -> int:
    """A 63-bit seed made from `seed` and `step`.

    The odd multipliers of splitmix64 make neighbouring steps differ.
    """
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % (1 << 63)


def denoising(
    backend: Backend,
    query: Tensor,
    mu: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    k: int,
    generator: torch.Generator,
    kappa: Tensor,
    outputs: Tensor | None = None,
    points: Points | None = None,
    form: Form = "cross-entropy",
    place: Tensor | None = None,
) -> Tensor:
    """The denoising loss: recognise the token v from x ~ vMF(mu_v, kappa). A mean over rows, in one
    of two forms.

    cross-entropy: -log p(v|x, c), whose score is a true gradient. p(v|x, c) is the Bayes decoder of
    the latent distribution over candidates C (the k best tokens given x and c, and the target):
    -log p(v|x, c) = -(log p(v|c) + log C_d(kappa)/C_d(0) + kappa mu_v.x) - E(x). At kappa = 0 it is
    the loss of the language model.

    score: `score_loss` of the score of that distribution.

    query: (B, d). mu: (V, d) unit rows. bias: (V,). targets: (B,) int64. kappa: (B,), > 0 for the
    score form. outputs: (V, d), the rows kappa_v mu_v of p(v|c); by default mu. place: (B,), the
    row of query (N, d) of each target, by default the same one; a row outside [0, N) belongs to
    another share of the batch. Candidates and energies come from `backend`.
    """
    clean, rows = mu.detach()[targets], len(targets)
    x = sample_vmf(clean, kappa, generator=generator)
    if place is not None:
        mine = (place >= 0) & (place < len(query))
        if not bool(mine.any()):
            return query.new_zeros(())
        query, targets, x, kappa, clean = query[place[mine]], targets[mine], x[mine], kappa[mine], clean[mine]
    handle = backend.points(mu.detach()) if points is None else points
    ids = candidates(backend, handle, query, bias, x, kappa, targets, k)
    law = (query, mu, bias, targets, ids, x, kappa, clean)
    return denoising_at(backend, *law, outputs=outputs, points=handle, form=form) * (len(targets) / rows)


def candidates(
    backend: Backend, points: Points, query: Tensor, bias: Tensor, x: Tensor, kappa: Tensor, targets: Tensor, k: int
) -> Tensor:
    """(B, K) int64: the target and about the k best tokens given (x, c).

    They are found as if all tokens had the same concentration. The loss is a proper one with any
    candidates.
    """
    seeking = (query + kappa[:, None] * x).detach()
    return _with_targets(backend.topk(seeking, points, min(k, points.n), bias=bias.detach()).ids, targets)


def denoising_at(
    backend: Backend,
    query: Tensor,
    mu: Tensor,
    bias: Tensor,
    targets: Tensor,
    ids: Tensor,
    x: Tensor,
    kappa: Tensor,
    clean: Tensor,
    *,
    outputs: Tensor | None = None,
    points: Points,
    form: Form,
) -> Tensor:
    """`denoising` with given noise. x and clean (B, d) are data without gradients.

    If `clean` had a gradient, training could minimise the score form by moving all tokens to one
    point.
    """
    log_p = torch.log_softmax(F.linear(query, mu if outputs is None else outputs, bias), -1).gather(-1, ids)
    rest = (-torch.expm1(torch.logsumexp(log_p, -1))).clamp_min(torch.finfo(query.dtype).eps)
    logw = log_p + log_c_ratio(kappa, mu.shape[1])[:, None]
    law = (backend, x, mu, ids, logw, kappa[:, None].expand_as(logw).contiguous(), rest.log())
    if form == "score":
        return score_loss(autograd.energy_score(*law, points=points)[1], x, clean, kappa).mean()
    energy = autograd.energy(*law, points=points)
    own = (ids == targets[:, None]).to(logw.dtype)
    return -((logw * own).sum(-1) + kappa * (mu[targets] * x).sum(-1) + energy).mean()


def score_loss(score: Tensor, x: Tensor, clean: Tensor, kappa: Tensor) -> Tensor:
    """(B,) |s - kappa P_x mu|^2 / (kappa (d-1) A_d(kappa)).

    Its mean is 1 for s = 0, because kappa E[1 - t^2] = (d-1) A_d. score s, x, clean mu: (B, d);
    kappa: (B,) > 0.
    """
    d = x.shape[-1]
    truth = kappa[:, None] * proju(x, clean)
    return (score - truth).square().sum(-1) / (kappa * (d - 1) * mean_cosine(kappa, d))


def _with_targets(ids: Tensor, targets: Tensor) -> Tensor:
    """Candidates (B, K), all different; the target replaces the last one if it was missing."""
    missing = (ids != targets[:, None]).all(-1)
    last = torch.where(missing, targets, ids[:, -1])
    return torch.cat([ids[:, :-1], last[:, None]], dim=1)


def spread(mu: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of -log(eps + |mu_i - mu_j|^2 / 2) over random pairs, which keeps tokens apart.

    mu: (V, d) unit rows.
    """
    pairs = torch.randint(len(mu), (2, SPREAD_PAIRS), generator=generator, device=generator.device)
    i, j = pairs[:, pairs[0] != pairs[1]]
    # For unit vectors |a - b|^2 / 2 = 1 - a.b. Its cancellation near 0 does no harm, because
    # epsilon is larger.
    return -torch.log(SPREAD_EPSILON + (1 - (mu[i] * mu[j]).sum(-1)).clamp_min(0)).mean()
