"""Formulas of the reference backend: the sphere (model section 1), the energy and its gradients
(6), statistics (8).

They stay accurate for arguments that nearly coincide: differences are taken first, and acos is
never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ebmvk.engine.api import Accumulated, EnergyGradients, EnergyScore

CHUNK = 1 << 26
"""Most elements of an intermediate tensor. Longer batches are computed in parts."""


def split(tensor: Tensor, rows: int) -> Sequence[Tensor]:
    """Parts of at most `rows` rows; one empty part for an empty tensor."""
    return [tensor[start : start + rows] for start in range(0, max(1, tensor.shape[0]), rows)]


def dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.sum(a * b, dim=-1, keepdim=True)


def normalise(x: Tensor) -> Tensor:
    # Divided by the largest entry first, so that squares of tiny or huge rows neither underflow nor
    # overflow.
    if x.numel():
        x = x / x.detach().abs().amax(dim=-1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm


def tangent(x: Tensor, u: Tensor) -> Tensor:
    return u - dot(x, u) * x


def distance(x: Tensor, y: Tensor) -> Tensor:
    return 2 * torch.atan2(torch.linalg.vector_norm(x - y, dim=-1), torch.linalg.vector_norm(x + y, dim=-1))


def expmap(x: Tensor, u: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    # torch.sinc(z) = sin(pi z) / (pi z), smooth at 0.
    return torch.cos(norm) * x + torch.sinc(norm / torch.pi) * u


def logmap(x: Tensor, y: Tensor) -> Tensor:
    """Zero at y = x, and also at y = -x, where the direction isn't defined."""
    direction = tangent(x, y - x)
    norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    unit = direction / torch.where(norm > 0, norm, 1)
    return distance(x, y)[:, None] * unit


def transport(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """Transport along the shortest geodesic. At y = -x it isn't defined; the result isn't
    finite."""
    both = x + y
    # For unit rows 1 + x.y = |x + y|^2 / 2, which doesn't cancel near y = -x.
    return u - 2 * dot(y, u) / dot(both, both) * both


ROWS: dict[str, Callable[..., Tensor]] = {
    "projx": normalise,
    "proju": tangent,
    "expmap": expmap,
    "logmap": logmap,
    "transp": transport,
    "dist": distance,
}
"""The operations that work row by row."""


FORMULAS: dict[str, Callable[..., object]] = {}
"""Operations that don't work row by row and have no method in `Reference`. They take the arguments
of the table: tensors in its dtype on its device, `points` as rows (N, d)."""


def topk_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exactly k per row. Of equal scores the lower ids win, which torch.topk doesn't promise."""
    threshold = torch.topk(scores, k, dim=1).values[:, -1:]
    above = scores > threshold
    level = scores == threshold
    wanted = k - above.sum(dim=1, keepdim=True)
    keep = above | (level & (level.cumsum(dim=1) <= wanted))
    ids = keep.nonzero()[:, 1].reshape(scores.shape[0], k)
    best, order = torch.sort(scores.gather(1, ids), dim=1, descending=True, stable=True)
    return best, ids.gather(1, order)


def energy_score(x: Tensor, mu: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor) -> EnergyScore:
    """`Backend.energy_score` with the candidates' rows instead of ids. x: (B, d); mu: (B, K, d)."""
    logits = logw + kappa * torch.einsum("bkd,bd->bk", mu, x)
    total = torch.logsumexp(torch.cat((logits, log_background[:, None]), dim=1), dim=1)
    rho = torch.exp(logits - total[:, None])
    pull = torch.einsum("bk,bkd->bd", rho * kappa, mu)
    return EnergyScore(-total, tangent(x, pull), rho, torch.exp(log_background - total))


def geodesic(x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Move x along the great circle of v for the time t (B, 1), and transport v."""
    speed = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    angle = speed * t
    cos, sin = torch.cos(angle), torch.sin(angle)
    return cos * x + torch.sinc(angle / torch.pi) * t * v, cos * v - speed * sin * x


def energy_score_backward(
    x: Tensor,
    mu: Tensor,
    logw: Tensor,
    kappa: Tensor,
    log_background: Tensor,
    grad_energy: Tensor,
    grad_score: Tensor,
) -> EnergyGradients:
    """As `Backend.energy_score_backward`, but the gradient for the points is one for each row of
    mu, (B, K, d)."""
    now = energy_score(x, mu, logw, kappa, log_background)
    rho = now.responsibilities
    w = tangent(x, grad_score)
    along_x, along_w = torch.einsum("bkd,bd->bk", mu, x), torch.einsum("bkd,bd->bk", mu, w)
    slope = kappa * along_w
    mean_slope = (rho * slope).sum(1)
    # If one candidate has all the weight, slope and mean_slope are large and equal, so their
    # difference is taken first.
    c = rho * ((slope - mean_slope[:, None]) - grad_energy[:, None])
    radial = (rho * kappa * along_x).sum(1, keepdim=True)
    pull = now.score + radial * x
    mean = torch.einsum("bk,bkd->bd", c * kappa, mu)
    return EnergyGradients(
        x=mean - dot(x, grad_score) * pull - radial * grad_score,
        points=(c * kappa)[..., None] * x[:, None] + (rho * kappa)[..., None] * w[:, None],
        logw=c,
        kappa=c * along_x + rho * along_w,
        log_background=-now.background * (mean_slope + grad_energy),
    )


def add_rows(total: Tensor, ids: Tensor, rows: Tensor) -> None:
    """total[ids[i]] += rows[i] in ascending order of i, so the bits are always the same."""
    if total.device.type == "cuda":
        total.index_put_((ids,), rows, accumulate=True)  # it sorts; index_add_ uses atomics on CUDA
    else:
        total.index_add_(0, ids, rows)


def accumulate(x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> Accumulated:
    """As `Backend.accumulate`."""
    resultant, mass = (
        x.new_zeros(n, x.shape[1]),
        responsibilities.new_zeros(n),
    )  # the larger one first, because it may not fit in memory
    add_rows(mass, ids.flatten(), responsibilities.flatten())
    size = max(1, CHUNK // max(1, ids.shape[1] * x.shape[1]))
    for at, row, share in zip(split(x, size), split(ids, size), split(responsibilities, size), strict=True):
        add_rows(resultant, row.flatten(), (share[..., None] * at[:, None]).flatten(0, 1))
    pairs = torch.stack((ids, tokens[:, None].expand_as(ids)), dim=-1)[responsibilities > 0]
    unique, inverse = torch.unique(pairs, dim=0, return_inverse=True)
    counts = responsibilities.new_zeros(unique.shape[0])
    add_rows(counts, inverse, responsibilities[responsibilities > 0])
    return Accumulated(mass, resultant, unique, counts)
