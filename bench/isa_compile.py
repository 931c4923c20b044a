"""Compiles the engine's pipelines with RADV for a card that is not there, in a process of its own.

RADV reads the family from RADV_FORCE_FAMILY, and the loader reads its driver from VK_DRIVER_FILES.
Both do so only once, so each family needs a process. RADV's device then has no memory and no queue
that works: pipelines are compiled and nothing is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebmvk.errors import DeviceError

if TYPE_CHECKING:
    from ebmvk import _vulkan

FAMILIES = {"navi23": ("navi23",), "vega10": ("vega10",), "navi31": ("navi31", "gfx1100")}
"""Each family's names in RADV, newest first: RADV of Mesa 22 calls navi31 gfx1100."""
DRIVERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
SECONDS = 300  # the longest that compiling everything for a family may take
UNITS = 16  # hidden units in the kernels of integrated information


@dataclass(frozen=True)
class Setting:
    """Sizes and settings of an engine, which decide the pipelines that it uses."""

    queries: int
    k: int
    scoring: str = "automatic"
    resident: bool | None = None
    portable: bool = False


@dataclass(frozen=True)
class Module:
    """A SPIR-V module from elsewhere, with what its pipeline needs.

    bindings: the number of storage buffers. constants: by id, from 0; the first is the workgroup's
    size. subgroup: the size to require; 0: the driver decides.
    """

    path: str
    bindings: int
    push: int
    constants: tuple[int, ...]
    subgroup: int


def driver_file() -> Path:
    """The loader's description of RADV. Raises DeviceError if it is not installed."""
    found = [path for folder in DRIVERS for path in sorted(Path(folder).glob("radeon_icd*.json"))]
    if not found:
        raise DeviceError(
            f"RADV is not installed: no radeon_icd*.json in {', '.join(DRIVERS)}",
            hint="apt install mesa-vulkan-drivers",
        )
    return found[0]


def compiled(family: str, d: int, k: int, module: Module | None = None) -> dict[str, Any]:
    """What RADV reports on every pipeline of the engine, or on `module`, for a family.

    Returns the keys `name` and `driver` of the device, `kernels` (what the engine has) and
    `pipelines`. Raises DeviceError if RADV is not installed, or can't compile for the family.
    """
    # Imported here, because it imports torch, which the compiling process doesn't need
    from ebmvk.engine.vulkan_devices import extension

    extension()  # raises if it isn't built
    driver = driver_file()
    request = json.dumps({"d": d, "k": k, "module": asdict(module) if module else None})
    said = ""
    for name in FAMILIES[family]:
        variables = {"RADV_FORCE_FAMILY": name, "MESA_SHADER_CACHE_DISABLE": "true"}
        variables |= {"VK_DRIVER_FILES": str(driver), "VK_ICD_FILENAMES": str(driver)}  # the new and the old name
        done = subprocess.run(
            [sys.executable, "-m", "bench.isa_compile"],
            input=request,
            env={**os.environ, **variables},
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )
        if done.returncode == 0:
            result: dict[str, Any] = json.loads(done.stdout)
            return result
        said = done.stderr.strip() or f"it ended with status {done.returncode}"
        if "Unknown family" not in said:
            break
    raise DeviceError(
        f"RADV did not compile for {family}: {said.splitlines()[-1]}",
        hint="check --bindings, --push, --constants and --subgroup: they must be those of the module"
        if module
        else "run `ebmvk doctor` to see if the Vulkan engine is built and the loader is found",
    )


def settings(k: int) -> Iterator[Setting]:
    """Settings that make an engine use all variants of all kernels; the first is the default."""
    for portable in (False, True):
        for queries in (1024, 32, 4, 2, 1):  # one for each tiling that a GPU chooses
            yield Setting(queries, k, portable=portable)
        yield Setting(1024, k, "direct", resident=False, portable=portable)
    # Registers hold fewer candidates in float32.
    yield from (Setting(1024, fewer) for fewer in (k // 2, k // 4, k // 8) if fewer)


def pipelines(extension: Any, d: int, k: int) -> list[dict[str, Any]]:
    """Everything that an engine can be made to compile on the device, each pipeline once.

    `chosen`: True if the engine uses it by default for K = k and some number of queries.
    """
    found: dict[str, dict[str, Any]] = {}
    engines = {portable: open_engine(extension, portable=portable) for portable in (False, True)}
    for setting in settings(k):
        engine = engines[setting.portable]
        engine.set_scoring(getattr(extension.Scoring, setting.scoring))
        engine.set_resident(setting.resident)
        automatic = (setting.scoring, setting.resident, setting.portable) == ("automatic", None, False)
        for key in engine.pipelines(setting.queries, d, setting.k):
            entry = described(engine, key)
            if setting.k != k and (entry["variant"] != "resident" or _has(found.values(), entry)):
                continue
            name = json.dumps(entry)
            if name not in found:
                found[name] = {**entry, "k": setting.k, "chosen": False, **reported(engine.inspect(key))}
            found[name]["chosen"] |= automatic and setting.k == k
    for key in compute_keys(extension, engines[False].capabilities):
        entry = described(engines[False], key)
        found[json.dumps(entry)] = {**entry, "k": k, "chosen": True, **reported(engines[False].inspect(key))}
    return list(found.values())


def compute_keys(extension: Any, device: _vulkan.Capabilities) -> Iterator[_vulkan.PipelineKey]:
    """The kernels of training steps: each tile with the strides of all products of layers. 0: terms
    lie side by side; 2: rows or columns do; 1: any strides."""
    from ebmvk.compute import matmul_tiles

    for tile in matmul_tiles.CARD:
        quads = tile.rows % 4 == tile.columns % 4 == 0
        for a, b in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)) if quads else ((0, 0), (1, 1)):
            constants = (tile.down, tile.rows, tile.columns, tile.depth, a, b, 0)
            yield extension.PipelineKey(tile.kernel, tile.group, constants)
    short = matmul_tiles.SHORT
    yield extension.PipelineKey(short.kernel, short.group, (short.down, short.rows, short.columns, short.depth, 1))
    if device.subgroup_arithmetic and device.subgroup_control:  # a kernel for processors, so only its smallest tile
        yield extension.PipelineKey("matmul_lanes", device.subgroup_size, (1, 1, 2, 0))
    yield extension.PipelineKey("matmul_join", 64, (1,))
    for pairs, final in ((0, 1), (0, 0), (1, 1)):
        yield extension.PipelineKey("sort_block", 256, (1024, 2, pairs, final))
    for final in (0, 1):
        yield extension.PipelineKey("sort_merge", 64, (2, final))
    yield extension.PipelineKey("scan_rows", 256, (4, 2))
    for name in ("add_runs", "add_parts"):
        yield extension.PipelineKey(name, 128, ())
    for name in ("weakest_cut", "inverse"):
        yield extension.PipelineKey(name, 256, (UNITS,))


def _has(entries: Any, wanted: Mapping[str, Any]) -> bool:
    """True if there is an entry of the same shader."""
    same = ("name", "variant", "storage")
    return any(all(entry[key] == wanted[key] for key in same) for entry in entries)


def described(engine: _vulkan.Engine, key: _vulkan.PipelineKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "variant": engine.variant_of(key).name,
        "storage": key.storage.name,
        "group": key.group,
        "constants": list(key.constants),
    }


def reported(code: _vulkan.MachineCode) -> dict[str, Any]:
    return {"subgroup": code.subgroup_size, "statistics": code.statistics, "assembly": code.texts.get("Assembly", "")}


def open_engine(extension: Any, *, portable: bool = False) -> _vulkan.Engine:
    options = extension.Options()
    options.compile_only = True
    options.portable = portable
    engine: _vulkan.Engine = extension.Engine(0, options)
    return engine


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    from ebmvk import _vulkan as native

    engine = open_engine(native)
    device = engine.capabilities
    kernels = [(name, variant.name, storage.name) for name, variant, storage in native.kernels()]
    answer: dict[str, Any] = {
        "name": device.name,
        "driver": device.driver,
        "subgroups": device.subgroup_arithmetic and device.subgroup_control,
        "kernels": kernels,
    }
    if request["module"] is None:
        return {**answer, "pipelines": pipelines(native, request["d"], request["k"])}
    module = Module(**request["module"])
    spirv = Path(module.path).read_bytes()
    shape: Sequence[Any] = (module.bindings, module.push, list(module.constants), module.subgroup)
    entry = {"name": Path(module.path).name, "variant": "", "storage": "", "group": module.constants[0]}
    entry |= {"constants": list(module.constants[1:]), "k": 0, "chosen": False}
    return {**answer, "pipelines": [{**entry, **reported(engine.inspect_spirv(spirv, *shape))}]}


if __name__ == "__main__":
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
