"""A backend that answers one question wrongly: what breaks block Gibbs, tempering and the coarse level, one each.

`mutants.Plain` breaks the chain itself; these samplers are made of whole operations, so a wrong operation stands for a
wrong line in them. Each lie changes what one of them makes of the answer and nothing else that the test looks at.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor

from ebmvk.certification.tokens import VOCABULARY
from ebmvk.engine.api import EnergyScore
from ebmvk.engine.reference import Reference
from ebmvk.sphere.vmf import log_c_ratio

Lie = Literal["swap without the ratio", "x|v at twice kappa", "coarse decoder without weights"]
"""Replicas always exchange; block Gibbs draws x|v at twice kappa; the coarse decoder takes its neighbourhoods for
equally likely before it sees x."""


class Liar(Reference):
    """Plain torch with at most one lie."""

    def __init__(self, lie: Lie | None = None) -> None:
        super().__init__()
        self.lie = lie

    def vmf_sample(self, mu: Tensor, kappa: Tensor, **more: Any) -> Tensor:
        wrong = self.lie == "x|v at twice kappa"
        return super().vmf_sample(mu, 2 * kappa if wrong else kappa, **more)

    def energy_score(
        self, x: Tensor, points: Any, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        if self.lie == "coarse decoder without weights" and points.n < VOCABULARY:  # neighbourhoods are fewer
            logw = torch.where(logw > -math.inf, log_c_ratio(kappa, points.d), logw)
        found = super().energy_score(x, points, ids, logw, kappa, log_background)
        if self.lie == "swap without the ratio":  # the energy on the other rung: nothing could be better
            found = dataclasses.replace(found, energy=torch.full_like(found.energy, -math.inf))
        return found
