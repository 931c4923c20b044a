"""Turns ebmvk/engine/operations.toml into C++. CMake runs it.

bindings.py OUT     writes into OUT, for each operation that a table asks for:

cpu_operations.h      what the CPU kernels take and return, and their functions
cpu_bindings.h        their functions for Python
vulkan_operations.h   what the Vulkan engine takes and returns
vulkan_methods.h      its methods, included by class Engine
vulkan_bindings.h     its functions for Python
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integrators import camel
from operations import operations
from tables import write

SIZES = {"B": "rows", "d": "d", "N": "n", "K": "k", "V": "width"}
NUMBERS = {"int": "std::uint32_t", "seed": "std::uint64_t", "counter": "std::uint32_t", "real": "double"}
TABLES = ["kappa_scale", "logw_shift", "step_size", "gamma"]  # of a schedule
ELEMENTS = {"tensor": "float", "index": "std::int64_t"}


@dataclass(frozen=True)
class Target:
    """An extension, and how C++ is written for it.

    reads: the header that reads arrays. {T} stands for float or std::int64_t.
    """

    name: str
    reads: str
    size: str
    argument: str
    result: str
    integrator: str
    find: str

    def makes(self, operation: Any) -> str:
        return str(getattr(operation, self.name))

    @property
    def vulkan(self) -> bool:
        return self.name == "vulkan"


CPU = Target("cpu", "array", "std::size_t", "const {T}*", "{T}*", "std::size_t", "integrators::find(scheme)")
VULKAN = Target(
    "vulkan",
    "operand",
    "std::uint32_t",
    "Argument<{T}>",
    "Result<{T}>",
    "integrators::Description",
    "integrators::table[integrators::find(scheme)]",
)


def size_of(name: str) -> str:
    return SIZES.get(name, name)


def sizes(operation: Any, target: Target) -> list[str]:
    """The sizes that the arguments have, except those that are arguments or known from points."""
    numbers = {argument.name for argument in operation.arguments}
    found = dict.fromkeys(size for argument in operation.arguments for size in argument.of)
    if any(argument.kind == "points" for argument in operation.arguments):
        found |= dict.fromkeys("dN")
        if target.vulkan:
            found.pop("N")
    return [size for size in found if size not in numbers]


def field(argument: Any, target: Target) -> str:
    """What C++ takes for an argument; empty for points on a device, which are passed separately."""
    if argument.kind in ELEMENTS:
        said = f", in [0, {argument.below})" if argument.kind == "index" else ""
        said += ", or missing" if argument.default else ""
        return f"{target.argument.format(T=ELEMENTS[argument.kind])} {argument.name};  // {argument.shape}{said}"
    if argument.kind == "points":
        return "" if target.vulkan else f"const float* {argument.name};  // (N, d)"
    if argument.kind == "levels":
        return f"Schedule {argument.name};"
    if argument.kind == "scheme":
        return f"{target.integrator} integrator;"
    return f"{NUMBERS[argument.kind]} {argument.name};"


def structs(operation: Any, target: Target, base: Any) -> Iterator[str]:
    """What C++ takes and returns. base: the operation that this one extends, or None."""
    inherited = {argument.name for argument in base.arguments} if base else set[str]()
    own = [size for size in sizes(operation, target) if not base or size not in sizes(base, target)]
    fields = [f"{target.size} {', '.join(map(size_of, own))};"] if own else []
    fields += [field(argument, target) for argument in operation.arguments if argument.name not in inherited]
    yield f"// {operation.name}"
    yield f"struct {camel(operation.name)}Arguments {f': {camel(base.name)}Arguments ' if base else ''}{{"
    yield from (f"  {line}" for line in fields if line)
    yield "};\n"
    if target.makes(operation) == "all":
        yield f"struct {camel(operation.name)}Results {{"
        for result in operation.results:
            said = f", in [0, {result.below})" if result.below else ""
            yield f"  {target.result.format(T=element(result))} {result.name};  // {result.shape}{said}"
        yield "};\n"


def element(result: Any) -> str:
    return "std::int64_t" if result.below else "float"


def operations_header(target: Target) -> Iterator[str]:
    made = [operation for operation in operations().values() if target.makes(operation) != "none"]
    yield "// Made from operations.toml: B rows, dimension d, N points, K candidates, V tokens; rows are dense."
    yield "#pragma once"
    yield '#include "integrators.h"\n#include "schedule.h"'
    yield '#include "vulkan/runtime/tensor.h"\n' if target.vulkan else ""
    yield "#include <cstddef>\n#include <cstdint>\n\nnamespace ebmvk {\n"
    for operation in made:
        yield from structs(operation, target, operations().get(operation.extends))
        if target is CPU and operation.cpu == "all":
            name = camel(operation.name)
            yield f"void {name}(const {name}Arguments& in, const {name}Results& out);\n"
    yield "}  // namespace ebmvk"


def has_points(operation: Any) -> bool:
    return any(argument.kind == "points" for argument in operation.arguments)


def methods_header() -> Iterator[str]:
    yield "// Made from operations.toml: methods of class Engine."
    for operation in operations().values():
        if operation.vulkan == "all":
            points = "const Points& points, " if has_points(operation) else ""
            name = camel(operation.name)
            yield f"void {operation.name}({points}const {name}Arguments& in, const {name}Results& out);"


def parameters(operation: Any, target: Target) -> Iterator[tuple[str, str]]:
    """The parameters of the function in Python: (type in C++, name)."""
    for argument in operation.arguments:
        if argument.kind == "levels":
            yield from (("const Floats&", table) for table in TABLES)
            yield "const std::vector<std::uint32_t>&", "steps"
        elif argument.kind == "scheme":
            yield "const std::string&", argument.name
        elif argument.kind in NUMBERS:
            yield NUMBERS[argument.kind], argument.name
        elif target.vulkan:
            yield "const Points&" if argument.kind == "points" else "const py::object&", argument.name
        else:
            kind = "Ids" if argument.kind == "index" else "Floats"
            yield f"const std::optional<{kind}>&" if argument.default else f"const {kind}&", argument.name


def listed(operation: Any, target: Target) -> str:
    return ", ".join(f"{kind} {name}" for kind, name in parameters(operation, target))


def reader(operation: Any, target: Target) -> Iterator[str]:
    """A function that turns Python's arguments into what C++ takes, if their shapes fit."""
    name, engine = camel(operation.name), "engine, " if target.vulkan else ""
    first = "[[maybe_unused]] const Engine& engine, " if target.vulkan else ""
    yield f"inline {name}Arguments read_{operation.name}({first}{listed(operation, target)}) {{"
    known = {"d": "points.d()", "N": "points.n()"} if target.vulkan and has_points(operation) else {}
    used = {size for argument in operation.arguments for size in (*argument.of, argument.below, argument.high)}
    local = [size for size in SIZES if size in used or size in sizes(operation, target)]
    if begins := ", ".join(f"{size_of(size)} = {known.get(size, 'kAny')}" for size in local):
        yield f"  py::ssize_t {begins};"
    yield f"  {name}Arguments in{{}};"
    for argument in operation.arguments:
        yield from (f"  {line}" for line in read(argument, target, engine))
    checked = [size for size in ("d", "K") if size in local and size not in known]
    yield from (f'  require_some({size_of(size)}, "{size}");' for size in checked)
    for argument in operation.arguments:
        if argument.kind == "index":
            extent = " * ".join(map(size_of, argument.of))
            yield f'  require_below(in.{argument.name}, {extent}, "{argument.name}", {size_of(str(argument.below))});'
        elif argument.kind == "int":
            ends = f"{argument.low}, {size_of(str(argument.high))}"
            yield f'  require_between({argument.name}, {ends}, "{argument.name}");'
    yield from (f'  in.{size_of(size)} = count({size_of(size)}, "{size}");' for size in sizes(operation, target))
    yield "  return in;\n}\n"


def read(argument: Any, target: Target, engine: str) -> Iterator[str]:
    name = argument.name
    of = ("N", "d") if argument.kind == "points" else argument.of
    if argument.kind in ELEMENTS or (argument.kind == "points" and not target.vulkan):
        how = "optional_argument" if argument.default else "argument"
        shape = ", ".join(f"&{size_of(size)}" for size in of)
        yield f'in.{name} = {how}<{ELEMENTS.get(argument.kind, "float")}>({engine}{name}, "{name}", {{{shape}}});'
    elif argument.kind == "levels":
        yield f"in.{name} = read_schedule({', '.join(TABLES)}, steps, rows);"
    elif argument.kind == "scheme":
        yield f"in.integrator = {target.find};"
    elif argument.kind in NUMBERS:
        yield f"in.{name} = {name};"


def binding(operation: Any, target: Target) -> Iterator[str]:
    """The function in Python: it reads the arguments, makes the results, releases the GIL, runs."""
    name = camel(operation.name)
    given = ", ".join(name for _, name in parameters(operation, target))
    one = len(operation.results) == 1
    first = "Engine& engine, " if target.vulkan else ""
    yield f"inline {'py::object' if one else 'py::tuple'} {operation.name}({first}{listed(operation, target)}) {{"
    yield f"  const auto in = read_{operation.name}({'engine, ' if target.vulkan else ''}{given});"
    if target.vulkan and not all(result.host for result in operation.results):
        tensors = ", ".join(argument.name for argument in operation.arguments if argument.kind in ELEMENTS)
        known = f"any_tensor({{{tensors}}})" if tensors else "true"
        yield f"  const bool on_device = {known};"
    for result in operation.results:
        yield f"  const auto to_{result.name} = {make(result, operation, target)};"
    to = ", ".join(f"to_{result.name}.to" for result in operation.results)
    yield f"  const {name}Results out{{{to}}};\n  {{\n    const ReleaseGil release;"
    points = "points, " if has_points(operation) else ""
    yield f"    engine.{operation.name}({points}in, out);" if target.vulkan else f"    {name}(in, out);"
    values = ", ".join(f"to_{result.name}.value" for result in operation.results)
    yield "  }\n" + (f"  return {values};\n}}\n" if one else f"  return py::make_tuple({values});\n}}\n")


def make(result: Any, operation: Any, target: Target) -> str:
    def extent(size: str) -> str:
        return "points.n()" if size == "N" and target.vulkan and has_points(operation) else f"in.{size_of(size)}"

    kind, shape = element(result), ", ".join(map(extent, result.of))
    if not target.vulkan:
        return f"make_result<{kind}>({{{shape}}})"
    where = "false" if result.host else "on_device"
    if result.below:
        return f"make_result<{kind}>(engine, {where}, {{{shape}}}, false, {extent(result.below)})"
    return f"make_result<{kind}>(engine, {where}, {{{shape}}}{', true' if result.of[-1] == 'd' else ''})"


def bindings_header(target: Target) -> Iterator[str]:
    made = [operation for operation in operations().values() if target.makes(operation) != "none"]
    yield "// Made from operations.toml: the operations as functions on NumPy arrays" + (
        ", or on tensors of the engine." if target.vulkan else "."
    )
    yield "#pragma once"
    yield f'#include "bindings/{target.reads}.h"\n#include "bindings/schedule.h"'
    yield f'#include "{target.name}_operations.h"\n'
    yield "#include <pybind11/stl.h>\n\n#include <optional>\n#include <string>\n#include <vector>\n"
    yield "namespace ebmvk {\n"
    for operation in made:
        yield from reader(operation, target)
        if target.makes(operation) == "all":
            yield from binding(operation, target)
    yield "// noconvert: an array of another dtype or layout is a mistake and must not be copied silently."
    owner = "py::class_<Engine, std::shared_ptr<Engine>>&" if target.vulkan else "py::module_&"
    yield f"inline void register_operations({owner} to) {{"
    for operation in made:
        if target.makes(operation) == "all":
            named = ", ".join(
                f'py::arg("{name}"){".noconvert()" if "Floats" in kind or "Ids" in kind else ""}'
                for kind, name in parameters(operation, target)
            )
            yield f'  to.def("{operation.name}", &{operation.name}, {named});'
    yield "}\n\n}  // namespace ebmvk"


def files() -> dict[str, Iterable[str]]:
    return {
        "cpu_operations.h": operations_header(CPU),
        "cpu_bindings.h": bindings_header(CPU),
        "vulkan_operations.h": operations_header(VULKAN),
        "vulkan_methods.h": methods_header(),
        "vulkan_bindings.h": bindings_header(VULKAN),
    }


def wrapped(text: str) -> str:
    """The text with lines of at most 120 characters, if they can be broken after a comma."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        whole = line.replace(" ", "\xa0").replace(",\xa0", ", ")
        lines += textwrap.wrap(whole, 120, subsequent_indent=indent) if len(line) > 120 else [line]
    return "\n".join([*lines, ""]).replace("\xa0", " ")


def main() -> None:
    for name, lines in files().items():
        write(Path(sys.argv[1]) / name, wrapped("\n".join(lines)))


if __name__ == "__main__":
    main()
