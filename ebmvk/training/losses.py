"""The training objective and score-matching figures (model sections 9 and 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.config import Config
from ebmvk.engine import autograd
from ebmvk.engine.api import Backend, Points
from ebmvk.model.ebm import EnergyModel
from ebmvk.sphere.geometry import proju
from ebmvk.sphere.vmf import log_c_ratio, mean_cosine, sample_vmf
from ebmvk.training.cross_entropy import linear_cross_entropies

DENOISE_POSITIONS = 64  # positions per step that denoising trains on: its cost must not grow with the batch
SPREAD_PAIRS = 1024
SPREAD_EPSILON = 1e-3


@dataclass(frozen=True)
class Losses:
    """total: what to differentiate. parts: detached scalars by name, each before its weight. states: (N, d) the points
    h of the batch's contexts, row after row; energies: (N,) E(v|c) of the tokens that followed; both detached."""

    total: Tensor
    parts: dict[str, Tensor]
    states: Tensor
    energies: Tensor


def objective(model: EnergyModel, tokens: Tensor, backend: Backend, config: Config, *, seed: int, step: int) -> Losses:
    """Loss of one batch: CE + lambda_d denoising + expert losses + lambda_spread spread.

    While no memory takes part, p and p_lex are one law and one cross-entropy stands for both. The trunk runs in the
    ambient autocast; the energies and all sums run in float32. Random choices are a function of (seed, step), except
    dropout's, which is drawn from torch's global generator.

    tokens: (B, T+1) int64, each row a window whose last T tokens are predicted.
    """
    weights = config.training
    device = tokens.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    rng = torch.Generator(tokens.device).manual_seed(_mix(seed, step))
    mu = model.embeddings()
    context = model(tokens[:, :-1], mu)
    query, targets = context.query.flatten(0, -2), tokens[:, 1:].flatten()
    with torch.autocast(device, enabled=False):
        total, energies = linear_cross_entropies(query, mu, model.bias, targets, narrow)
        parts = {"ce": total}
        if weights.lambda_denoise > 0:
            rows = torch.randint(
                len(targets), (min(DENOISE_POSITIONS, len(targets)),), generator=rng, device=rng.device
            )
            parts["denoise"] = denoising(
                backend, query[rows], mu, model.bias, targets[rows], k=config.langevin.knn_k, generator=rng
            )
            total = total + weights.lambda_denoise * parts["denoise"]
        if weights.lambda_spread > 0:
            parts["spread"] = spread(mu, rng)
            total = total + weights.lambda_spread * parts["spread"]
        parts |= context.aux
        total = total + weights.moe_balance * parts["moe_balance"] + weights.moe_z * parts["moe_z"]
    states = context.h.detach().flatten(0, -2)
    return Losses(total, {name: value.detach() for name, value in parts.items()}, states, energies)


def _mix(seed: int, step: int) -> int:
    """One 63-bit seed of the pair: odd multipliers of splitmix64 keep neighbouring steps apart."""
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % (1 << 63)


def kappa_range(d: int, vocabulary: int) -> tuple[float, float]:
    """Training noise [kappa_c/12, 2.5 kappa_c], kappa_c = sqrt(2 d ln V): below is noise, above is trivial."""
    critical = math.sqrt(2 * d * math.log(max(2, vocabulary)))
    return critical / 12, 2.5 * critical


def denoising(
    backend: Backend,
    query: Tensor,
    mu: Tensor,
    bias: Tensor,
    targets: Tensor,
    *,
    k: int,
    generator: torch.Generator,
    kappa: Tensor | None = None,
    points: Points | None = None,
) -> Tensor:
    """Mean of -log p(v|x, c) for x ~ vMF(mu_v, kappa): the cross-entropy form, whose score is a true gradient.

    p(v|x, c) is the Bayes decoder of the latent law over candidates C, which hold the k best tokens given (x, c) and
    the target: -log rho_v = -(log p(v|c) + log C_d(kappa)/C_d(0) + kappa mu_v.x) - E(x). At kappa = 0 it is the loss of
    the language model. Candidates and energies come from `backend`.

    query: (B, d); mu: (V, d) unit rows; bias: (V,); targets: (B,) int64; kappa: (B,), log-uniform when not given.
    """
    rows, d = query.shape
    if kappa is None:
        low, high = kappa_range(d, len(mu))
        uniform = torch.rand(rows, generator=generator, device=generator.device, dtype=query.dtype)
        kappa = low * (high / low) ** uniform
    x = sample_vmf(mu.detach()[targets], kappa, generator=generator)
    handle = backend.points(mu.detach()) if points is None else points
    seeking = (query + kappa[:, None] * x).detach()
    ids = _with_targets(backend.topk(seeking, handle, min(k, len(mu)), bias=bias.detach()).ids, targets)
    log_p = torch.log_softmax(F.linear(query, mu, bias), -1).gather(-1, ids)
    rest = (-torch.expm1(torch.logsumexp(log_p, -1))).clamp_min(torch.finfo(query.dtype).eps)
    logw = log_p + log_c_ratio(kappa, d)[:, None]
    energy = autograd.energy(
        backend, x, mu, ids, logw, kappa[:, None].expand_as(logw).contiguous(), rest.log(), points=handle
    )
    own = (ids == targets[:, None]).to(logw.dtype)
    return -((logw * own).sum(-1) + kappa * (mu[targets] * x).sum(-1) + energy).mean()


def _with_targets(ids: Tensor, targets: Tensor) -> Tensor:
    """Candidates (B, K), distinct, with each row's target put in the last place where it was missing."""
    missing = (ids != targets[:, None]).all(-1)
    last = torch.where(missing, targets, ids[:, -1])
    return torch.cat([ids[:, :-1], last[:, None]], dim=1)


def spread(mu: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over random pairs of -log(eps + |mu_i - mu_j|^2 / 2): keeps tokens apart. mu: (V, d) unit rows."""
    pairs = torch.randint(len(mu), (2, SPREAD_PAIRS), generator=generator, device=generator.device)
    i, j = pairs[:, pairs[0] != pairs[1]]
    # Of unit vectors, |a - b|^2 / 2 = 1 - a.b; near 0 epsilon rules, so its cancellation does no harm.
    return -torch.log(SPREAD_EPSILON + (1 - (mu[i] * mu[j]).sum(-1)).clamp_min(0)).mean()


@dataclass(frozen=True)
class ScoreMatching:
    """L_kappa at one noise level, of the model and of the exact Bayes denoiser that knows unigram frequencies only."""

    kappa: float
    loss: float
    unigram_loss: float


@torch.no_grad()
def score_matching(
    model: EnergyModel, tokens: Tensor, backend: Backend, unigram: Tensor, *, k: int, seed: int, levels: int = 5
) -> list[ScoreMatching]:
    """L_kappa = E|s(x) - kappa P_x mu_w|^2 / (kappa (d-1) A_d(kappa)), so that a score of zero has loss 1.

    Levels are log-spaced over `kappa_range`. tokens: (B, T+1) int64; unigram: (V,) probabilities.
    """
    mu = model.embeddings()
    query, targets = model(tokens[:, :-1], mu).query.flatten(0, -2), tokens[:, 1:].flatten()
    handle, d = backend.points(mu), mu.shape[1]
    log_p = torch.log_softmax(F.linear(query, mu, model.bias), -1)
    low, high = kappa_range(d, len(mu))
    found = []
    for level in range(levels):
        kappa = low * (high / low) ** (level / max(1, levels - 1))
        x = sample_vmf(mu[targets], kappa, seed=_mix(seed, level))
        pull = kappa * (x @ mu.t())
        score = _latent_score(backend, handle, x, log_p, pull, kappa, k=k)
        # Every token takes part, and no background: exact where only unigram frequencies are known.
        only_frequencies = kappa * proju(x, torch.softmax(unigram.log().to(pull.dtype) + pull, -1) @ mu)
        truth = kappa * proju(x, mu[targets])
        scale = kappa * (d - 1) * float(mean_cosine(torch.tensor(kappa, dtype=torch.float64), d))
        losses = (float((s - truth).square().sum(-1).mean() / scale) for s in (score, only_frequencies))
        found.append(ScoreMatching(kappa, *losses))
    return found


def _latent_score(
    backend: Backend, handle: Points, x: Tensor, log_p: Tensor, pull: Tensor, kappa: float, *, k: int
) -> Tensor:
    """Score (B, d) of p_kappa(x|c) with the k likeliest tokens given (x, c) as candidates. pull: kappa mu.x, (B, V)."""
    level = torch.tensor(kappa, dtype=x.dtype, device=x.device)
    ids = torch.topk(log_p + pull, min(k, handle.n), dim=-1).indices
    chosen = log_p.gather(-1, ids)
    rest = (-torch.expm1(torch.logsumexp(chosen, -1))).clamp_min(torch.finfo(x.dtype).eps).log()
    concentrations = level.expand_as(chosen).contiguous()
    return backend.energy_score(x, handle, ids, chosen + log_c_ratio(level, handle.d), concentrations, rest).score
