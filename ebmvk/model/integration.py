"""Integrated information of Gaussian units over their weakest bipartition.

    Phi(X) = min over bipartitions (A, B) of I(A; B)
    I(A; B) = (log det S_A + log det S_B - log det S) / 2

in nats: any cut into two parts loses at least this much information (Tononi, Sporns and Edelman
1994 for the information of Gaussian units across bipartitions; Hidaka and Oizumi 2018 for the
search). log det S_A is submodular in A, so the weakest cut is found exactly with O(n^3)
determinants (Queyranne 1998) instead of 2^{n-1} cuts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ebmvk.compute import pairs
from ebmvk.engine.library import operation

SILENT = 1e-6  # a unit with a standard deviation below this counts as constant
RIDGE = 1e-4  # share of each variance that becomes independent noise: hidden units may depend on one another exactly


def correlation(x: Tensor) -> Tensor:
    """(n, n) correlation of units x (samples, n), regularised as by `correlation_of`."""
    centred = x - x.mean(0)
    return correlation_of(torch.zeros_like(centred[0]), centred.T @ centred / len(x))


def correlation_of(mean: Tensor, products: Tensor) -> Tensor:
    """(n, n) correlation of units, regularised. Information doesn't depend on the units' scales,
    and a constant unit is independent of all others.

    mean: (n,); products: (n, n), means of x_i x_j. Both float64, because means are subtracted.
    """
    covariance = products - mean[:, None] * mean
    scale = (covariance.diagonal().clamp_min(0) + SILENT**2).rsqrt()  # the root of 0 has no gradient
    own = scale[:, None] * covariance * scale
    return own * (1 - RIDGE) + RIDGE * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)


def information(covariance: Tensor, part: Tensor) -> Tensor:
    """I(A; B) in nats.

    covariance: (n, n); part: (n,) bool, which units are in A (some, but not all).
    """
    a, b = part.nonzero()[:, 0], (~part).nonzero()[:, 0]
    return (_log_det(covariance[a][:, a]) + _log_det(covariance[b][:, b]) - _log_det(covariance)) / 2


def weakest_bipartition(covariance: Tensor) -> Tensor:
    """(n,) bool: the A with the least I(A; B). covariance: (n, n), n >= 2. It has no gradient.

    Queyranne (1998): do the following n - 1 times. Order the groups of units so that each next
    group shares the most information with those before it. Then cutting off the last group is the
    best cut that separates the last two groups. Merge these two. The search runs on the host,
    because each of its steps reads a number and would have to wait for a device.
    """
    device, covariance = covariance.device, covariance.detach().cpu().double()
    groups = [[i] for i in range(len(covariance))]
    found: list[tuple[float, list[int]]] = []
    while len(groups) > 1:
        order, left = [0], list(range(1, len(groups)))
        own = _entropies(covariance, groups)
        while left:
            seen = [unit for i in order for unit in groups[i]]
            together = _entropies(covariance, [seen + groups[i] for i in left])
            # The group u that shares most information with the groups W before it has the smallest
            # h(W + u) - h(u).
            best = int((together - own[left]).argmin())
            order.append(left.pop(best))
        *_, before, last = order
        part = torch.zeros(len(covariance), dtype=torch.bool)
        part[groups[last]] = True
        found.append((float(information(covariance, part)), groups[last]))
        merged = groups[before] + groups[last]
        groups = [group for i, group in enumerate(groups) if i not in (before, last)] + [merged]
    part = torch.zeros(len(covariance), dtype=torch.bool)
    part[min(found)[1]] = True
    return part.to(device)


def _search(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The operation `ebmvk::least_information`: I(A; B) of the weakest bipartition of a covariance
    (n, n), and A (n,) bool. Its gradient is that of this cut."""
    part = weakest_bipartition(covariance)
    return information(covariance, part), part


def _slope(grad: Tensor, covariance: Tensor, part: Tensor) -> Tensor:
    """The gradient (n, n) of grad I(A; B): that of log det S is the inverse of S, transposed."""
    slope = -torch.linalg.inv(covariance)
    for side in (part.nonzero()[:, 0], (~part).nonzero()[:, 0]):
        slope[side[:, None], side] += torch.linalg.inv(covariance[side][:, side])
    scaled: Tensor = slope.mT * (grad / 2)
    return scaled


def _keep(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _backward(ctx: Any, grad: Tensor, _: None) -> Tensor:
    slope: Tensor = least_information_backward(grad, *ctx.saved_tensors)
    return slope


Halves = tuple[Tensor, Tensor]
"""The high and the low part of a float64 tensor, both float32."""

# A compiled step computes the operations further below with these kernels on pairs of float32.
_weakest_cut = operation(
    "weakest_cut(Tensor high, Tensor low) -> (Tensor information, Tensor part)",
    reference=lambda high, low: _narrow_search(_joined(high, low)),
    fake=lambda high, low: (high.new_empty(()), low.new_empty(len(low), dtype=torch.bool)),
    kernel="weakest_cut",
)
_inverse = operation(
    "inverse(Tensor high, Tensor low) -> (Tensor, Tensor)",
    reference=lambda high, low: _halves(torch.linalg.inv(_joined(high, low))),
    fake=lambda high, low: (torch.empty_like(high), torch.empty_like(low)),
    kernel="inverse",
)


def _joined(high: Tensor, low: Tensor) -> Tensor:
    return high.double() + low.double()


def _halves(x: Tensor) -> Halves:
    return x.float(), (x - x.float().double()).float()


def _narrow_search(covariance: Tensor) -> tuple[Tensor, Tensor]:
    found, part = _search(covariance)
    return found.float(), part


def _search_of_pairs(covariance: Halves) -> list[Any]:
    """`_search`. The part is found in full precision; the information is rounded to float32."""
    found, part = _weakest_cut(*covariance)
    return [(found, torch.zeros_like(found)), part]


def _slope_of_pairs(grad: Halves, covariance: Halves, part: Tensor) -> Halves:
    """`_slope`. If the covariances between the two sides are set to 0, the inverse of the matrix
    consists of the inverses of both sides."""
    same = part[:, None] == part
    both = (torch.stack([own, torch.where(same, own, 0.0)]) for own in covariance)
    inverse = pairs.Pair(*_inverse(*both))
    of_whole, of_sides = (inverse.each(lambda own, i=i: own[i]) for i in (0, 1))  # type: ignore[misc]
    half = pairs.Pair(*grad).each(lambda own: own / 2)
    found = pairs.multiply(pairs.add(of_sides, pairs.negative(of_whole)), half)
    return found.high, found.lower


# These are operations of their own, because the search and the sizes of the sides depend on values.
least_information = operation(
    "least_information(Tensor covariance) -> (Tensor information, Tensor part)",
    reference=_search,
    fake=lambda covariance: (covariance.new_empty(()), covariance.new_empty(len(covariance), dtype=torch.bool)),
    backward=_backward,
    keep=_keep,
    pairs=_search_of_pairs,
)
least_information_backward = operation(
    "least_information_backward(Tensor grad, Tensor covariance, Tensor part) -> Tensor",
    reference=_slope,
    fake=lambda grad, covariance, part: torch.empty_like(covariance),  # noqa: ARG005
    pairs=_slope_of_pairs,
)


def integrated_information(x: Tensor) -> Tensor:
    """Phi of units x (samples, n) in nats. Its gradient is that of the weakest cut."""
    return least_information(correlation(x))[0]  # type: ignore[no-any-return]


def phi(x: Tensor) -> Tensor:
    """`phi_of` of the correlation of units x (samples, n), with a gradient.

    It isn't corrected for the number of samples: even independent units appear to predict one
    another, by up to `chance(n, samples)`.
    """
    return phi_of(correlation(x))


def phi_of(covariance: Tensor) -> Tensor:
    """1 - e^{-2 Phi}, in [0, 1), of units with this correlation (n, n).

    If the weakest cut separates one unit, this is its squared multiple correlation. The value is
    continuous and rises with Phi, whichever cut is the weakest.
    """
    least: Tensor = least_information(covariance)[0]
    return -torch.expm1(-2 * least.clamp_min(0))


def chance(units: int, samples: int) -> float:
    """The mean squared multiple correlation that independent Gaussian units appear to have.

    PHI of independent units is lower than this mean, because PHI takes the weakest cut.
    """
    return min(1.0, (units - 1) / max(1, samples - 1))


def _log_det(covariance: Tensor) -> Tensor:
    found: Tensor = torch.linalg.slogdet(covariance)[1]
    return found


def _entropies(covariance: Tensor, groups: list[list[int]]) -> Tensor:
    """log det of the covariance (n, n) of each group, on the host and all at once. Shorter groups
    are filled up with ones on the diagonal."""
    n = max(map(len, groups))
    index = torch.tensor([group + [-1] * (n - len(group)) for group in groups])
    there = index >= 0
    rows = covariance[index.clamp_min(0)[:, :, None], index.clamp_min(0)[:, None, :]]
    both = there[:, :, None] & there[:, None, :]
    return _log_det(torch.where(both, rows, torch.eye(n, dtype=covariance.dtype)))
