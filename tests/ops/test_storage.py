"""Points stored in float16: every operation works on the rounded rows, as if these had been given
in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_problems import Candidates, candidates, nmse, schedule, unit
from torch import Tensor

from ebmvk.engine import Backend, Points, Storage
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError

Run = Callable[[Backend, Points, Candidates], list[Tensor]]


def topk(backend: Backend, points: Points, p: Candidates) -> list[Tensor]:
    n = p.points.shape[0]
    g = torch.Generator().manual_seed(1)
    weights = {"scale": torch.rand(n, generator=g), "bias": torch.randn(n, generator=g)}
    plain, weighted = backend.topk(p.x, points, min(n, 9)), backend.topk(p.v, points, n, **weights)
    return [plain.scores, weighted.scores]


def energy_score(backend: Backend, points: Points, p: Candidates) -> list[Tensor]:
    out = backend.energy_score(p.x, points, *p.lists)
    return [out.energy, out.score, out.responsibilities, out.background]


def backward(backend: Backend, points: Points, p: Candidates) -> list[Tensor]:
    out = backend.energy_score_backward(p.x, points, *p.lists, p.x[:, 0].contiguous(), p.v)
    return [out.x, out.points, out.logw, out.kappa, out.log_background]


def langevin(backend: Backend, points: Points, p: Candidates) -> list[Tensor]:
    out = backend.langevin(p.x, p.v, points, *p.lists, schedule(3, 0, 2), seed=5)
    return [out.x, out.v, out.diagnostics.energy, out.diagnostics.kinetic_temperature]


def ghmc(backend: Backend, points: Points, p: Candidates) -> list[Tensor]:
    out = backend.langevin(p.x, p.v, points, *p.lists, schedule(2, 1), seed=5, scheme="ghmc", leapfrogs=3)
    return [out.x, out.v, out.diagnostics.energy, out.diagnostics.acceptance]


OPERATIONS: dict[str, Run] = {f.__name__: f for f in (topk, energy_score, backward, langevin, ghmc)}

# (B, K, d, N): one, primes, one more and one less than whole quads.
SHAPES = [(1, 1, 2, 1), (3, 7, 5, 31), (2, 65, 63, 129), (4, 9, 640, 97)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPERATIONS)
def test_results_match_float32_on_rounded_rows(
    backend: Backend, oracle: Reference, op: str, shape: tuple[int, ...]
) -> None:
    b, k, d, n = shape
    p = candidates(b, k, d, n, kappa=5.0)
    rounded = p.points.half().float()
    run = OPERATIONS[op]
    got = run(backend, backend.points(p.points, "float16"), p)
    same = run(backend, backend.points(rounded), p)
    near = run(oracle, oracle.points(rounded), p)
    true = run(oracle, oracle.points(p.points), p)
    assert all(map(torch.equal, got, same))
    for value, of_rounded, of_rows in zip(got, near, true, strict=True):
        assert nmse(value, of_rounded) <= 1e-9  # float32 roundings, as for float32 rows
        # A coordinate in float16 has a relative error of 3e-4, squared 1e-7
        assert nmse(value, of_rows) <= 1e-5


@pytest.mark.parametrize("shape", [(3, 7, 5, 31)], ids=str)
def test_an_update_rounds_the_rows_too(backend: Backend, shape: tuple[int, ...]) -> None:
    p, other = candidates(*shape), candidates(*shape, seed=1)
    points = backend.points(other.points, storage="float16")
    points.update(p.points)
    assert points.storage == "float16"
    assert backend.points(p.points).storage == "float32"
    fresh = energy_score(backend, backend.points(p.points, storage="float16"), p)
    assert all(map(torch.equal, energy_score(backend, points, p), fresh))


def test_every_coordinate_is_rounded_to_nearest_even(backend: Backend) -> None:
    """Coordinates between 2^-30 and 1, on ties between two halves, next to them, and subnormal:
    read back exactly.
    """
    g = torch.Generator().manual_seed(2)
    halves = torch.arange(0x3C00, dtype=torch.int16).view(torch.float16).float()[::7]  # [0, 1)
    ties = (halves + torch.nextafter(halves.half(), torch.tensor(1.0).half()).float()) / 2
    beside = [torch.nextafter(ties, torch.tensor(side)) for side in (0.0, 1.0)]
    fine = torch.exp2(-30 * torch.rand(2000, generator=g))
    first = torch.cat((halves, ties, *beside, fine)).clamp_max(1.0)
    first[::2] *= -1
    rows = torch.stack((first, (1 - first.double() ** 2).sqrt().float()), dim=1)
    for part in rows.split(1500):
        points = backend.points(part.contiguous(), "float16")
        for column, query in enumerate(torch.eye(2)):
            found = backend.topk(query[None], points, len(part))
            read = torch.empty(len(part)).index_put_((found.ids[0],), found.scores[0])
            assert torch.equal(read, part.half().float()[:, column])


def test_an_unknown_storage_is_named(backend: Backend) -> None:
    rows = unit(3, 4, generator=torch.Generator().manual_seed(0))
    bad: list[Storage] = ["float64", "half", ""]  # type: ignore[list-item]
    for storage in bad:
        with pytest.raises(ArgumentError, match=f"storage is '{storage}'; expected float32 or float16"):
            backend.points(rows, storage)
