"""The operations of a training step in plain torch without checks, so that torch can trace them.

Checks look at values, and a step that runs as one program must not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.engine import reference_math
from ebmvk.engine.api import EnergyGradients, EnergyScore, HostRows, Points, Storage, TopK
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError


@dataclass(frozen=True)
class Rows(HostRows):
    """The rows (N, d) themselves, not a copy."""

    rows: Tensor
    storage: Storage = "float32"

    def update(self, points: Tensor, *, first: int | None = None, ids: Tensor | None = None) -> None:  # noqa: ARG002
        raise ArgumentError("rows of a traced step can't be replaced", hint="make new ones with points()")


class Traceable(Reference):
    """The reference backend, whose top-k and energies can be traced.

    Arguments must fit; they aren't checked. Among equal scores, top-k takes those that torch.topk
    takes; a compiler should take those with the lower ids.
    """

    name = "traceable"

    def points(self, points: Tensor, storage: Storage = "float32") -> Rows:  # type: ignore[override]
        return Rows(points.detach(), storage)

    def topk(
        self, queries: Tensor, points: Points, k: int, *, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> TopK:
        scores = queries @ _rows(points).t()
        scores = scores if scale is None else scores * scale
        scores = scores if bias is None else scores + bias
        return TopK(*torch.topk(scores, k, dim=1))

    def energy_score(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        return reference_math.energy_score(x, F.embedding(ids, _rows(points)), logw, kappa, log_background)

    def energy_score_backward(
        self,
        x: Tensor,
        points: Points,
        ids: Tensor,
        logw: Tensor,
        kappa: Tensor,
        log_background: Tensor,
        grad_energy: Tensor,
        grad_score: Tensor,
    ) -> EnergyGradients:
        rows = _rows(points)
        law = (F.embedding(ids, rows), logw, kappa, log_background, grad_energy, grad_score)
        found = reference_math.energy_score_backward(x, *law)
        total = torch.zeros_like(rows).index_add(0, ids.flatten(), found.points.flatten(0, 1))
        return EnergyGradients(found.x, total, found.logw, found.kappa, found.log_background)


def _rows(points: Points) -> Tensor:
    assert isinstance(points, Rows)
    return points.rows
