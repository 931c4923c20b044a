"""Noise levels of denoising: given as kappa, as a mean angle, or as a sigma per coordinate (model
section 9).

Noise is x ~ vMF(mu, kappa). Its mean angle is acos A_d(kappa). The original system's noise was
Gaussian, with sigma in each of the d - 1 tangent coordinates. Projected onto the sphere, that noise
has a mean cosine of about 1/sqrt(1 + sigma^2 (d-1)); the kappa with the same mean cosine replaces
it.

kappa_c is the concentration at which one of V tokens can be told from the others. Here it is sqrt(2
d ln V), as in section 9: one number for a model. Sampling uses the entropy of each context, which
is never larger than ln V (section 7).
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

MOST = 1e5  # up to here float32 energies keep two decimals, and the vMF functions are tested


@dataclass(frozen=True)
class Noise:
    """One noise level: concentration, mean angle in degrees, and the matching sigma per
    coordinate."""

    kappa: float
    angle: float
    sigma: float

    @classmethod
    def of(cls, kappa: float, d: int) -> Noise:
        """The level of a concentration in d dimensions."""
        return cls(kappa, math.degrees(kappa_to_angle(kappa, d)), kappa_to_sigma(kappa, d))


def critical(d: int, vocabulary: int) -> float:
    """kappa_c = sqrt(2 d ln V), for a vocabulary of V tokens."""
    return math.sqrt(2 * d * math.log(max(2, vocabulary)))


def kappa_range(d: int, vocabulary: int) -> tuple[float, float]:
    """The range of training noise, [kappa_c/12, 2.5 kappa_c]: below it only noise is left, above it
    the task is trivial."""
    middle = critical(d, vocabulary)
    return middle / 12, 2.5 * middle


def given(config: TrainingConfig, d: int) -> tuple[float, ...]:
    """kappa of each of --noise-levels, in their order; empty if none were given.

    Raises:
        ConfigError: a level is out of range. The message names the level.
    """
    return tuple(_kappa(level, config.noise_unit, d) for level in config.noise_levels)


def _kappa(level: float, unit: str, d: int) -> float:
    if unit == "angle" and not 0 < level < 90:
        raise ConfigError(
            f"--noise-levels {level:g} with --noise-unit angle is not between 0 and 90 degrees",
            why="the mean angle of von Mises-Fisher noise is less than 90 degrees",
            hint="give degrees, such as 52 79 85",
        )
    if unit == "angle":
        kappa = angle_to_kappa(math.radians(level), d)
    else:
        kappa = sigma_to_kappa(level, d) if unit == "sigma" else level
    if not 1e-6 <= kappa <= MOST:
        raise ConfigError(
            f"--noise-levels {level:g} with --noise-unit {unit} is kappa {kappa:.3g} at --latent-dim {d}",
            why=f"in float32, kappa has to be between 1e-6 and {MOST:g}",
            hint="give more noise" if kappa > MOST else "give less noise",
        )
    return kappa


def draw(config: TrainingConfig, mu: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """(rows,) kappa in mu's dtype: one of the given levels at random, or log-uniform in
    `kappa_range`.

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
    """For each given noise level, a line that explains it."""
    middle = critical(d, vocabulary)
    for level, kappa in zip(config.noise_levels, given(config, d), strict=True):
        noise = Noise.of(kappa, d)
        arc = f" (an arc of {level * math.sqrt(d - 1):.2f} rad by the exponential map)"
        yield (
            f"noise       {config.noise_unit} {level:g}{arc if config.noise_unit == 'sigma' else ''}: "
            f"kappa {kappa:.4g}, {kappa / middle:.2g} kappa_c; mean angle {noise.angle:.1f} degrees, "
            f"sigma {noise.sigma:.3g} per coordinate"
        )
