"""The von Mises-Fisher law: density C_d(kappa) e^{kappa mu.x} on S^{d-1} (model section 2).

Two functions suffice: F(kappa) = C_d(0) / C_d(kappa), the mean of e^{kappa t} over the uniform law,
and the Bessel ratio r_nu = I_{nu+1} / I_nu. With nu = d/2 - 1, A_d = r_nu. Both come from one
scheme that is accurate for all kappa >= 0: the uniform (Debye) expansion at a high order, where ten
terms suffice, then the backward recurrences

    r_j = kappa / (2 (j+1) + kappa r_{j+1}),
    log F_j = log F_{j+1} + log1p(kappa r_{j+1} / (2 (j+1))),

which contract errors and add positive terms only. Written for F instead of I, the expansion has no
cancellation at small kappa: with z = kappa/nu, s = sqrt(1+z^2), p = 1/s,

    log F_nu = nu (s - 1 - log((1+s)/2)) - log(s)/2 + log S_nu(p) - log S_nu(1)
    S_nu(p) = sum_k U_k(p) / nu^k

(Olver, "Asymptotics and Special Functions", chapter 10; DLMF 10.41). Computations are in float64;
results have the dtype of the argument.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ebmvk.errors import ArgumentError

_TERMS = 10  # U_0 ... U_10
_ORDER = 40.0  # from this order on, ten terms are exact to float64 rounding for every argument


def _check(name: str, value: Tensor, d: int, *, below: float = math.inf) -> None:
    if d < 2:
        raise ArgumentError(f"d = {d}: the sphere S^(d-1) needs d >= 2", hint="pass the dimension of the vectors")
    if not bool(((value >= 0) & (value < below)).all()):
        bad = value[~((value >= 0) & (value < below))].flatten()[0].item()
        raise ArgumentError(f"{name} = {bad} is outside [0, {below})", hint=f"pass a {name} in that range")


@cache
def _debye_coefficients() -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Coefficients in p of U_k, and of W_k = U_k/2 + p U_k' (DLMF 10.41.10-11)."""
    u = [[Fraction(1)]]
    for _ in range(_TERMS):
        last = u[-1]
        new = [Fraction(0)] * (len(last) + 3)
        for power, a in enumerate(last):
            new[power + 1] += a * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            new[power + 3] -= a * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        u.append(new)
    w = [[a * (Fraction(1, 2) + power) for power, a in enumerate(row)] for row in u]
    floats = [tuple(tuple(float(a) for a in row) for row in rows) for rows in (u, w)]
    return floats[0], floats[1]


def _series(rows: tuple[tuple[float, ...], ...], p: Tensor, order: float) -> Tensor:
    """sum_{k>=1} rows_k(p) / order^k, as one polynomial in p, by Horner's rule."""
    total = [0.0] * len(rows[-1])
    for k, row in enumerate(rows[1:], start=1):
        for power, a in enumerate(row):
            total[power] += a / order**k
    value = torch.zeros_like(p)
    for a in reversed(total):
        value = value * p + a
    return value


def _debye(kappa: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """(log F_order, r_order / kappa) from the uniform expansion."""
    u_rows, w_rows = _debye_coefficients()
    z = kappa / order
    s = torch.sqrt(1 + z * z)
    rise = z * z / (1 + s)  # s - 1 without cancellation
    tail = _series(u_rows, 1 / s, order)
    log_f = order * (rise - torch.log1p(rise / 2)) - torch.log1p(rise) / 2
    log_f = log_f + torch.log1p(tail) - torch.log1p(_series(u_rows, torch.ones_like(s), order))
    # From I'_nu = I_{nu+1} + (nu/kappa) I_nu and V_k - U_k = -p (1 - p^2) W_{k-1}: nothing cancels.
    w = (0.5 + _series(w_rows, 1 / s, order)) / order
    return log_f, (1 / (1 + s) - w / (s * s * (1 + tail))) / order


def _log_f_and_ratio(kappa: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """(log F, A_d(kappa)/kappa) in float64; the quotient has the finite limit 1/d at 0."""
    kappa = kappa.detach().to(torch.float64)
    order = d / 2 - 1
    lift = max(0, math.ceil(_ORDER - order))
    log_f, quotient = _debye(kappa, order + lift)
    for j in range(lift - 1, -1, -1):
        gain = kappa * kappa * quotient / (2 * (order + j + 1))
        log_f = log_f + torch.log1p(gain)
        quotient = 1 / (2 * (order + j + 1) * (1 + gain))
    return log_f, quotient


class _LogCRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, d: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.d = d
        return -_log_f_and_ratio(kappa, d)[0].to(kappa.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        return -grads[0] * mean_cosine(kappa, ctx.d), None


class _MeanCosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, d: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.d = d
        return (_log_f_and_ratio(kappa, d)[1] * kappa.detach()).to(kappa.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        return grads[0] * cosine_variance(kappa, ctx.d), None


def log_c_ratio(kappa: Tensor, d: int) -> Tensor:
    """log C_d(kappa) - log C_d(0), without cancellation: -kappa^2/(2d) near 0.

    Its derivative is -A_d(kappa).

    It can be differentiated twice. kappa: any shape, >= 0. Use it in float32: log C_d itself is
    near 1100 at d = 640, where rounding costs 1e-4.
    """
    _check("kappa", kappa, d)
    result: Tensor = _LogCRatio.apply(kappa, d)  # type: ignore[no-untyped-call]
    return result


def log_c(kappa: Tensor, d: int) -> Tensor:
    """log C_d(kappa), the log normaliser of the density with respect to area, in float64.

    kappa: any shape, >= 0.
    """
    log_area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    return log_c_ratio(kappa.to(torch.float64), d) - log_area


def mean_cosine(kappa: Tensor, d: int) -> Tensor:
    """A_d(kappa) = I_{d/2}/I_{d/2-1}, the mean of t = mu.x, in [0, 1). kappa: any shape, >= 0."""
    _check("kappa", kappa, d)
    result: Tensor = _MeanCosine.apply(kappa, d)  # type: ignore[no-untyped-call]
    return result


def cosine_variance(kappa: Tensor, d: int) -> Tensor:
    """A_d'(kappa) = 1 - A^2 - (d-1) A/kappa, the variance of t = mu.x; no gradient.

    kappa: any shape, >= 0.
    """
    quotient = _log_f_and_ratio(kappa, d)[1]
    mean = quotient * kappa.detach()
    return (1 - mean * mean - (d - 1) * quotient).to(kappa.dtype)


def inverse_mean_cosine(resultant: Tensor, d: int) -> Tensor:
    """kappa with A_d(kappa) = resultant, by Newton's method. resultant: any shape, in [0, 1).

    It starts from r(d - r^2)/(1 - r^2) (Banerjee et al. 2005).
    """
    _check("resultant", resultant, d, below=1.0)
    r = resultant.detach().to(torch.float64)
    kappa = r * (d - r * r) / (1 - r * r)
    for _ in range(8):  # the start is within 10 %; A_d is concave, so a step from the right overshoots at most once
        step = (mean_cosine(kappa, d) - r) / cosine_variance(kappa, d).clamp_min(1e-300)
        kappa = torch.maximum(kappa - step, kappa / 4)
    return kappa.to(resultant.dtype)


def sigma_to_kappa(sigma: float, d: int) -> float:
    """kappa with the mean cosine of Gaussian noise sigma per coordinate (model section 9).

    The noise is added in the tangent space, and the sum projected onto the sphere.
    """
    if not 0 < sigma < math.inf:
        raise ArgumentError(f"sigma = {sigma} is outside (0, inf)", hint="pass a positive noise level such as 0.1")
    cosine = 1 / math.sqrt(1 + sigma * sigma * (d - 1))
    return float(inverse_mean_cosine(torch.tensor(cosine, dtype=torch.float64), d))


def kappa_to_sigma(kappa: float, d: int) -> float:
    """The inverse of `sigma_to_kappa`: sqrt((1/A_d^2 - 1) / (d - 1)). kappa: > 0."""
    cosine = float(mean_cosine(torch.tensor(kappa, dtype=torch.float64), d))
    return math.sqrt((1 / cosine**2 - 1) / (d - 1))


def angle_to_kappa(angle: float, d: int) -> float:
    """kappa whose mean cosine A_d is cos(angle). angle: radians, in (0, pi/2)."""
    if not 0 < angle < math.pi / 2:
        raise ArgumentError(f"angle = {angle} is outside (0, pi/2)", hint="pass radians between 0 and pi/2")
    return float(inverse_mean_cosine(torch.tensor(math.cos(angle), dtype=torch.float64), d))


def kappa_to_angle(kappa: float, d: int) -> float:
    """acos A_d(kappa), in radians. kappa: >= 0."""
    return math.acos(float(mean_cosine(torch.tensor(kappa, dtype=torch.float64), d)))


def kappa_critical(d: int, entropy: Tensor) -> Tensor:
    """sqrt(2 d H): above it the modes of a mixture of entropy H nats separate (model section 7).

    entropy: (...).
    """
    return (2 * d * entropy.clamp_min(0)).sqrt()


def generator_of(generator: torch.Generator | None, seed: int | None, device: torch.device) -> torch.Generator:
    """The given generator, or a new one from the seed.

    Raises:
        ArgumentError: not exactly one of the two is given.
    """
    if (generator is None) == (seed is None):
        raise ArgumentError(f"generator = {generator}, seed = {seed}: exactly one is needed", hint="pass one of them")
    return generator if generator is not None else torch.Generator(device).manual_seed(int(seed or 0))


def sample_vmf(
    mu: Tensor, kappa: Tensor | float, *, generator: torch.Generator | None = None, seed: int | None = None
) -> Tensor:
    """Exact samples by Wood (1994), "Simulation of the von Mises Fisher distribution", one per row.

    mu: (B, d) unit rows; kappa: (B,) or a number, >= 0; 0 is the uniform law. Pass a generator on
    mu's device, or a seed. Returns (B, d) in mu's dtype, computed in float64.
    """
    n, d = mu.shape
    level = torch.as_tensor(kappa, dtype=torch.float64, device=mu.device).expand(n)
    _check("kappa", level, d)
    rng = generator_of(generator, seed, mu.device)
    deficit = sample_deficit(level, d, rng)
    return placed(mu, deficit, torch.randn(n, d, dtype=torch.float64, device=mu.device, generator=rng))


def placed(mu: Tensor, deficit: Tensor, normals: Tensor) -> Tensor:
    """The samples around mu (B, d) whose cosines are 1 - deficit (B,), in the directions of the
    tangent parts of `normals` (B, d). Computed in the dtype of `deficit`; the result has mu's."""
    mean, normals, fall = mu.detach().to(deficit.dtype), normals.to(deficit.dtype), deficit.unsqueeze(-1)
    tangent = normals - (normals * mean).sum(-1, keepdim=True) * mean
    tangent = tangent / torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    x: Tensor = (1 - fall) * mean + torch.sqrt(fall * (2 - fall)) * tangent
    return x.to(mu.dtype)


def sample_deficit(kappa: Tensor, d: int, rng: torch.Generator) -> Tensor:
    """Samples of 1 - t, (B,), where t = mu.x for x ~ vMF(mu, kappa). Subtracting t from 1 would
    lose it to rounding at large kappa. kappa: (B,) float64, >= 0."""
    b = (d - 1) / (2 * kappa + torch.sqrt(4 * kappa * kappa + (d - 1) ** 2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + (d - 1) * torch.log(4 * b / (1 + b) ** 2)  # 1 - x0^2
    deficit = torch.empty_like(kappa)
    todo = torch.arange(len(kappa), device=kappa.device)
    while len(todo):
        # (1 + first coordinate)/2 of a uniform point is Beta((d-1)/2, (d-1)/2).
        g = torch.randn(len(todo), d, dtype=torch.float64, device=kappa.device, generator=rng)
        z = (1 + g[:, 0] / torch.linalg.vector_norm(g, dim=-1)) / 2
        u = torch.rand(len(todo), dtype=torch.float64, device=kappa.device, generator=rng)
        bt = b[todo]
        fall = 2 * bt * z / (1 - (1 - bt) * z)
        w = 1 - fall
        x0t = x0[todo]
        accept = kappa[todo] * w + (d - 1) * torch.log(1 - x0t * w) - c[todo] >= torch.log1p(-u)
        deficit[todo[accept]] = fall[accept]
        todo = todo[~accept]
    return deficit
