"""Modules reach the driver without specialisation constants, so that no driver can ignore their
values."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from spirv import CONSTANT, DECORATE, EXECUTION_MODE, SPEC_CONSTANTS, TYPE_ARRAY, instructions

vulkan = pytest.importorskip("ebmvk._vulkan", reason="the Vulkan extension is not built")

KERNELS = vulkan.kernels()
NAMES = [f"{name}-{variant.name}-{storage.name}" for name, variant, storage in KERNELS]
SPEC_ID, LOCAL_SIZE = 1, 17  # a decoration and an execution mode
# The workgroup's size, then up to five constants: all different, so that a mix-up shows.
VALUES = [96, 3, 64, 4, 7, 5]


def numbers_of_constants(module: bytes) -> set[int]:
    return {ids[2] for op, ids in instructions(module) if op == DECORATE and ids[1] == SPEC_ID}


def array_lengths(module: bytes) -> list[int]:
    parts = list(instructions(module))
    numbers = {ids[1]: ids[2] for op, ids in parts if op == CONSTANT}
    return [numbers[ids[2]] for op, ids in parts if op == TYPE_ARRAY]


def local_size(module: bytes) -> tuple[int, ...]:
    return next(ids[2:] for op, ids in instructions(module) if op == EXECUTION_MODE and ids[1] == LOCAL_SIZE)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_no_kernel_keeps_a_specialisation_constant(kernel: tuple[str, Any, Any], tmp_path: Path) -> None:
    original, module = vulkan.module_of(*kernel), vulkan.module_of(*kernel, VALUES)
    assert not numbers_of_constants(module)
    assert not any(op in SPEC_CONSTANTS for op, _ in instructions(module))
    sized = 0 in numbers_of_constants(original)
    assert local_size(module) == ((VALUES[0], 1, 1) if sized else local_size(original))
    if shutil.which("spirv-val"):
        (path := tmp_path / "module.spv").write_bytes(module)
        subprocess.run(["spirv-val", "--target-env", "vulkan1.2", str(path)], check=True)


def test_shared_arrays_get_their_size_from_the_values() -> None:
    """Every array of the chain kernels, which use all constants and expressions of them."""
    group, quads, candidates, subgroups, held, lane_quads = VALUES
    lanes = group // subgroups
    row = lane_quads * lanes
    resident = [
        held * lane_quads,
        row,  # the whole state, velocity and noise
        4 * min(subgroups, 8) * row,  # parts of the force
        held * subgroups,  # terms
        lanes,  # what a chain keeps
    ]
    streamed = [
        quads,  # state, force, velocity and noise
        (group + 3) // 4,  # reductions: a part for each subgroup of 4
        2,  # of which there are two
        3 * subgroups,  # inner products
        candidates,  # row, law, dot and weight
        group * quads,  # the whole state
    ]
    for variant, want in ((vulkan.Variant.resident, resident), (vulkan.Variant.subgroup, streamed)):
        lengths = array_lengths(vulkan.module_of("gbaoab", variant, vulkan.Storage.float16, VALUES))
        assert set(want) <= set(lengths)
        assert 1 not in lengths  # the default of every constant


@pytest.mark.skipif(not shutil.which("spirv-opt"), reason="spirv-opt is missing; apt install spirv-tools")
@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_expressions_of_constants_have_the_values_that_spirv_opt_gives_them(
    kernel: tuple[str, Any, Any], tmp_path: Path
) -> None:
    """Khronos's optimiser computes them from defaults, so the defaults are replaced first."""
    source, folded = tmp_path / "in.spv", tmp_path / "out.spv"
    source.write_bytes(vulkan.module_of(*kernel))
    defaults = " ".join(f"{number}:{value}" for number, value in enumerate(VALUES))
    passes = ["--freeze-spec-const", "--fold-spec-const-op-composite"]
    command = ["spirv-opt", f"--set-spec-const-default-value={defaults}", *passes, str(source), "-o", str(folded)]
    subprocess.run(command, check=True)
    assert array_lengths(vulkan.module_of(*kernel, VALUES)) == array_lengths(folded.read_bytes())
