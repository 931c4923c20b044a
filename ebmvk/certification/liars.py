"""Broken variants ("lies") of block Gibbs, tempering, the latent law and its decoder.

`mutants.Plain` breaks the chain itself. Here whole operations are broken: some lies are backends
that get one operation wrong, and others replace one function of the tested code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast
from unittest.mock import patch

import torch
from torch import Tensor

from ebmvk.certification.contexts import VOCABULARY
from ebmvk.engine import select
from ebmvk.engine.api import Backend, EnergyScore, TopK
from ebmvk.engine.reference import Reference
from ebmvk.errors import DeviceError
from ebmvk.sampling import annealed, latent, schedule, streams, tempering
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sphere.vmf import log_c_ratio

Lie = Literal[
    "swap without the ratio",
    "x|v at twice kappa",
    "coarse decoder without weights",
    "exact samples at 1.03 kappa",
    "Gibbs: rest at .3 kappa",
    "top-k without its best",
    "points rounded to float16",
    "rest mass times e^-.2",
    "log C times 1.05",
    "log C of d + 1",
    "decoding at the last level but one",
    "a candidate twice",
    "decoder with the numbers of x",
    "ladder upside down",
]
"""The first three lies in full: replicas always exchange; block Gibbs draws x|v at twice kappa; the
coarse decoder assumes that its neighbourhoods are equally likely before it sees x."""


class Liar:
    """A backend that gets at most one operation wrong."""

    def __init__(self, own: Backend, lie: Lie | None) -> None:
        self._own, self.lie = own, lie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def points(self, points: Tensor, *how: Any) -> Any:
        rounded = self.lie == "points rounded to float16"
        return self._own.points(points.half().float() if rounded else points, *how)

    def topk(self, queries: Tensor, points: Any, k: int, **more: Any) -> TopK:
        if self.lie != "top-k without its best":
            return self._own.topk(queries, points, k, **more)
        found = self._own.topk(queries, points, k + 1, **more)
        return dataclasses.replace(found, scores=found.scores[:, 1:], ids=found.ids[:, 1:].contiguous())

    def vmf_sample(self, mu: Tensor, kappa: Tensor, **more: Any) -> Tensor:
        if self.lie == "x|v at twice kappa":
            kappa = 2 * kappa
        elif self.lie == "exact samples at 1.03 kappa":
            kappa = 1.03 * kappa
        elif self.lie == "Gibbs: rest at .3 kappa":
            kappa = torch.where(kappa == 0, 0.3 * kappa.max(), kappa)
        return self._own.vmf_sample(mu, kappa, **more)

    def energy_score(
        self, x: Tensor, points: Any, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> EnergyScore:
        if self.lie == "coarse decoder without weights" and points.n < VOCABULARY:  # these are neighbourhoods
            logw = torch.where(logw > -math.inf, log_c_ratio(kappa, points.d), logw)
        found = self._own.energy_score(x, points, ids, logw, kappa, log_background)
        if self.lie == "swap without the ratio":  # so low an energy that every exchange is accepted
            found = dataclasses.replace(found, energy=torch.full_like(found.energy, -math.inf))
        return found


@contextmanager
def lying(lie: Lie | None) -> Iterator[Backend]:
    """A context manager that applies the lie and gives a CPU backend, which uses compiled kernels
    if present, else plain torch.
    """
    try:
        own = select("cpu")
    except DeviceError:
        own = Reference()
    with ExitStack() as stack:
        for target, name, wrong in _PATCHES[lie]() if lie in _PATCHES else ():
            stack.enter_context(patch.object(target, name, wrong))
        yield cast("Backend", Liar(own, lie))


Patch = tuple[Any, str, Any]


def _normaliser(wrong: Callable[[Tensor, int], Tensor]) -> list[Patch]:
    """Replaces log C in laws and schedules."""
    return [(module, "log_c_ratio", wrong) for module in (latent, tempering, schedule)]


def _of_candidates(change: Callable[[LatentLaw], LatentLaw]) -> list[Patch]:
    right = LatentLaw.with_candidates.__func__  # type: ignore[attr-defined]
    return [(LatentLaw, "with_candidates", classmethod(lambda cls, *args: change(right(cls, *args))))]


def _early_decoding() -> list[Patch]:
    right = annealed.annealed_langevin

    def early(law: LatentLaw, **how: Any) -> annealed.LatentSample:
        found = right(law, **how)
        return dataclasses.replace(found, kappa=found.schedule.kappa_scale[:, -2].contiguous())

    return [(annealed, "annealed_langevin", early)]


def _twice(law: LatentLaw) -> LatentLaw:
    """The law with its best candidate also in second place."""
    ids, logp = law.ids.clone(), law.logp.clone()
    ids[:, 1], logp[:, 1] = ids[:, 0], logp[:, 0]
    return dataclasses.replace(law, ids=ids, logp=logp)


def _upside_down() -> list[Patch]:
    right = tempering._Ladder.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, law: LatentLaw, rungs: int, *more: Any) -> Any:
        found = right(cls, law, rungs, *more)
        return dataclasses.replace(found, kappa=found.kappa.view(-1, rungs).flip(1).flatten().contiguous())

    return [(tempering._Ladder, "of", classmethod(of))]


_PATCHES: dict[Lie | None, Callable[[], list[Patch]]] = {
    "rest mass times e^-.2": lambda: _of_candidates(lambda law: dataclasses.replace(law, log_rest=law.log_rest - 0.2)),
    "log C times 1.05": lambda: _normaliser(lambda kappa, d: 1.05 * log_c_ratio(kappa, d)),
    "log C of d + 1": lambda: _normaliser(lambda kappa, d: log_c_ratio(kappa, d + 1)),
    "decoding at the last level but one": _early_decoding,
    "a candidate twice": lambda: _of_candidates(_twice),
    "decoder with the numbers of x": lambda: [(streams, "CHOICE", streams.EXACT)],
    "ladder upside down": _upside_down,
}
