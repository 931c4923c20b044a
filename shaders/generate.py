"""Turns kernels.toml into the files that the build needs. CMake runs it; it writes into OUT.

generate.py plan OUT     interface.glsl for each kernel, integrator.glsl for each integrator,
                         kernels.h, and plan.txt (a line per shader)
generate.py embed OUT    kernels.cpp: the table of kernels with the compiled shaders in OUT/*.spv
"""

from __future__ import annotations

import importlib
import re
import struct
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "csrc"))
integrators = importlib.import_module("integrators")

ACCESS = {"read": "readonly ", "write": "writeonly ", "update": ""}
QUAD_TYPE = "quad"  # four coordinates of a point in the variant's storage
TYPES = ("float", "uint", "vec2", "uvec2", "vec4", "uvec4", QUAD_TYPE)
VARIANTS = {
    "subgroup": ("-DUSE_SUBGROUP=1",),
    "portable": ("-DPORTABLE=1",),
    "resident": ("-DUSE_SUBGROUP=1", "-DRESIDENT=1"),
}
STORAGES = {"float32": (), "float16": ("-DFLOAT16=1",)}
PARAM_TYPES = {"uint": "std::uint32_t", "float": "float"}
KEYS = {"integrators", "variants", "bindings", "params", "push", "specialise", "group", "flops", "bytes"}
INTEGRATORS = {"unadjusted": False, "metropolis": True}


@dataclass(frozen=True)
class Kernel:
    """table: its name in kernels.toml. integrator: the row that it runs, or None."""

    name: str
    table: str
    integrator: Any
    variants: list[str]
    bindings: list[tuple[str, str, str]]
    params: list[tuple[str, str]]
    push: list[tuple[str, str]]
    specialise: list[str]
    group: int
    flops: str
    bytes: str

    @property
    def storages(self) -> list[str]:
        """The storages of its points: both if it binds quads."""
        return list(STORAGES) if any(kind == QUAD_TYPE for _, kind, _ in self.bindings) else ["float32"]


@dataclass(frozen=True)
class Shader:
    """One compilation of a kernel."""

    kernel: Kernel
    variant: str
    storage: str

    @property
    def stem(self) -> str:
        return f"{self.kernel.name}.{self.variant}.{self.storage}"

    @property
    def definitions(self) -> list[str]:
        return [*VARIANTS[self.variant], *STORAGES[self.storage]]


def read_manifest() -> list[Kernel]:
    tables = tomllib.loads((HERE / "kernels.toml").read_text(encoding="utf-8"))
    return [kernel for name, table in tables.items() for kernel in read_kernels(name, table)]


def read_kernels(name: str, table: dict[str, object]) -> list[Kernel]:
    """The kernel of a table, or one for each integrator of the kind that it names."""
    kind = table.get("integrators")
    if kind is None:
        return [read_kernel(name, table, None)]
    if kind not in INTEGRATORS:
        raise SystemExit(f"kernels.toml: [{name}] integrators is {kind!r}; expected one of {', '.join(INTEGRATORS)}")
    found = [read_kernel(name, table, row) for row in integrators.rows() if row.metropolis == INTEGRATORS[kind]]
    if not found:
        raise SystemExit(f"kernels.toml: [{name}] finds no integrator of the kind {kind!r} in integrators.toml")
    return found


def read_kernel(name: str, table: dict[str, object], integrator: Any) -> Kernel:
    if unknown := set(table) - KEYS:
        raise SystemExit(f"kernels.toml: [{name}] has unknown keys {sorted(unknown)}")
    bindings = [tuple(line.split()) for line in table["bindings"]]
    for binding in bindings:
        if len(binding) != 3 or binding[1] not in TYPES or binding[2] not in ACCESS:
            raise SystemExit(f"kernels.toml: [{name}] binding {' '.join(binding)!r} is not 'name type access'")
    params = read_fields(name, "params", table.get("params", ["rows"]))
    push = read_fields(name, "push", table.get("push", []))
    if params and (bindings[0] != ("params", "uint", "read") or params[0] != ("rows", "uint")):
        raise SystemExit(f"kernels.toml: [{name}] must begin with 'params uint read', and params with 'rows'")
    if unknown := set(table.get("variants", [])) - set(VARIANTS):
        raise SystemExit(f"kernels.toml: [{name}] has unknown variants {sorted(unknown)}")
    return Kernel(
        name=integrator.name if integrator else name,
        table=name,
        integrator=integrator,
        variants=table.get("variants", ["subgroup", "portable"]),
        bindings=bindings,
        params=params,
        push=push,
        specialise=table.get("specialise", []),
        group=table.get("group", 0),
        flops=table.get("flops", ""),
        bytes=table.get("bytes", ""),
    )


def read_fields(name: str, key: str, lines: list[str]) -> list[tuple[str, str]]:
    """Name and type of each field."""
    fields = [(*line.split(), "uint")[:2] for line in lines]
    if any(kind not in PARAM_TYPES for _, kind in fields):
        raise SystemExit(f"kernels.toml: [{name}] each of {key} must be 'name' or 'name float'")
    return fields


def interface(kernel: Kernel) -> str:
    """The shader's side: variants, specialisation constants, push constants, bindings."""
    lines = [
        "// Made from kernels.toml.",
        "#ifdef USE_SUBGROUP",
        "#extension GL_KHR_shader_subgroup_basic : require",
        "#extension GL_KHR_shader_subgroup_arithmetic : require",
        "#endif",
    ]
    if kernel.group:
        lines += [f"layout(local_size_x = {kernel.group}) in;", f"const uint GROUP = {kernel.group}u;"]
    else:
        lines += ["layout(local_size_x_id = 0) in;", "layout(constant_id = 0) const uint GROUP = 64u;"]
    for number, name in enumerate(kernel.specialise, start=1):
        lines.append(f"layout(constant_id = {number}) const uint {name} = 1u;")
    if kernel.push:
        fields = " ".join(f"{kind} {name};" for name, kind in kernel.push)
        lines.append(f"layout(push_constant) uniform Push {{ {fields} }};")
    if len(kernel.storages) > 1:
        lines.append('#include "quad.glsl"')
    fields = " ".join(f"{kind} {name};" for name, kind in kernel.params)
    if fields:
        lines.append(f"layout(set = 0, binding = 0, std430) restrict readonly buffer Params {{ {fields} }} params;")
    first = 1 if fields else 0
    for number, (name, kind, access) in enumerate(kernel.bindings[first:], start=first):
        word = "QUAD" if kind == QUAD_TYPE else kind
        lines.append(
            f"layout(set = 0, binding = {number}, std430) restrict {ACCESS[access]}buffer Buffer{number} "
            f"{{ {word} {name}[]; }};"
        )
    return "\n".join(lines) + "\n"


def header(kernels: list[Kernel]) -> str:
    """The host's side: push-constant structures and costs."""
    out = [
        "// Made from kernels.toml.",
        "#pragma once",
        "#include <cstdint>",
        "",
        "namespace ebmvk::kernels {",
    ]
    for kernel in {kernel.table: kernel for kernel in kernels}.values():
        camel = "".join(part.capitalize() for part in kernel.table.split("_"))
        out += ["", f"struct {camel} {{"]
        if not kernel.integrator:  # otherwise several kernels share these
            out.append(f'  static constexpr const char *name = "{kernel.name}";')
        if kernel.group:
            out.append(f"  static constexpr std::uint32_t group = {kernel.group};")
        if kernel.params:
            out += ["  struct Params {", *(f"    {PARAM_TYPES[kind]} {name};" for name, kind in kernel.params), "  };"]
        out += [f"  {PARAM_TYPES[kind]} {name};" for name, kind in kernel.push]
        arguments = {"flops": "double rows", "bytes": "double rows, [[maybe_unused]] double quad_bytes = 16"}
        for cost, argument in arguments.items():
            if not getattr(kernel, cost):
                continue
            formula = re.sub(r"\b(\d+)\b", r"\1.0", getattr(kernel, cost))
            out.append(f"  double {cost}([[maybe_unused]] {argument}) const {{ return {formula}; }}")
        out.append("};")
    return "\n".join([*out, "", "}  // namespace ebmvk::kernels", ""])


def shaders(kernel: Kernel) -> list[Shader]:
    return [Shader(kernel, variant, storage) for variant in kernel.variants for storage in kernel.storages]


def source_of(kernel: Kernel) -> str:
    """The kernel's file, relative to this folder. Raises SystemExit unless exactly one exists."""
    found = sorted(HERE.glob(f"*/{kernel.table}.comp"))
    if len(found) != 1:
        raise SystemExit(f"kernels.toml: [{kernel.table}] needs one file */{kernel.table}.comp; there are {len(found)}")
    return found[0].relative_to(HERE).as_posix()


def plan(kernels: list[Kernel], out: Path) -> None:
    lines = []
    for kernel in kernels:
        folder = out / kernel.name
        folder.mkdir(parents=True, exist_ok=True)
        write_if_changed(folder / "interface.glsl", interface(kernel))
        if kernel.integrator:
            write_if_changed(folder / "integrator.glsl", integrators.glsl(kernel.integrator))
        source = source_of(kernel)
        lines += [" ".join((kernel.name, shader.stem, source, *shader.definitions)) for shader in shaders(kernel)]
    write_if_changed(out / "kernels.h", header(kernels))
    write_if_changed(out / "plan.txt", "\n".join(lines) + "\n")


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def words(path: Path) -> list[str]:
    data = path.read_bytes()
    values = struct.unpack(f"<{len(data) // 4}I", data)
    return [", ".join(f"0x{value:08x}u" for value in values[i : i + 12]) for i in range(0, len(values), 12)]


def embed(kernels: list[Kernel], out: Path) -> None:
    text = [
        "// Made from kernels.toml and the compiled shaders.",
        '#include "vulkan/runtime/kernel_table.h"',
        "",
        "namespace ebmvk {",
        "",
    ]
    entries = []
    for kernel in kernels:
        for shader in shaders(kernel):
            symbol = shader.stem.replace(".", "_")
            code = ",\n".join(words(out / f"{shader.stem}.spv"))
            text += [f"static const std::uint32_t {symbol}[] = {{", code, "};"]
            access = ", ".join(f"Access::{kind}" for _, _, kind in kernel.bindings)
            entries.append(
                f'    {{"{kernel.name}", Variant::{shader.variant}, Storage::{shader.storage}, {symbol}, '
                f"sizeof({symbol}), {{{access}}}, {4 * len(kernel.push)}, {len(kernel.specialise)}, {kernel.group}, "
                f"{str(kernel.bindings[-1][1] == 'float').lower()}, {str(bool(kernel.params)).lower()}}},"
            )
    text += [
        "",
        "const std::vector<KernelSource> &kernel_table() {",
        "  static const std::vector<KernelSource> table = {",
        *entries,
        "  };",
        "  return table;",
        "}",
        "",
        "}  // namespace ebmvk",
        "",
    ]
    write_if_changed(out / "kernels.cpp", "\n".join(text))


def main() -> None:
    command, folder = sys.argv[1], Path(sys.argv[2])
    kernels = read_manifest()
    {"plan": plan, "embed": embed}[command](kernels, folder)


if __name__ == "__main__":
    main()
