"""Annealing schedules: their levels, the rules for steps, and explicit settings."""

from __future__ import annotations

import math

import pytest
import torch

from ebmvk.errors import ArgumentError
from ebmvk.sampling.schedule import annealed_schedule
from ebmvk.sphere.vmf import kappa_critical, log_c_ratio

ENTROPY = torch.tensor([0.0, 0.1, 2.0, math.log(64), 8.0])


@pytest.mark.parametrize("d", [16, 256, 640])
@pytest.mark.parametrize("kappa_max", [None, 20.0, 400.0])
@pytest.mark.parametrize(("levels", "steps"), [(1, 5), (2, 7), (10, 200), (7, 100)])
def test_levels_and_step_rules(d: int, kappa_max: float | None, levels: int, steps: int) -> None:
    schedule = annealed_schedule(d, ENTROPY, levels=levels, steps=steps, kappa_max=kappa_max)
    kappa, critical = schedule.kappa_scale, kappa_critical(d, ENTROPY)
    assert kappa.shape == (5, levels)
    assert sum(schedule.steps) == steps
    assert max(schedule.steps) - min(schedule.steps) <= 1
    last = 1.4 * critical if kappa_max is None else torch.full_like(critical, kappa_max)
    torch.testing.assert_close(kappa[:, -1], last)
    if levels >= 7 and kappa_max is None:
        assert (kappa[1:, 0] <= critical[1:] / 5 * 1.0001).all()
        assert (kappa.diff(dim=1)[1:] <= critical[1:, None] / 5 * 1.0001 * 10 / levels).all()
    assert (schedule.step_size * math.sqrt(d - 1) <= 0.15001).all()
    assert (schedule.step_size * kappa.sqrt() <= 0.30001).all()
    torch.testing.assert_close(schedule.gamma, kappa.sqrt())
    torch.testing.assert_close(schedule.logw_shift, log_c_ratio(kappa.double(), d).float())
    for tensor in (kappa, schedule.logw_shift, schedule.step_size, schedule.gamma):
        assert torch.isfinite(tensor).all()
        assert tensor.dtype == torch.float32


def test_explicit_step_size_and_friction_are_taken_as_they_are() -> None:
    schedule = annealed_schedule(640, ENTROPY, step_size=0.001, gamma=0.1)
    assert (schedule.step_size == 0.001).all()
    assert (schedule.gamma == 0.1).all()


def test_hotter_chains_take_shorter_steps() -> None:
    cold, hot = (annealed_schedule(640, ENTROPY[2:3], temperature=t).step_size for t in (1.0, 4.0))
    torch.testing.assert_close(hot, cold / 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": 0}, "0 levels"),
        ({"levels": 10, "steps": 9}, "9 steps"),
        ({"step_size": 0.0}, "step_size = 0.0"),
        ({"gamma": -1.0}, "gamma = -1.0"),
        ({"kappa_max": math.inf}, "kappa_max = inf"),
        ({"temperature": math.nan}, "temperature = nan"),
    ],
)
def test_errors_name_the_bad_setting(options: dict[str, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        annealed_schedule(640, ENTROPY, **options)
