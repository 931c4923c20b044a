"""Noise levels of denoising: given as kappa, as a mean angle, or as a sigma per coordinate (model section 9).

Noise is x ~ vMF(mu, kappa). Its mean angle is acos A_d(kappa). The original system's noise was Gaussian, sigma in each
of the d - 1 tangent coordinates; projected onto the sphere it has about the mean cosine 1/sqrt(1 + sigma^2 (d-1)), and
the kappa of the same mean cosine takes its place.

kappa_c is sqrt(2 d ln V) here, as in section 9: one number for a model. (Sampling takes each context's own entropy in
place of ln V, as in section 7, which is never more.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.config.schema import TrainingConfig
from ebmvk.errors import ConfigError
from ebmvk.sphere.vmf import angle_to_kappa, kappa_to_angle, kappa_to_sigma, sigma_to_kappa

MOST = 1e5  # kappa up to which float32 energies keep two decimals and the vMF functions are tested


@dataclass(frozen=True)
class Noise:
    """One level: concentration, mean angle in degrees, the sigma per coordinate that it stands for."""

    kappa: float
    angle: float
    sigma: float

    @classmethod
    def of(cls, kappa: float, d: int) -> Noise:
        return cls(kappa, math.degrees(kappa_to_angle(kappa, d)), kappa_to_sigma(kappa, d))


def critical(d: int, vocabulary: int) -> float:
    """kappa_c = sqrt(2 d ln V)."""
    return math.sqrt(2 * d * math.log(max(2, vocabulary)))


def kappa_range(d: int, vocabulary: int) -> tuple[float, float]:
    """Training noise [kappa_c/12, 2.5 kappa_c]: below is noise, above is trivial."""
    middle = critical(d, vocabulary)
    return middle / 12, 2.5 * middle


def given(config: TrainingConfig, d: int) -> tuple[float, ...]:
    """kappa of each of --noise-levels, in their order; empty where none were given.

    Raises:
        ConfigError: naming a level that is no such noise, or too little of it.
    """
    return tuple(_kappa(level, config.noise_unit, d) for level in config.noise_levels)


def _kappa(level: float, unit: str, d: int) -> float:
    if unit == "angle" and not 0 < level < 90:
        raise ConfigError(
            f"--noise-levels {level:g} with --noise-unit angle is not between 0 and 90 degrees",
            why="the mean angle of a von Mises-Fisher law is less than a right one",
            hint="give degrees, such as 52 79 85",
        )
    if unit == "angle":
        kappa = angle_to_kappa(math.radians(level), d)
    else:
        kappa = sigma_to_kappa(level, d) if unit == "sigma" else level
    if not 1e-6 <= kappa <= MOST:
        raise ConfigError(
            f"--noise-levels {level:g} with --noise-unit {unit} is kappa {kappa:.3g} at --latent-dim {d}",
            why=f"float32 can tell noise from none between kappa 1e-6 and {MOST:g} only",
            hint="give more noise" if kappa > MOST else "give less noise",
        )
    return kappa


def draw(config: TrainingConfig, mu: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """(rows,) kappa, in mu's dtype: one of the levels given, at random; log-uniform in `kappa_range` without them.

    mu: (V, d).
    """
    levels = given(config, mu.shape[1])
    u = torch.rand(rows, generator=generator, device=generator.device, dtype=mu.dtype)
    if levels:
        each = torch.tensor(levels, dtype=mu.dtype, device=u.device)
        return each[(u * len(levels)).long().clamp_max(len(levels) - 1)]
    low, high = kappa_range(mu.shape[1], len(mu))
    return low * (high / low) ** u


def notes(config: TrainingConfig, d: int, vocabulary: int) -> Iterator[str]:
    """Lines that say what the levels given are; none where none were given."""
    middle = critical(d, vocabulary)
    for level, kappa in zip(config.noise_levels, given(config, d), strict=True):
        noise = Noise.of(kappa, d)
        arc = f" (an arc of {level * math.sqrt(d - 1):.2f} rad by the exponential map)"
        yield (
            f"noise       {config.noise_unit} {level:g}{arc if config.noise_unit == 'sigma' else ''}: "
            f"kappa {kappa:.4g}, {kappa / middle:.2g} kappa_c; mean angle {noise.angle:.1f} degrees, "
            f"sigma {noise.sigma:.3g} per coordinate"
        )
