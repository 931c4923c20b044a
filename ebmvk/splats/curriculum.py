"""How many splats there may be, and how sharp: phases of growing capacity and falling temperature (model section 8)."""

from __future__ import annotations

from dataclasses import dataclass

from ebmvk.config.schema import SplatConfig

SHARES = (0.1, 0.6, 1.0)  # of the target: 5,000, 30,000, 50,000 in the original system
HEAT = (4.0, 2.0, 1.0)  # times the splat temperature
LAST_THRESHOLD = 0.2  # of phi: coverage 80 %


@dataclass(frozen=True)
class Phase:
    """capacity: the most splats; kappa: bounds of kappa_hat, which are those of the configuration divided by the
    phase's splat temperature."""

    capacity: int
    kappa: tuple[float, float]


def phases(config: SplatConfig) -> tuple[Phase, ...]:
    """The phases of a run, one where there is no curriculum."""

    def phase(capacity: float, heat: float) -> Phase:
        tau = config.splat_temperature * heat
        return Phase(min(max(1, round(capacity)), config.max_splats), (config.min_kappa / tau, config.max_kappa / tau))

    if not config.enable_curriculum_learning:
        return (phase(config.n_splats_init, 1.0),)
    return tuple(phase(share * config.curriculum_target_splats, heat) for share, heat in zip(SHARES, HEAT, strict=True))


def due(config: SplatConfig, step: int, steps: int, steps_per_epoch: int) -> int:
    """The phase that a step of a run of `steps` asks for: equal parts of `curriculum_epochs`, or of a shorter run."""
    length = min(float(steps), config.curriculum_epochs * steps_per_epoch)
    count = len(phases(config))
    return min(count - 1, int(count * step / length))


def threshold(config: SplatConfig, step: int, steps: int) -> float:
    """phi*, above which splats are created: from soc_threshold straight down to 0.2 at the end of the run."""
    last = min(LAST_THRESHOLD, config.soc_threshold)
    return config.soc_threshold + (last - config.soc_threshold) * min(1.0, step / steps)
