"""Phases of the curriculum: how many splats a run may have, and how sharp they may be (model
section 8).

From phase to phase the capacity rises and the splat temperature falls.
"""

from __future__ import annotations

from dataclasses import dataclass

from ebmvk.config.schema import SplatConfig

SHARES = (0.1, 0.6, 1.0)  # of the target number; 5,000, 30,000 and 50,000 in the original system
HEAT = (4.0, 2.0, 1.0)  # factors of the splat temperature
LAST_THRESHOLD = 0.2  # of phi, which means a coverage of 80 %


@dataclass(frozen=True)
class Phase:
    """A phase of the curriculum.

    capacity: the largest number of splats. kappa: bounds of kappa_hat, divided by the phase's
    temperature.
    """

    capacity: int
    kappa: tuple[float, float]


def phases(config: SplatConfig) -> tuple[Phase, ...]:
    """The phases of a run; a single one if the curriculum is off."""

    def phase(capacity: float, heat: float) -> Phase:
        tau = config.splat_temperature * heat
        return Phase(min(max(1, round(capacity)), config.max_splats), (config.min_kappa / tau, config.max_kappa / tau))

    if not config.enable_curriculum_learning:
        return (phase(config.n_splats_init, 1.0),)
    return tuple(phase(share * config.curriculum_target_splats, heat) for share, heat in zip(SHARES, HEAT, strict=True))


def due(config: SplatConfig, step: int, steps: int, steps_per_epoch: int) -> int:
    """The phase due at a step.

    Phases are equal parts of `curriculum_epochs`, or of the run if the run is shorter.
    """
    length = min(float(steps), config.curriculum_epochs * steps_per_epoch)
    count = len(phases(config))
    return min(count - 1, int(count * step / length))


def threshold(config: SplatConfig, step: int, steps: int) -> float:
    """phi*, above which splats are created: linear from soc_threshold to 0.2 over the run."""
    last = min(LAST_THRESHOLD, config.soc_threshold)
    return config.soc_threshold + (last - config.soc_threshold) * min(1.0, step / steps)
