"""Bounds on the machine code that RADV makes of every kernel for AMD cards that aren't there. The
compiled pipelines must be those that the operations use."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from vulkan_open import INDEX, mixture, open_vulkan, schedule, tangent, unit

from bench import isa
from bench.isa_compile import FAMILIES, driver_file
from bench.isa_estimate import CHIPS
from ebmvk.engine import examples
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.operations import TABLES
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError


class Ceiling(NamedTuple):
    """The most registers of a lane on each family, and bytes of shared memory of a workgroup."""

    navi23: int
    vega10: int
    navi31: int
    lds: int


# Kernels with a workgroup per row that only adds up, and all others without an entry below.
ROW = Ceiling(48, 24, 48, 6144)
# By kernel, or by kernel and variant if variants differ; at d = 640 and 64 candidates. A ceiling is
# what Mesa 22.3 gives the kernel, in steps of the register file, or one step more if that costs no
# wave. All registers that a SIMD with its largest number of waves leaves free are allowed, too,
# because newer drivers take them. On navi31 the ceilings of resident kernels are those of Mesa 25,
# because Mesa 22.3 spills them. On vega10 Mesa 25.0 gives some kernels more registers, with as many
# waves; these are their ceilings.
CEILINGS: dict[str | tuple[str, str], Ceiling] = {
    # Integrators that have no line of their own below.
    **{name: Ceiling(80, 72, 96, 10752) for name in INTEGRATORS},
    **{(name, "resident"): Ceiling(160, 256, 240, 35328) for name in INTEGRATORS},
    "sphere_projx": Ceiling(32, 20, 48, 6144),
    "sphere_proju": Ceiling(48, 20, 48, 6144),
    "sphere_expmap": Ceiling(32, 20, 48, 6144),
    "vmf_sample": Ceiling(32, 32, 48, 6144),
    "energy_score": Ceiling(48, 32, 48, 10752),
    "energy_gradients": Ceiling(48, 36, 72, 11264),
    "gather": Ceiling(16, 12, 24, 0),
    "gbaoab": Ceiling(64, 52, 96, 10752),
    "obabo": Ceiling(64, 60, 96, 10752),
    "ghmc": Ceiling(80, 64, 96, 10752),
    "ghmc_two_stage": Ceiling(80, 72, 96, 10752),
    ("gbaoab", "resident"): Ceiling(128, 256, 216, 30208),
    ("obabo", "resident"): Ceiling(128, 256, 216, 32768),
    "chain_report": Ceiling(24, 16, 24, 0),
    "sort_count": Ceiling(16, 12, 24, 8192),
    "sort_scatter": Ceiling(16, 12, 24, 8192),
    "scan_counts": Ceiling(16, 12, 24, 1024),
    "segment_count": Ceiling(24, 16, 24, 1024),
    "segment_place": Ceiling(24, 16, 24, 1024),
    "segment_total": Ceiling(16, 12, 24, 0),
    "share_keys": Ceiling(16, 8, 24, 0),
    "pair_words": Ceiling(16, 8, 24, 0),
    "segment_sum": Ceiling(24, 20, 36, 0),
    "chain_start": Ceiling(32, 32, 48, 6144),
    "candidate_law": Ceiling(32, 16, 48, 9216),
    "draw_token": Ceiling(32, 20, 48, 10752),
    "level_law": Ceiling(16, 8, 24, 0),
    "score_tiled": Ceiling(128, 128, 128, 16896),
    "select_topk": Ceiling(24, 20, 36, 5632),
    "rescore": Ceiling(24, 20, 36, 9728),
    "prove_topk": Ceiling(24, 20, 36, 1536),
    "row_norms": Ceiling(32, 12, 48, 6144),
    "halve": Ceiling(32, 20, 48, 6144),
    "scatter_rows": Ceiling(16, 8, 24, 0),
    "copy_rows": Ceiling(16, 8, 24, 0),
    "probe": Ceiling(24, 20, 36, 0),
    "ceiling_fma": Ceiling(32, 24, 36, 0),
    "score_matvec": Ceiling(24, 20, 36, 9728),
    "score_direct": Ceiling(48, 48, 48, 0),
    "matmul_tiled": Ceiling(128, 128, 128, 8704),
    "matmul_direct": Ceiling(64, 64, 64, 0),
    "matmul_lanes": Ceiling(128, 128, 128, 0),
    "matmul_join": Ceiling(24, 24, 24, 0),
    "sort_block": Ceiling(24, 24, 24, 8192),
    "sort_merge": Ceiling(24, 24, 24, 0),
    "scan_rows": Ceiling(24, 24, 24, 1024),
    "add_runs": Ceiling(24, 24, 24, 0),
    "add_parts": Ceiling(24, 24, 24, 0),
    "weakest_cut": Ceiling(64, 64, 64, 8192),
    "inverse": Ceiling(64, 64, 64, 4096),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    pytest.importorskip("ebmvk._vulkan", reason="the Vulkan engine is not built")
    try:
        driver_file()
    except DeviceError as error:
        pytest.skip(str(error))
    return isa.measured(request.param)


def shown(kernel: dict[str, Any]) -> str:
    return f"{kernel['name']} {kernel['variant']} {kernel['storage']} {kernel['group']} {kernel['constants']}"


def test_every_kernel_of_the_manifest_is_compiled(report: dict[str, Any]) -> None:
    """Each variant and storage, except those that need subgroups if the engine can't use any."""
    compiled = {(kernel["name"], kernel["variant"], kernel["storage"]) for kernel in report["kernels"]}
    subgroups = report["device"]["subgroups"]
    wanted = {tuple(entry) for entry in report["manifest"] if subgroups or entry[1] == "portable"}
    missing = sorted(" ".join(entry) for entry in wanted - compiled)
    stale = {name for name in CEILINGS if isinstance(name, str)} - {entry[0] for entry in report["manifest"]}
    assert not stale, f"CEILINGS has kernels that shaders/kernels.toml doesn't: {sorted(stale)}"
    assert not missing, (
        f"shaders/kernels.toml has {missing}, and Engine::pipelines doesn't list it: add to csrc/vulkan/ops/"
        "pipelines.cpp how the operation chooses its workgroup and constants"
    )


def test_no_kernel_spills(report: dict[str, Any]) -> None:
    assert [shown(kernel) for kernel in isa.spilling(report)] == []


def test_registers_and_shared_memory_stay_below_their_ceilings(report: dict[str, Any]) -> None:
    over = []
    for kernel in report["kernels"]:
        ceiling = CEILINGS.get((kernel["name"], kernel["variant"])) or CEILINGS.get(kernel["name"], ROW)
        vgprs = max(getattr(ceiling, report["family"]), CHIPS[report["family"]].free(kernel["wave"]))
        if kernel["vgprs"] > vgprs or kernel["lds"] > ceiling.lds:
            over.append(f"{shown(kernel)}: {kernel['vgprs']} registers, {kernel['lds']} bytes; {ceiling}")
    assert not over, f"if a kernel needs that much, give it an entry in CEILINGS in {Path(__file__).name}"


def test_the_hot_loop_of_the_tiled_scores_multiplies(report: dict[str, Any]) -> None:
    """A flat tile has fewer products for what it reads."""
    tiled = [kernel for kernel in report["kernels"] if kernel["name"] == "score_tiled"]
    assert {tuple(kernel["constants"]) for kernel in tiled} == {(8, 8), (2, 8)}
    for kernel in tiled:
        least = 0.8 if kernel["constants"] == [8, 8] else 0.65  # Mesa 22.3 reaches .85 and .7
        assert kernel["fma_share"] > least, shown(kernel)


def test_the_hot_loops_of_large_products_multiply(report: dict[str, Any]) -> None:
    """Products in which neighbours lie side by side in both matrices. The tiles are for navi23."""
    least = 0.85 if report["family"] == "navi23" else 0.75
    large = [
        kernel
        for kernel in report["kernels"]
        if kernel["name"] == "matmul_tiled" and kernel["constants"][1:3] == [8, 8] and 1 not in kernel["constants"][4:6]
    ]
    assert len(large) == 8
    for kernel in large:
        assert kernel["fma_share"] > least, shown(kernel)


def test_chains_on_rdna2_keep_candidates_in_registers(report: dict[str, Any]) -> None:
    """In both storages, with at least four waves per SIMD. Mesa 25.0 takes 160 registers for GHMC
    in float16; all else fits into 128."""
    if report["family"] != "navi23":
        pytest.skip("Vega streams candidates in float32")
    chosen = [k for k in report["kernels"] if k["name"] in INTEGRATORS and k["chosen"]]
    assert {(k["name"], k["storage"]) for k in chosen} == {(n, s) for n in INTEGRATORS for s in ("float32", "float16")}
    for kernel in chosen:
        assert kernel["variant"] == "resident", shown(kernel)
        assert kernel["vgprs"] <= (128 if kernel["storage"] == "float32" else 160), shown(kernel)
        assert kernel["waves"] >= 4, shown(kernel)
    assert report["estimates"]["langevin_float32"] > 0.3


def test_times_are_estimated_for_one_family(report: dict[str, Any]) -> None:
    if report["family"] != "navi23":
        assert report["estimates"] == {}
        return
    assert {"scoring", "topk", "langevin_float32", "langevin_float16"} <= set(report["estimates"])
    for name, share in report["estimates"].items():
        assert share is not None, report["estimate_details"][name]["missing"]
        assert 0 < share < 1, name
    assert report["estimates"]["topk"] < report["estimates"]["scoring"]
    assert report["estimates"]["scoring"] > 0.7
    assert report["estimates"]["topk"] > 0.65


D, K, N = 640, 64, 200  # N: enough for the scan in float16, and for two shards of each storage


def run_everything(vulkan: Vulkan, queries: Iterable[int]) -> None:
    """Every operation with both storages, at the sizes that pipelines are listed for."""
    sizes = {"B": 2, "d": D, "K": K, "N": N, "V": N}
    mu, x, v, law = unit(N, D, 1), unit(2, D, 2), tangent(unit(2, D, 2), 4), mixture(2, K, N, 5)
    for storage in ("float32", "float16"):
        points = vulkan.points(mu, storage)
        for name in TABLES:
            given = examples.arguments(name, sizes)
            getattr(vulkan, name)(**({**given, "points": points} if "points" in given else given))
        for scheme in INTEGRATORS:
            vulkan.langevin(x, v, points, *law, schedule((1,)), seed=1, scheme=scheme)
        for coarse in (False, True):
            vulkan._engine.set_coarse(coarse)
            for rows in queries:
                vulkan.topk(unit(rows, D, 6), points, K)
        points.update(mu[:2], ids=torch.tensor([3, 1]))
    points = vulkan.points(mu)
    ids, log_p = law[0], torch.full((2, N), -math.log(N))
    # On the device, logw is the top-k of an odd number of queries, in rows that can't be bound.
    vulkan.langevin(vulkan.tensor(x), v, points, *law, schedule((1,)), seed=1)
    vulkan.candidate_law(vulkan.tensor(log_p[:, :199].contiguous()), ids.clamp(max=198))
    digits = torch.zeros(1, dtype=torch.int32).numpy().view("uint32")
    for bits in range(1, 10):
        vulkan._engine.probe_sort(digits + (1 << bits) - 1, digits, 0, 1 << bits)
    vulkan.accumulate(vulkan.tensor(x), law[0], torch.rand(2, K), torch.zeros(2, dtype=torch.long), N)
    vulkan.arithmetic_seconds(64, 1, 1)
    words = torch.zeros(1, 4, dtype=torch.int32).numpy().view("uint32")
    vulkan._engine.probe(0, words, words)


def keys(pipelines: Iterable[Any]) -> set[tuple[Any, ...]]:
    return {(key.name, key.group, tuple(key.constants), key.storage.name, key.resident) for key in pipelines}


@pytest.mark.parametrize("options", [{}, {"portable": True}, {"pretend": "gpu"}], ids=str)
def test_the_listed_pipelines_are_those_that_the_operations_use(options: dict[str, Any]) -> None:
    vulkan = open_vulkan(shard_bytes=16 * 10240, **options)
    queries = (1, 2, 4, 32, 64)
    run_everything(vulkan, queries)
    listed = set().union(*(keys(vulkan._engine.pipelines(rows, D, K)) for rows in queries))
    used = keys(vulkan._engine.used_pipelines())
    assert used - listed == set(), "the operations use pipelines that csrc/vulkan/ops/pipelines.cpp doesn't list"
    assert listed - used == set(), "csrc/vulkan/ops/pipelines.cpp lists pipelines that no operation uses"


def test_machine_code_is_refused_on_a_device_that_runs() -> None:
    engine = open_vulkan()._engine
    with pytest.raises(RuntimeError, match="compile_only"):
        engine.inspect(engine.pipelines(1, D, K)[0])


def test_a_driver_without_machine_code_is_refused() -> None:
    if "llvmpipe" not in open_vulkan()._engine.capabilities.name:
        pytest.skip("this device is not lavapipe, which reports none")
    with pytest.raises(DeviceError, match="machine code"):
        Vulkan(INDEX, options={"compile_only": True})


DOUBLED = """#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint TIMES = 1u;
layout(push_constant) uniform Push { uint n; };
layout(set = 0, binding = 0) buffer Values { float values[]; };
void main() {
    float value = values[gl_GlobalInvocationID.x];
    for (uint i = 0u; i < n; ++i) value = fma(value, float(TIMES), 1.0);
    values[gl_GlobalInvocationID.x] = value;
}
"""


@pytest.fixture
def radv() -> None:
    try:
        driver_file()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("radv")
def test_a_module_from_elsewhere_goes_through_the_same_tool(tmp_path: Path) -> None:
    if not shutil.which("glslc"):
        pytest.skip("glslc is not installed")
    source, module, figures = (tmp_path / name for name in ("twice.comp", "twice.spv", "figures.json"))
    source.write_text(DOUBLED, encoding="utf-8")
    subprocess.run(["glslc", "--target-env=vulkan1.2", "-O", "-o", module, source], check=True)
    isa.main(["--spirv", str(module), "--bindings", "1", "--push", "4", "--constants", "32,3", "--subgroup", "32",
              "--json", str(figures), "--assembly", str(tmp_path / "code")])  # fmt: skip
    (kernel,) = json.loads(figures.read_text(encoding="utf-8"))["kernels"]
    assert (kernel["name"], kernel["wave"], kernel["group"], kernel["constants"]) == ("twice.spv", 32, 32, [3])
    promised = {"name", "variant", "vgprs", "lds", "waves", "spills", "scratch", "fma_share", "latency"}
    assert promised <= set(kernel)
    assert kernel["hot"]["fma"] == 1
    assert kernel["spills"] == kernel["scratch"] == kernel["lds"] == 0
    assert "s_endpgm" in (tmp_path / "code" / "twice.spv.32.3.txt").read_text(encoding="utf-8")


@pytest.mark.usefixtures("radv")
def test_other_files_and_constants_are_refused_with_their_reason(tmp_path: Path) -> None:
    wrong, cut = tmp_path / "wrong.spv", tmp_path / "cut.spv"
    wrong.write_bytes(b"not a module")
    cut.write_bytes(bytes.fromhex("03022307"))
    for path, flags, reason in (
        (wrong, [], "this is not a SPIR-V module"),
        (cut, [], "this is not a SPIR-V module"),
        (cut, ["--constants", "8,x"], "--constants 8,x: these are not integers"),
        (tmp_path / "none.spv", [], "none.spv: No such file"),
    ):
        with pytest.raises(SystemExit) as ended:
            isa.main(["--spirv", str(path), *flags])
        assert reason in str(ended.value)
