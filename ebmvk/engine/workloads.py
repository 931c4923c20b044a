"""Runs every operation at sizes that grow as long as the time allows, and times it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ebmvk.engine.api import Backend, Points, Schedule
from ebmvk.engine.integrators import INTEGRATORS

REPEATS = 3
"""Measured runs. One that isn't measured comes first."""


@dataclass(frozen=True)
class Scale:
    """Sizes: points in the store, their dimension, rows of a batch, candidates (and neighbours) of
    a row, and Langevin steps."""

    points: int
    dimension: int
    rows: int
    candidates: int
    steps: int


SCALES = (
    Scale(500, 64, 8, 8, 4),
    Scale(2_000, 256, 16, 32, 8),
    Scale(5_000, 640, 64, 64, 20),
    Scale(50_000, 640, 1024, 64, 200),
)
"""From small to the size that the engine is designed for."""


@dataclass(frozen=True)
class Workload:
    """One operation with its floating-point operations and the fewest bytes it can move."""

    flops: float
    bytes: float
    run: Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """seconds: of each run. counts: what else the backend counts, per run, such as dispatches and
    submissions."""

    operation: str
    scale: Scale
    seconds: tuple[float, ...]
    flops: float
    bytes: float
    counts: dict[str, float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(
    backend: Backend, seconds: float, failed: Callable[[str, Exception], None], say: Callable[[str], None]
) -> Iterator[Measured]:
    """Time every operation, first at the smallest scale, then at each larger one.

    An operation goes on to a larger scale only if its last time, in proportion to the work, fits
    into its share of what is left of `seconds`.

    Args:
        failed: called with the operation and the error if it can't run; it is not tried again.
        say: called with each operation and scale before it runs.
    """
    end = time.perf_counter() + seconds
    last: dict[str, tuple[float, float]] = dict.fromkeys(WORKLOADS, (0.0, 1.0))  # seconds, FLOPs
    for scale in SCALES:
        problem = _Problem(backend, scale)
        for place, name in enumerate(list(last)):
            try:
                work = WORKLOADS[name](problem)
                share = (end - time.perf_counter()) / (len(WORKLOADS) - place)
                before, flops = last[name]
                if scale is not SCALES[0] and before / flops * work.flops * (REPEATS + 1) > share:
                    continue
                say(f"{name}, {scale.points:,} points, {scale.rows:,} rows of {scale.dimension}")
                found = _timed(backend, name, scale, work)
            except Exception as error:  # noqa: BLE001  # whatever a driver does, the others are still measured
                failed(name, error)
                del last[name]
                continue
            last[name] = (found.median, work.flops)
            yield found


def _timed(backend: Backend, name: str, scale: Scale, work: Workload) -> Measured:
    work.run()
    before, seconds = _counts(backend), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work.run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    counts = {key: (count - before[key]) / REPEATS for key, count in _counts(backend).items()}
    return Measured(name, scale, tuple(seconds), work.flops, work.bytes, counts)


def _counts(backend: Backend) -> Counter[str]:
    """All that the backend has counted until now, except calls and seconds."""
    found: Counter[str] = Counter()
    for count in backend.counts().values():
        found.update({key: value for key, value in asdict(count).items() if key not in ("calls", "seconds")})
    return found


class _Problem:
    """The arguments of all operations at one scale, each made when it is first used."""

    def __init__(self, backend: Backend, scale: Scale) -> None:
        self.backend, self.scale = backend, scale

    @cached_property
    def points(self) -> Points:
        return self.backend.points(_unit(self.scale.points, self.scale.dimension, 1))

    @cached_property
    def x(self) -> Tensor:
        return _unit(self.scale.rows, self.scale.dimension, 2)

    @cached_property
    def y(self) -> Tensor:
        return _unit(self.scale.rows, self.scale.dimension, 3)

    @cached_property
    def tangent(self) -> Tensor:
        return self.y - (self.y * self.x).sum(1, keepdim=True) * self.x

    @cached_property
    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids, logw, kappa and log_background."""
        shape, g = (self.scale.rows, self.scale.candidates), torch.Generator().manual_seed(4)
        ids = torch.randint(self.scale.points, shape, generator=g)
        return ids, torch.full(shape, -4.0), torch.full(shape, 50.0), torch.full((shape[0],), -2.0)

    @property
    def row_bytes(self) -> float:
        return 4.0 * self.scale.rows * self.scale.dimension

    @property
    def gathered_bytes(self) -> float:
        """Bytes of the candidates of all rows, each read once."""
        return self.row_bytes * self.scale.candidates

    def candidate_flops(self, passes: float) -> float:
        """FLOPs of work on candidates. passes: how often each candidate's coordinates are used."""
        return 2.0 * passes * self.scale.rows * self.scale.candidates * self.scale.dimension


def _unit(rows: int, d: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def _sphere(name: str, per_coordinate: float, arguments: int, p: _Problem) -> Workload:
    """arguments: how many of x, y and a tangent at x the operation takes, in this order."""
    operation, flops = getattr(p.backend, name), per_coordinate * p.scale.rows * p.scale.dimension
    second = p.tangent if name in ("proju", "expmap") else p.y
    return Workload(flops, (arguments + 1) * p.row_bytes, partial(operation, *(p.x, second, p.tangent)[:arguments]))


def _topk(p: _Problem) -> Workload:
    flops = 2.0 * p.scale.rows * p.scale.points * p.scale.dimension
    least = 4.0 * (p.scale.points + p.scale.rows) * p.scale.dimension
    return Workload(flops, least, partial(p.backend.topk, p.x, p.points, p.scale.candidates))


def _energy(p: _Problem) -> Workload:
    run = partial(p.backend.energy_score, p.x, p.points, *p.lists)
    return Workload(p.candidate_flops(2), p.gathered_bytes, run)


def _backward(p: _Problem) -> Workload:
    run = partial(p.backend.energy_score_backward, p.x, p.points, *p.lists, torch.ones(p.scale.rows), p.tangent)
    least = p.gathered_bytes + 4.0 * p.scale.points * p.scale.dimension
    return Workload(p.candidate_flops(7), least, run)


def _langevin(scheme: str, p: _Problem) -> Workload:
    one, integrator = torch.ones(1), INTEGRATORS[scheme]
    leapfrogs = 4 if integrator.metropolis else 1
    steps = max(1, p.scale.steps // leapfrogs)
    levels = Schedule(one, 0 * one, 0.005 * one, 7 * one, (steps,))
    chains = partial(p.backend.langevin, scheme=scheme, leapfrogs=leapfrogs, seed=1)
    run = partial(chains, p.x, p.tangent, p.points, *p.lists, levels)
    return Workload(leapfrogs * steps * integrator.evaluations * p.candidate_flops(2), p.gathered_bytes, run)


def _vmf(p: _Problem) -> Workload:
    run = partial(p.backend.vmf_sample, p.x, torch.full((p.scale.rows,), 300.0), seed=1)
    return Workload(5.0 * p.scale.rows * p.scale.dimension, 2 * p.row_bytes, run)


def _accumulate(p: _Problem) -> Workload:
    ids, logw = p.lists[:2]
    tokens = torch.arange(p.scale.rows) % 100
    run = partial(p.backend.accumulate, p.x, ids, logw.softmax(1), tokens, p.scale.points)
    return Workload(p.candidate_flops(1), p.row_bytes + 4.0 * p.scale.points * p.scale.dimension, run)


WORKLOADS: dict[str, Callable[[_Problem], Workload]] = {
    "projx": partial(_sphere, "projx", 3, 1),
    "proju": partial(_sphere, "proju", 4, 2),
    "expmap": partial(_sphere, "expmap", 5, 2),
    "logmap": partial(_sphere, "logmap", 9, 2),
    "transp": partial(_sphere, "transp", 8, 3),
    "dist": partial(_sphere, "dist", 6, 2),
    "topk": _topk,
    "energy_score": _energy,
    "energy_score_backward": _backward,
    **{
        "langevin" if scheme == "gbaoab" else f"langevin ({scheme})": partial(_langevin, scheme)
        for scheme in INTEGRATORS
    },
    "vmf_sample": _vmf,
    "accumulate": _accumulate,
}
"""{operation: what gives its workload at a scale}."""
