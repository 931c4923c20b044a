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
from ebmvk.engine.normals import normals
from ebmvk.model.language import Context, Counted, LanguageModel
from ebmvk.objective.batch import Batch, Noised, Pairs, prepare
from ebmvk.objective.cross_entropy import linear_cross_entropies
from ebmvk.ranks import WHOLE, Share
from ebmvk.sphere.geometry import proju
from ebmvk.sphere.vmf import mean_cosine, placed

Form = Literal["cross-entropy", "score"]
OverStep = Callable[[Tensor], Tensor]
SPREAD_EPSILON = 1e-3


@dataclass(frozen=True)
class Losses:
    """The loss of a step, or what a share of its rows adds to it.

    total: the scalar to differentiate. parts: detached scalars by name, without their weights.
    states: (N, d), the states h of the contexts, row after row. energies: (N,), -log p(v|c) of the
    tokens that followed. States and energies are detached, and are those of this share only.
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
    over_step: OverStep = lambda sums: sums,
) -> Losses:
    """The loss of one step, or what a share of its rows adds to it. It calls `losses_of` on what
    `prepare` makes of the tokens.

    tokens: (B, T+1) int64, all rows of the step. Each is a window whose last T tokens are
        predicted; a row ends at its first -1.
    """
    batch = prepare(model, tokens, config, seed=seed, step=step, share=share)
    return losses_of(model, batch.to(tokens.device), backend, config, over_step)


def losses_of(
    model: LanguageModel, batch: Batch, backend: Backend, config: Config, over_step: OverStep = lambda sums: sums
) -> Losses:
    """The loss of a share of a step. A pure function: it looks at no value on the host.

    It is the cross-entropy, plus weighted parts: denoising and spread if the tokens are points on
    the sphere, and the model's own losses (of experts, of integration).

    Each part is a mean over all targets of the step, or a function of such means, so the losses and
    gradients of the shares add up to those of the step. The layers run in the caller's autocast;
    energies and all sums are float32. Random choices depend only on (seed, step) and are the same
    for every share.

    over_step: turns sums over the share into sums over the step, for losses that aren't linear in
    them.
    """
    weights, counted = config.training, batch.counted
    device = batch.tokens.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    mu = model.embeddings()
    context = model(batch.tokens, mu, masks=batch.masks)
    query, states = context.query.flatten(0, -2), context.h.detach().flatten(0, -2)
    if batch.rows is not None:
        query, states = query.index_select(0, batch.rows), states.index_select(0, batch.rows)
    with torch.autocast(device, enabled=False):
        outputs = model.outputs(mu)
        mean, energies = linear_cross_entropies(query, outputs, model.bias, batch.targets, narrow, batch.there)
        parts = {"ce": mean * batch.portion}
        if batch.noised is not None:
            parts["denoise"] = denoising(
                *(backend, query, mu, model.bias, batch.noised),
                k=config.langevin.knn_k,
                outputs=outputs,
                form=weights.denoise_form,
            )
        if batch.pairs is not None:
            parts["spread"] = spread(mu, batch.pairs) / batch.parts
        if context.aux and batch.n is not None:
            parts |= _own_losses(context, counted, batch.n, batch.parts, over_step)
        total = torch.stack([_weight(name, weights) * value for name, value in parts.items()]).sum()
    return Losses(total, {name: value.detach() for name, value in parts.items()}, states, energies)


def _own_losses(
    context: Context, counted: Counted | None, n: Tensor, parts: int, over_step: OverStep
) -> dict[str, Tensor]:
    """The model's own losses of a step with n targets.

    Each of the `parts` shares computes the same value and returns an equal part of it. The gradient
    is that of this share's part of the sums.
    """
    own = context.sums(counted)
    whole = over_step(own.detach())
    losses = context.losses(own + (whole - own.detach()), n)
    return {name: value - value.detach() * (1 - 1 / parts) for name, value in losses.items()}


def _weight(part: str, weights: TrainingConfig) -> float:
    """Weight of a part of the loss: the setting of that name, with or without `lambda_` before
    it."""
    if part == "ce":
        return 1.0
    weight: float = getattr(weights, part if hasattr(weights, part) else f"lambda_{part}")
    return weight


def denoising(
    backend: Backend,
    query: Tensor,
    mu: Tensor,
    bias: Tensor,
    noised: Noised,
    *,
    k: int,
    outputs: Tensor | None = None,
    form: Form = "cross-entropy",
) -> Tensor:
    """The denoising loss: recognise the token v from x ~ vMF(mu_v, kappa). A mean over positions,
    in one of two forms.

    cross-entropy: -log p(v|x, c), whose score is a true gradient. p(v|x, c) is the Bayes decoder of
    the latent distribution over candidates C (the k best tokens given x and c, and the target):
    -log p(v|x, c) = -(log p(v|c) + log C_d(kappa)/C_d(0) + kappa mu_v.x) - E(x). At kappa = 0 it is
    the loss of the language model.

    score: `score_loss` of the score of that distribution.

    query: (N, d). mu: (V, d) unit rows. bias: (V,). noised: the positions among the N, and their
    noise; kappa > 0 for the score form. outputs: (V, d), the rows kappa_v mu_v of p(v|c); by
    default mu. Candidates and energies come from `backend`.
    """
    if not len(noised.at):  # all positions belong to other shares of the step
        return query.new_zeros(())
    clean = mu.detach().index_select(0, noised.targets)
    x = placed(clean, noised.deficit, normals(noised.words, noised.numbers, mu.shape[1]))
    query = query.index_select(0, noised.at)
    handle = backend.points(mu.detach())
    ids = candidates(backend, handle, query, bias, x, noised.kappa, noised.targets, k)
    law = (query, mu, bias, noised, ids, x, clean)
    each = denoising_at(backend, *law, outputs=outputs, points=handle, form=form)
    return (each if noised.there is None else each * noised.there).mean() * noised.portion


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
    noised: Noised,
    ids: Tensor,
    x: Tensor,
    clean: Tensor,
    *,
    outputs: Tensor | None = None,
    points: Points,
    form: Form,
) -> Tensor:
    """`denoising` of each position (B,), with given candidates. query: (B, d), of these
    positions. x and clean (B, d) are data without gradients.

    If `clean` had a gradient, training could minimise the score form by moving all tokens to one
    point.
    """
    kappa, targets = noised.kappa, noised.targets
    log_p = torch.log_softmax(F.linear(query, mu if outputs is None else outputs, bias), -1).gather(-1, ids)
    rest = (-torch.expm1(torch.logsumexp(log_p, -1))).clamp_min(torch.finfo(query.dtype).eps)
    logw = log_p + noised.log_c[:, None]
    law = (backend, x, mu, ids, logw, kappa[:, None].expand_as(logw).contiguous(), rest.log())
    if form == "score":
        return score_loss(autograd.energy_score(*law, points=points)[1], x, clean, kappa, noised.cosine)
    energy = autograd.energy(*law, points=points)
    own = (ids == targets[:, None]).to(logw.dtype)
    return -((logw * own).sum(-1) + kappa * (mu[targets] * x).sum(-1) + energy)


def score_loss(score: Tensor, x: Tensor, clean: Tensor, kappa: Tensor, cosine: Tensor | None = None) -> Tensor:
    """(B,) |s - kappa P_x mu|^2 / (kappa (d-1) A_d(kappa)).

    Its mean is 1 for s = 0, because kappa E[1 - t^2] = (d-1) A_d. score s, x, clean mu: (B, d);
    kappa: (B,) > 0. cosine: `mean_cosine` of kappa, if the caller has it.
    """
    d = x.shape[-1]
    truth = kappa[:, None] * proju(x, clean)
    return (score - truth).square().sum(-1) / (kappa * (d - 1) * (mean_cosine(kappa, d) if cosine is None else cosine))


def _with_targets(ids: Tensor, targets: Tensor) -> Tensor:
    """Candidates (B, K), all different; the target replaces the last one if it was missing."""
    missing = (ids != targets[:, None]).all(-1)
    last = torch.where(missing, targets, ids[:, -1])
    return torch.cat([ids[:, :-1], last[:, None]], dim=1)


def spread(mu: Tensor, pairs: Pairs) -> Tensor:
    """Mean of -log(eps + |mu_i - mu_j|^2 / 2) over pairs of tokens, which keeps them apart.

    mu: (V, d) unit rows.
    """
    i, j = pairs.ids
    # For unit vectors |a - b|^2 / 2 = 1 - a.b. Its cancellation near 0 does no harm, because
    # epsilon is larger.
    each = torch.log(SPREAD_EPSILON + (1 - (mu[i] * mu[j]).sum(-1)).clamp_min(0))
    return -each.mean() if pairs.there is None else -(each * pairs.there).mean() * pairs.portion
