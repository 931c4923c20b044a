"""Devices that nobody has here: decisions from what their drivers report, their pretended limits,
the width of their subgroups, and their compilers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from op_problems import candidates
from op_table import OPERATIONS, same_bits
from spirv import write_fast_math
from vulkan_grid import LONG, PROFILES, check, names
from vulkan_open import open_vulkan, skip_own_width, unit

from ebmvk.engine.api import Schedule
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError

vulkan = pytest.importorskip("ebmvk._vulkan", reason="the Vulkan extension is not built")

AMD, NVIDIA, INTEL, APPLE, ARM = 0x1002, 0x10DE, 0x8086, 0x106B, 0x13B5
WIDTHS = (128, 256, 512)  # bits of llvmpipe's vectors: subgroups of 4, 8 and 16


def device(
    vendor: int, sizes: tuple[int, int, int], *, selectable: bool, full: bool = True, moltenvk: bool = False
) -> Any:
    """A device as its driver reports it. sizes: smallest, usual and largest subgroup."""
    made = vulkan.Capabilities()
    made.vendor, made.moltenvk = vendor, moltenvk
    made.subgroup_min, made.subgroup_reported, made.subgroup_max = sizes
    made.subgroup_full, made.subgroup_selectable = full, selectable
    made.decide()
    return made


@pytest.mark.parametrize(
    ("reported", "size", "control", "required", "registers"),
    [
        pytest.param(device(AMD, (32, 64, 64), selectable=True), 32, True, True, 160, id="RDNA"),
        pytest.param(device(AMD, (64, 64, 64), selectable=False), 64, True, False, 128, id="GCN and Vega"),
        pytest.param(device(NVIDIA, (32, 32, 32), selectable=True), 32, True, True, 160, id="NVIDIA"),
        pytest.param(device(INTEL, (8, 32, 32), selectable=True), 16, True, True, 64, id="Intel up to Xe-LP"),
        pytest.param(device(INTEL, (16, 32, 32), selectable=True), 16, True, True, 128, id="Intel Xe2"),
        pytest.param(device(ARM, (16, 16, 16), selectable=False), 16, True, False, 64, id="Mali"),
        pytest.param(
            device(APPLE, (4, 32, 32), selectable=False, moltenvk=True), 32, False, False, 128, id="Apple, MoltenVK"
        ),
        # MoltenVK reports sizes from a table by vendor; Metal chooses, and MoltenVK can't know.
        pytest.param(
            device(AMD, (64, 64, 64), selectable=False, moltenvk=True), 64, False, False, 128, id="AMD, MoltenVK"
        ),
        pytest.param(
            device(0x9999, (32, 64, 128), selectable=False), 64, False, False, 64, id="unknown, several sizes"
        ),
        pytest.param(device(0x9999, (32, 32, 32), selectable=False, full=False), 32, False, False, 64, id="not full"),
        pytest.param(device(0x9999, (0, 32, 0), selectable=False, full=False), 32, False, False, 64, id="Vulkan 1.2"),
    ],
)
def test_subgroups_and_registers_follow_from_what_the_driver_reports(
    reported: Any, size: int, control: bool, required: bool, registers: int
) -> None:
    assert reported.subgroup_size == size
    assert reported.subgroup_control == control
    assert reported.subgroup_required == required
    assert reported.registers == registers


def test_profiles_only_shrink_limits() -> None:
    own = open_vulkan().capabilities
    limits = ("max_group_size", "max_shared_bytes", "max_storage_range", "max_groups")
    features = ("float16", "subgroup_arithmetic", "subgroup_full", "subgroup_selectable")
    for profile in vulkan.profiles():
        pretended = own.pretend(profile)
        assert all(getattr(pretended, limit) <= getattr(own, limit) for limit in limits), profile
        assert all(getattr(own, feature) or not getattr(pretended, feature) for feature in features), profile
        assert pretended.type != "cpu"
    smallest = own.pretend("smallest")
    assert (smallest.max_group_size, smallest.max_shared_bytes) == (128, 16384)


def test_an_unknown_profile_is_refused() -> None:
    open_vulkan()
    with pytest.raises(ValueError, match="smallest, rdna2"):
        Vulkan(options={"pretend": "abacus"})


@pytest.mark.parametrize("profile", ["intel", "mali", "midgard"])
def test_few_registers_rule_out_large_tiles_and_candidates_in_registers(profile: str) -> None:
    backend = open_vulkan(pretend=profile)
    assert "square" not in " ".join(words for _, words in vulkan.tilings(backend.capabilities))
    OPERATIONS["langevin"].run(backend)
    assert vulkan.Variant.resident not in {variant for _, variant, _ in backend._engine.used_kernels()}


def test_a_device_with_one_size_uses_subgroups_without_asking_for_it() -> None:
    """As on GCN. The layers would report a request for a size, which isn't allowed there."""
    backend = open_vulkan(pretend="vega", validate=True)
    if not backend.capabilities.subgroup_arithmetic:
        pytest.skip("the device has no subgroup arithmetic")
    assert not backend.capabilities.subgroup_required
    for name in ("projx", "langevin"):
        OPERATIONS[name].run(backend)
    used = {variant for _, variant, _ in backend._engine.used_kernels()}
    assert used == {vulkan.Variant.subgroup, vulkan.Variant.resident}
    assert backend._engine.take_messages() == []


# ---- all operations, on every profile and width --------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_every_operation_is_right_on_every_profile(profile: str) -> None:
    assert check(profile) == []


def run_grid(width: int, *arguments: str) -> dict[str, Any]:
    """The grid in a process of its own, because llvmpipe reads its width once."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "LP_NATIVE_VECTOR_WIDTH": str(width),
        "PYTHONPATH": os.pathsep.join((str(here.parents[1]), str(here))),
    }
    command = [sys.executable, str(here / "vulkan_grid.py"), *arguments]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    record: dict[str, Any] = json.loads(said.stdout)
    if "llvmpipe" not in record["device"]:
        pytest.skip(f"{record['device']} has one width only")
    assert record["subgroup"] == width // 32
    return record


@cache
def usual_grid(width: int) -> dict[str, Any]:
    """The usual grid and sorts, from one process for both tests of a width."""
    return run_grid(width)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_operation_is_right_at_every_width_of_subgroups(width: int) -> None:
    """With the profile "gpu". test_vulkan_kernels.py tests it at the width of this process."""
    skip_own_width(width)
    assert usual_grid(width)["wrong"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_sort_is_right_at_every_width_of_subgroups(width: int) -> None:
    """At the width of this process test_vulkan_sort.py has it."""
    skip_own_width(width)
    assert usual_grid(width)["unsorted"] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("profile", names())
def test_every_operation_is_right_on_the_long_grid(profile: str, width: int) -> None:
    """The long grid has all shapes and variants."""
    assert run_grid(width, LONG, profile)["wrong"] == []


# ---- compilers that assume no NaN and no -0 ------------------------------------------------------


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vulkan]:
    """A driver whose compiler assumes what Vulkan lets it assume about floats."""
    open_vulkan()
    write_fast_math(vulkan, folder := tmp_path_factory.mktemp("modules"))
    backend = open_vulkan(validate=True, modules=str(folder))
    yield backend
    assert backend._engine.take_messages() == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_fast_math_changes_no_bit_of_ordinary_numbers(fast: Vulkan, name: str) -> None:
    assert same_bits(OPERATIONS[name].run(fast), OPERATIONS[name].run(open_vulkan()))


def test_a_trajectory_that_blows_up_is_rejected_with_fast_math(fast: Vulkan) -> None:
    """Steps so long that the velocity overflows: every number of the trajectory is NaN."""
    p = candidates(5, 8, 33, kappa=1e12)
    p = replace(p, logw=torch.zeros_like(p.logw))
    level = Schedule(torch.ones(1), torch.zeros(1), torch.tensor([1e15]), torch.zeros(1), (3,))
    for backend in (open_vulkan(), fast):
        end = backend.langevin(p.x, p.v, backend.points(p.points), *p.lists, level, seed=1, scheme="ghmc", leapfrogs=2)
        assert torch.equal(end.diagnostics.acceptance, torch.zeros(5))
        assert torch.equal(end.x, p.x)
        assert bool(end.diagnostics.energy.isfinite().all())


def test_minus_zero_ties_with_zero_with_fast_math(fast: Vulkan) -> None:
    """Half of the scores are -0: -1 times 0, plus a bias of -0."""
    n = 40
    weights = {"scale": -torch.ones(n), "bias": torch.zeros(n)}
    weights["bias"][: n // 2] = -0.0
    for backend in (open_vulkan(), fast):
        found = backend.topk(torch.zeros(2, 8), backend.points(unit(n, 8, 1)), 30, **weights)
        assert torch.equal(found.ids, torch.arange(30).expand(2, 30))
        assert torch.equal(found.scores.view(torch.int32), torch.zeros(2, 30, dtype=torch.int32))


def test_scores_that_are_nan_come_last_with_fast_math(fast: Vulkan) -> None:
    """Arguments with NaN are refused, so these go to the extension directly."""
    mu = unit(40, 8, 1)
    bias = torch.zeros(40)
    bias[:10] = torch.nan
    for backend in (open_vulkan(), fast):
        points = backend.points(mu)
        scores, ids = backend._engine.topk(unit(1, 8, 2).numpy(), points.native, 30, None, bias.numpy())
        assert set(ids[0].tolist()) == set(range(10, 40))
        assert torch.from_numpy(scores).isfinite().all()


def test_a_folder_without_a_module_is_refused(tmp_path: Path) -> None:
    backend = open_vulkan(modules=str(tmp_path))
    with pytest.raises(ArgumentError, match=r"sphere_projx\.\w+\.float32\.spv"):
        backend.projx(unit(2, 8, 1))
