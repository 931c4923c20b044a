"""Integrators with candidates in registers follow the oracle, bit for bit however they are cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from vulkan_open import ORACLE, mixture, nmse, open_vulkan, schedule, tangent, unit

from ebmvk.engine import Backend, LangevinResult, Scheme, Storage
from ebmvk.engine.vulkan import Vulkan


def open_resident(**options: bool | float | str) -> Vulkan:
    backend = open_vulkan(**options)
    backend._engine.set_resident(True)
    return backend


@pytest.fixture(scope="module")
def vulkan() -> Iterator[Vulkan]:
    """With guard bands, poisoned buffers and the validation layers."""
    backend = open_resident(validate=True, guard=True)
    if not backend.capabilities.subgroup_control:
        pytest.skip("the device does not control the size of its subgroups")
    yield backend
    assert backend._engine.damaged_guards() == ""
    assert backend._engine.take_messages() == []


def holds(backend: Vulkan, shape: tuple[int, int, int, int], storage: Storage, scheme: Scheme) -> bool:
    """True if the backend, which has run nothing before, keeps this problem's candidates."""
    run(backend, shape, storage, scheme, steps=(1,))
    kinds = backend._extension
    kind = (scheme, kinds.Variant.resident, getattr(kinds.Storage, storage))
    return kind in backend._engine.used_kernels()


def run(
    backend: Backend,
    shape: tuple[int, int, int, int],
    storage: Storage,
    scheme: Scheme = "gbaoab",
    steps: tuple[int, ...] = (4, 0, 3),
    first: int = 0,
    start: LangevinResult | None = None,
    rows_from: int = 0,
) -> LangevinResult:
    rows, d, k, n = shape
    x = unit(rows, d, 1) if start is None else start.x
    v = tangent(x, 2) if start is None else start.v
    part = slice(rows_from, None)
    return backend.langevin(
        *(tensor[part].contiguous() for tensor in (x, v)),
        backend.points(unit(n, d, 4), storage),
        *(tensor[part].contiguous() for tensor in mixture(rows, k, n, 3)),
        schedule(steps),
        seed=2**63 + 5,
        first_step=7 + first,
        first_chain=11 + rows_from,
        temperature=0.8,
        scheme=scheme,
        leapfrogs=3,
    )


# Less than a quad; quads and candidates that leave lanes and subgroups without one; the size of the
# model, which fits in float16 only.
SHAPES = [(1, 2, 1, 1), (3, 3, 7, 5), (5, 33, 33, 50), (4, 129, 17, 40), (2, 640, 64, 70)]


@pytest.mark.parametrize(
    ("shape", "storage", "scheme"),
    [
        *((shape, "float16", "gbaoab") for shape in SHAPES),
        *((shape, "float32", "gbaoab") for shape in SHAPES[1:4]),
        ((2, 640, 32, 70), "float32", "gbaoab"),  # subgroups take turns with their parts of the sum
        *((SHAPES[2], storage, "ghmc") for storage in ("float16", "float32")),
        *((SHAPES[2], storage, "obabo") for storage in ("float16", "float32")),
        (SHAPES[2], "float32", "ghmc_two_stage"),
    ],
    ids=str,
)
def test_trajectories_follow_the_oracle(
    vulkan: Vulkan, shape: tuple[int, int, int, int], storage: Storage, scheme: Scheme
) -> None:
    got, want = run(vulkan, shape, storage, scheme), run(ORACLE, shape, storage, scheme)
    for name in ("x", "v"):
        # float32, as for streamed candidates
        assert nmse(getattr(got, name), getattr(want, name)) < 1e-9
    for name in ("energy", "kinetic_temperature", "acceptance"):
        assert nmse(getattr(got.diagnostics, name), getattr(want.diagnostics, name)) < 1e-9
    # A difference of energies near 100, each rounded to 1e-5: absolute.
    assert (got.diagnostics.energy_error - want.diagnostics.energy_error).abs().max() < 1e-4
    assert got.diagnostics.tangency.max() < 2e-6


def test_candidates_are_kept_in_registers_only_if_they_fit(vulkan: Vulkan) -> None:
    for shape in SHAPES:
        assert holds(open_resident(), shape, "float16", "gbaoab")
        if shape in SHAPES[1:4]:
            assert holds(open_resident(), shape, "float32", "gbaoab")
    assert holds(open_resident(), SHAPES[2], "float16", "ghmc")
    # 320 KiB: more than any register file
    assert not holds(open_resident(), (1, 1280, 64, 70), "float32", "gbaoab")
    assert not holds(open_vulkan(), SHAPES[2], "float16", "gbaoab")  # a CPU streams candidates
    assert not holds(open_resident(portable=True), SHAPES[2], "float16", "gbaoab")


@pytest.mark.parametrize("scheme", ["gbaoab", "ghmc"])
def test_slices_and_resumption_change_no_bit(vulkan: Vulkan, scheme: Scheme) -> None:
    """Steps in one call, in two, and in one submission per chain and step."""
    shape, storage = (3, 33, 33, 50), "float16"
    whole = run(vulkan, shape, storage, scheme, (30, 20))
    half = run(vulkan, shape, storage, scheme, (25, 0))
    rest = run(vulkan, shape, storage, scheme, (5, 20), first=25, start=half)
    sliced = open_resident(slice_seconds=1e-9)
    cut = run(sliced, shape, storage, scheme, (30, 20))
    assert sliced.counts()["langevin"].dispatches == 3 * 50
    for other in (rest, cut):
        assert torch.equal(whole.x, other.x)
        assert torch.equal(whole.v, other.v)
    assert torch.equal(whole.diagnostics.energy_error, cut.diagnostics.energy_error)


@pytest.mark.parametrize(("storage", "scheme"), [("float32", "gbaoab"), ("float16", "gbaoab"), ("float16", "ghmc")])
def test_batches_and_shards_change_no_bit(vulkan: Vulkan, scheme: Scheme, storage: Storage) -> None:
    shape = (5, 33, 33, 200)
    whole = run(vulkan, shape, storage, scheme)
    part = run(vulkan, shape, storage, scheme, rows_from=2)
    sharded = open_resident(shard_bytes=10240)
    assert sharded.points(unit(200, 33, 4), storage).native.shards > 1
    gathered = run(sharded, shape, storage, scheme)
    assert torch.equal(whole.x[2:], part.x)
    assert torch.equal(whole.v[2:], part.v)
    assert torch.equal(whole.x, gathered.x)
    assert torch.equal(whole.v, gathered.v)
