"""Runs every operation of a backend once and compares the results with the float64 oracle.

Then it tests that chains which are resumed give the same bits as chains which run through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ebmvk.engine import examples
from ebmvk.engine.api import Backend, Schedule, Scheme, Storage
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.operations import OPERATIONS
from ebmvk.engine.reference import Reference
from ebmvk.errors import EbmvkError

TOLERANCE = 1e-9
"""How large the squared error of float32 results may be, divided by the squared size of the float64
results. So errors up to 3e-5 of the size pass. 1e-13 is usual.
"""

ROWS, DIMENSION, POINTS, CANDIDATES = 6, 65, 200, 33
"""Odd on purpose, so that none is a multiple of a vector, a subgroup or a tile."""

STEPS = 200
"""Steps of the chains that are resumed halfway."""


@dataclass(frozen=True)
class Check:
    """The result of one operation. error: squared error over squared size, infinite if discrete
    results or bits that must be equal differ; failure: what went wrong, if it isn't the error."""

    operation: str
    error: float
    seconds: float
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure and self.error <= TOLERANCE


def run(backend: Backend) -> list[Check]:
    """Check every operation on fixed arguments. An error of the backend becomes a failure."""
    oracle = Reference("cpu", torch.float64)
    checks = [_check(name, operation, backend, oracle) for name, operation in _operations().items()]
    return checks + [_check_resumption(name, scheme, backend) for name, scheme in RESUMED.items()]


def _check(name: str, operation: Callable[[Backend], list[Tensor]], backend: Backend, oracle: Reference) -> Check:
    start = time.perf_counter()
    try:
        got = operation(backend)
    except Exception as error:  # noqa: BLE001  # whatever a driver does, the other operations are still tested
        return Check(name, torch.inf, time.perf_counter() - start, _said(error))
    seconds = time.perf_counter() - start
    return Check(name, max(map(_difference, got, operation(oracle))), seconds)


RESUMED: dict[str, Scheme] = {"langevin, resumed": "gbaoab", "langevin (ghmc), resumed": "ghmc"}
"""Names of the checks that resume chains, with the integrator of each."""


def _check_resumption(name: str, scheme: Scheme, backend: Backend) -> Check:
    """Check that 200 steps in one call give the same bits as two calls of 100.

    A step is the same code in both, but a compiler may treat a loop's first pass apart from the
    others and round differently there. No specification forbids that, so only a run on the device
    tells.
    """
    start = time.perf_counter()
    x, u, points, lists = _chains()
    half = STEPS // 2

    def steps(state: tuple[Tensor, Tensor], first: int, count: int) -> tuple[Tensor, Tensor]:
        level = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([0.05]), torch.tensor([5.0]), (count,))
        at = backend.points(points)
        end = backend.langevin(*state, at, *lists, level, seed=3, first_step=first, scheme=scheme)
        return end.x, end.v

    try:
        whole = torch.cat(steps((x, u), 0, STEPS))
        halves = torch.cat(steps(steps((x, u), 0, half), half, STEPS - half))
    except EbmvkError as error:
        return Check(name, torch.inf, time.perf_counter() - start, str(error))
    seconds = time.perf_counter() - start
    different = int((whole != halves).sum())
    if not different:
        return Check(name, 0.0, seconds)
    failure = f"{STEPS} steps differ from 2 x {half} in {different} of {whole.numel()} numbers: resumed chains change"
    return Check(name, torch.inf, seconds, failure)


def _difference(got: Tensor, want: Tensor) -> float:
    got = got.detach().cpu()
    if got.shape != want.shape or (not want.is_floating_point() and not torch.equal(got, want)):
        return torch.inf
    error = float((got.double() - want.double()).square().sum() / want.double().square().sum().clamp_min(1e-30))
    return torch.inf if math.isnan(error) else error


def _chains() -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """x, v, points, and the candidates' ids, logw, kappa and log_background."""
    g = torch.Generator().manual_seed(2)
    x, points = (
        torch.nn.functional.normalize(torch.randn(rows, DIMENSION, generator=g), dim=1) for rows in (ROWS, POINTS)
    )
    u = torch.randn(ROWS, DIMENSION, generator=g)
    u = u - (u * x).sum(1, keepdim=True) * x
    ids = torch.randint(POINTS, (ROWS, CANDIDATES), generator=g)
    kappa = 50 * torch.rand(ROWS, CANDIDATES, generator=g)
    logw = torch.randn(ROWS, CANDIDATES, generator=g)
    return x, u, points, (ids, logw, kappa, torch.randn(ROWS, generator=g))


def _operations() -> dict[str, Callable[[Backend], list[Tensor]]]:
    sizes = {"B": ROWS, "d": DIMENSION, "N": POINTS, "K": CANDIDATES}
    x, u, points, lists = _chains()
    levels = Schedule(
        torch.tensor([0.5, 1.0]), torch.tensor([0.1, 0.0]), torch.tensor([0.02, 0.01]), torch.tensor([5.0, 7.0]), (3, 2)
    )

    def langevin(backend: Backend, scheme: str, storage: Storage = "float32") -> list[Tensor]:
        at = backend.points(points, storage)
        out = backend.langevin(x, u, at, *lists, levels, seed=3, scheme=scheme)
        return [out.x, out.v, out.diagnostics.energy, out.diagnostics.kinetic_temperature, out.diagnostics.acceptance]

    def example(backend: Backend, name: str, storage: Storage = "float32") -> list[Tensor]:
        given = examples.arguments(name, sizes)
        if "points" in given:
            given["points"] = backend.points(given["points"], storage)
        return examples.tensors(getattr(backend, name)(**given))

    return {
        **{name: partial(example, name=name) for name in OPERATIONS},
        "topk (float16)": partial(example, name="topk", storage="float16"),
        "langevin": partial(langevin, scheme="gbaoab"),
        "langevin (float16)": partial(langevin, scheme="gbaoab", storage="float16"),
        **{f"langevin ({name})": partial(langevin, scheme=name) for name in INTEGRATORS if name != "gbaoab"},
    }


def repeat(backend: Backend) -> list[Check]:
    """Run every operation twice. Each must give the same bits again; its error is 0 if it does."""
    return [_check_repeated(name, operation, backend) for name, operation in _operations().items()]


def _check_repeated(name: str, operation: Callable[[Backend], list[Tensor]], backend: Backend) -> Check:
    start = time.perf_counter()
    try:
        pairs = list(zip(operation(backend), operation(backend), strict=True))
    except Exception as error:  # noqa: BLE001  # as in _check
        return Check(name, torch.inf, time.perf_counter() - start, _said(error))
    seconds = time.perf_counter() - start
    different = sum(int((one != two).sum()) for one, two in pairs)
    failure = f"two runs differ in {different} of {sum(one.numel() for one, _ in pairs)} numbers" if different else ""
    return Check(name, torch.inf if different else 0.0, seconds, failure)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, EbmvkError) else f"{type(error).__name__}: {error}"
