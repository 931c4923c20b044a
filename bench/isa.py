"""`python -m bench.isa`: the machine code of every kernel, compiled for a card that isn't there.

RADV, Mesa's driver for AMD, compiles for any family without a card; nothing is run. Each kernel and
variant is compiled as the engine compiles it at d = 640 and 64 candidates or neighbours: with the
same workgroup, constants and subgroup size. The table has, for each: lanes of a wave, registers of
a lane, bytes of shared memory, waves that a SIMD holds at once, spilled registers, scratch memory,
RADV's guess of the latency in cycles, and the instructions of the hottest loop by class. A star
marks what the engine chooses by default. For navi23, the times of five workloads on an RX 6650 XT
are estimated; docs/how-to/machine-code.md says how. The exit status is 1 if a kernel spills.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import isa_plans
from bench.isa_compile import FAMILIES, Module, compiled
from bench.isa_estimate import CHIPS, RX_6650_XT
from bench.isa_text import CLASSES, count, parse
from bench.measure import command_line, commit, table, write
from ebmvk.errors import ConfigError, EbmvkError

D, K = isa_plans.D, isa_plans.K
OLD_RDNA3 = "Mesa before 23 gives a kernel at most 128 registers on RDNA3, whatever the card has"


def record(family: str, pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """What the table and the JSON say about a pipeline. Raises ValueError without its assembly."""
    found = pipeline["statistics"]
    hot = count(parse(pipeline["assembly"]).hottest())
    vgprs, lds = int(found["VGPRs"]), int(found["LDS size"])
    shape = {key: pipeline[key] for key in ("name", "variant", "storage", "group", "constants", "k", "chosen")}
    return {
        **shape,
        "wave": pipeline["subgroup"],
        "vgprs": vgprs,
        "lds": lds,
        "waves": CHIPS[family].waves(pipeline["subgroup"], vgprs, lds, pipeline["group"]),
        "spills": int(found["Spilled VGPRs"] + found["Spilled SGPRs"]),
        "scratch": int(found["Scratch size"]),
        "latency": int(found["Latency"]),
        "instructions": int(found["Instructions"]),
        "hot": {kind: hot[kind] for kind in CLASSES},
        "fma_share": hot["fma"] / hot.total(),
    }


def excuse(family: str, driver: str, kernel: Mapping[str, Any]) -> str:
    """The reason why a kernel may spill with this driver; empty if it must not."""
    version = driver.partition("Mesa ")[2].split(".")[0]
    old = version.isdigit() and int(version) < 23
    return OLD_RDNA3 if family == "navi31" and old and kernel["variant"] == "resident" else ""


def measured(family: str, module: Module | None = None, assembly: Path | None = None) -> dict[str, Any]:
    """Everything that the command prints. Raises DeviceError if RADV can't compile for the family.

    assembly: a folder for the disassembly of each pipeline.
    """
    report = compiled(family, D, K, module)
    pipelines = report["pipelines"]
    if assembly:
        assembly.mkdir(parents=True, exist_ok=True)
        for pipeline in pipelines:
            (assembly / f"{_file_name(pipeline)}.txt").write_text(pipeline["assembly"], encoding="utf-8")
    kernels = [record(family, pipeline) for pipeline in pipelines]
    details = isa_plans.estimates(lambda part: _kernel(pipelines, part)) if family == "navi23" and not module else {}
    return {
        "family": family,
        "device": {key: report[key] for key in ("name", "driver", "subgroups")},
        "sizes": {"d": D, "k": K},
        "manifest": report["kernels"],
        "kernels": kernels,
        "card": RX_6650_XT.name if details else None,
        "estimates": {name: work.get("share") for name, work in details.items()},
        "estimate_details": details,
    }


def _file_name(pipeline: Mapping[str, Any]) -> str:
    parts = (pipeline["name"], pipeline["variant"], pipeline["storage"], pipeline["group"], *pipeline["constants"])
    return ".".join(str(part) for part in parts if part != "")


def _kernel(pipelines: Sequence[Mapping[str, Any]], part: isa_plans.Part) -> isa_plans.Kernel:
    wanted = (part.name, part.variant, part.storage)
    for pipeline in pipelines:
        constants, found = tuple(pipeline["constants"]), pipeline["statistics"]
        same = wanted == tuple(pipeline[key] for key in ("name", "variant", "storage")) and pipeline["k"] == K
        if same and part.constants in (None, constants):
            numbers = (pipeline["subgroup"], int(found["VGPRs"]), int(found["LDS size"]), pipeline["group"])
            return isa_plans.Kernel(parse(pipeline["assembly"]), *numbers, constants)
    raise LookupError(f"{'.'.join(wanted)} {part.constants or ''} is not among the pipelines of pipelines.cpp")


SHORT = {"valu": "vector", "smem": "s.load", "salu": "scalar"}
TITLES = ["", "kernel", "group: constants", "wave", "VGPRs", "LDS", "waves", "spills", "scratch", "latency"]


def printed(result: Mapping[str, Any]) -> str:
    kinds = [kind for kind in CLASSES if any(kernel["hot"][kind] for kernel in result["kernels"])]
    rows = [[*TITLES, *(SHORT.get(kind, kind) for kind in kinds), "fma share"]]
    for kernel in result["kernels"]:
        constants = " ".join(map(str, kernel["constants"]))
        numbers = [kernel[key] for key in ("wave", "vgprs", "lds")]
        rest = [kernel[key] for key in ("spills", "scratch", "latency")]
        rows.append([
            "*" if kernel["chosen"] else "", _shader(kernel), f"{kernel['group']}: {constants}".rstrip(": "),
            *map(str, numbers), f"{kernel['waves']:g}", *map(str, rest),
            *(str(kernel["hot"][kind]) for kind in kinds), f"{kernel['fma_share']:.0%}",
        ])  # fmt: skip
    return "\n".join([table(rows), "", *_verdict(result), *_estimated(result)])


def spilling(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The kernels that spill or use scratch memory without an excuse."""
    driver, family = result["device"]["driver"], result["family"]
    return [
        kernel
        for kernel in result["kernels"]
        if (kernel["spills"] or kernel["scratch"]) and not excuse(family, driver, kernel)
    ]


def _verdict(result: Mapping[str, Any]) -> list[str]:
    number = len(result["kernels"])
    names = sorted({_shader(kernel) for kernel in spilling(result)})
    lines = [f"{number} pipelines; these spill: {', '.join(names)}"] if names else []
    excused: dict[str, set[str]] = {}
    for kernel in result["kernels"]:
        reason = excuse(result["family"], result["device"]["driver"], kernel)
        if reason and (kernel["spills"] or kernel["scratch"]):
            excused.setdefault(reason, set()).add(_shader(kernel))
    lines += [f"spilling is the driver's fault in {', '.join(sorted(excused[reason]))}: {reason}" for reason in excused]
    return lines or [f"{number} pipelines; none spills"]


def _shader(kernel: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (kernel["name"], kernel["variant"], kernel["storage"])))


def _estimated(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, work in result["estimate_details"].items():
        if "missing" in work:
            lines.append(f"{name}: no estimate: {work['missing']}")
            continue
        parts = ", ".join(
            f"{part['kernel']} {1e3 * part['seconds']:.1f} ms ({part['bound']})" for part in work["kernels"]
        )
        cached = (
            f"; from the Infinity Cache {work['share_cached']:.1%}" if work["share_cached"] != work["share"] else ""
        )
        least = 1e3 * work["least_seconds"]
        lines.append(
            f"{name}: {work['share']:.1%} of the roofline of {least:.1f} ms on an {result['card']}{cached}: {parts}"
        )
    return lines


def _check_spirv(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise ConfigError(f"--spirv {path}: {error.strerror}", hint="name a file that can be read") from error
    if begin != bytes.fromhex("03022307"):
        raise ConfigError(f"--spirv {path}: this is not a SPIR-V module", hint="compile the shader with glslc")


def _module(options: argparse.Namespace) -> Module | None:
    if options.spirv is None:
        return None
    _check_spirv(options.spirv)
    try:
        constants = tuple(int(value) for value in options.constants.split(","))
    except ValueError:
        raise ConfigError(
            f"--constants {options.constants}: these are not integers", hint="write them as --constants 256,8,8"
        ) from None
    return Module(str(options.spirv.resolve()), options.bindings, options.push, constants, options.subgroup)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.isa", description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="navi23", help="the family of cards to compile for")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--assembly", type=Path, default=None, help="write the disassembly of each pipeline here")
    other = parser.add_argument_group("another kernel, to compare: a SPIR-V module with storage buffers in set 0")
    other.add_argument(
        "--spirv", type=Path, default=None, help="the file of the module, instead of the engine's kernels"
    )
    other.add_argument("--bindings", type=int, default=4, help="its number of storage buffers")
    other.add_argument("--push", type=int, default=0, help="bytes of its push constants")
    other.add_argument("--constants", default="64", help="its specialisation constants from id 0, as 256,8,8")
    other.add_argument("--subgroup", type=int, default=0, help="subgroup size to require; 0: the driver decides")
    options = parser.parse_args(argv)
    try:
        result = measured(options.family, _module(options), options.assembly)
    except EbmvkError as error:
        sys.exit(str(error))
    print(f"{result['device']['name']}, {result['device']['driver']}\n")
    print(printed(result))
    figures = {key: value for key, value in result.items() if key != "manifest"}
    write(options.json, {"command": command_line("bench.isa", argv), "commit": commit(), **figures})
    if spilling(result):
        sys.exit(1)


if __name__ == "__main__":
    main()
