"""GHMC, gradients, vMF samples and statistics on Vulkan: variants, shards, slices, validation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from vulkan_open import ORACLE, guarded, mixture, nmse, open_vulkan, schedule, tangent, unit

from ebmvk.engine import Backend
from ebmvk.engine.vulkan import Vulkan

# float32 against float64, as for the other kernels.
FLOAT32 = 1e-9

VARIANTS = {
    "usual": {},
    "portable": {"portable": True},
    "gpu": {"pretend": "gpu"},  # chooses kernels and workgroups as for a GPU
    "smallest": {"pretend": "smallest"},  # as for a GPU with the least that Vulkan allows
    "shards": {"shard_bytes": 16 * 40 * 4},
    "slices": {"slice_seconds": 1e-9},  # one entry, chain or step per submission
}


@pytest.fixture(scope="module", params=VARIANTS)
def vulkan(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    """With guard bands, poisoned buffers and the validation layers."""
    yield from guarded(**VARIANTS[request.param])


@pytest.fixture(scope="module")
def plain() -> Vulkan:
    return open_vulkan()


def ghmc(backend: Backend, rows: int, d: int, k: int, n: int) -> list[Tensor]:
    x = unit(rows, d, 1)
    out = backend.langevin(
        *(x, tangent(x, 2), backend.points(unit(n, d, 4)), *mixture(rows, k, n, 3), schedule((3, 0, 2))),
        seed=2**63 + 5,
        first_step=7,
        first_chain=11,
        temperature=0.8,
        scheme="ghmc",
        leapfrogs=3,
    )
    return [out.x, out.v, out.diagnostics.energy, out.diagnostics.kinetic_temperature, out.diagnostics.acceptance]


def gradients(backend: Backend, rows: int, d: int, k: int, n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    cotangents = torch.randn(rows, generator=g), torch.randn(rows, d, generator=g)
    out = backend.energy_score_backward(
        unit(rows, d, 1), backend.points(unit(n, d, 4)), *mixture(rows, k, n, 3), *cotangents
    )
    return [out.x, out.points, out.logw, out.kappa, out.log_background]


def samples(backend: Backend, rows: int, d: int, k: int, n: int) -> list[Tensor]:
    return [backend.vmf_sample(unit(rows, d, 1), torch.linspace(0, 90, rows), seed=2**40 + 3, first_row=k)]


def statistics(backend: Backend, rows: int, d: int, k: int, n: int) -> list[Tensor]:
    ids, logw, *_ = mixture(rows, k, n, 3)
    tokens = torch.arange(rows) % 3
    out = backend.accumulate(unit(rows, d, 1), ids, logw.exp(), tokens, n)
    return [out.mass, out.resultant, out.splat_token, out.counts]


OPERATIONS = {"ghmc": ghmc, "gradients": gradients, "samples": samples, "statistics": statistics}


@pytest.mark.parametrize("operation", OPERATIONS)
# Odd dimensions end inside a quad; one point shared by all; more entries than one invocation has
# quads.
@pytest.mark.parametrize(("rows", "d", "k", "n"), [(1, 2, 1, 1), (3, 3, 7, 1), (5, 33, 15, 50)], ids=str)
def test_operations_match_the_oracle(vulkan: Vulkan, operation: str, rows: int, d: int, k: int, n: int) -> None:
    got, want = (OPERATIONS[operation](backend, rows, d, k, n) for backend in (vulkan, ORACLE))
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert nmse(a, b) < FLOAT32


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("options", ["shards", "slices"])
def test_shards_and_slices_change_no_bit(plain: Vulkan, operation: str, options: str) -> None:
    other = open_vulkan(**VARIANTS[options])
    for a, b in zip(*(OPERATIONS[operation](one, 6, 33, 9, 40) for one in (plain, other)), strict=True):
        assert torch.equal(a, b)


def test_a_point_may_have_very_many_entries(plain: Vulkan) -> None:
    """More entries than llvmpipe's limit on loops, which would silently cut them."""
    x, ids = unit(1200, 33, 1), torch.zeros(1200, 64, dtype=torch.int64)
    out = plain.accumulate(x, ids, torch.ones(1200, 64), torch.zeros(1200, dtype=torch.int64), 2)
    assert out.mass.tolist() == [1200 * 64, 0]  # whole numbers are exact
    # 76,800 roundings of one sum after the other
    assert nmse(out.resultant[0], 64 * x.double().sum(0)) < 1e-8


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wide_rows_match_the_oracle(plain: Vulkan, operation: str) -> None:
    """More quads than a workgroup has invocations."""
    got, want = (OPERATIONS[operation](backend, 2, 1029, 70, 71) for backend in (plain, ORACLE))
    assert all(nmse(a, b) < FLOAT32 for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_rows_give_empty_results(plain: Vulkan, operation: str) -> None:
    got, want = (OPERATIONS[operation](backend, 0, 5, 2, 4) for backend in (plain, ORACLE))
    assert [a.shape for a in got] == [b.shape for b in want]
    assert not any(a.float().abs().sum() for a in got)
