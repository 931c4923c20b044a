"""Run this after a change of ebmvk/engine/operations.toml.

It writes the operations of `Backend` in ebmvk/engine/api.py and of `Chained` in chained.py, and the
signatures in ebmvk/_cpu.pyi and ebmvk/_vulkan.pyi. A test fails if these don't fit the table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tables import ENGINE, load

WIDTH = 120

PYTHON = {
    "tensor": "Tensor", "index": "Tensor", "points": "Points", "int": "int", "seed": "int", "counter": "int",
    "real": "float", "levels": "Schedule", "scheme": "Scheme",
}  # fmt: skip
KEPT = PYTHON | {"tensor": "Tensor | DeviceTensor", "index": "Tensor | DeviceTensor"}
CPU = PYTHON | {"tensor": "_Floats", "index": "_Ids", "points": "_Floats", "scheme": "str"}
VULKAN = CPU | {"tensor": "_Rows", "index": "_Rows", "points": "Points"}
LEVELS = [*(f"{name}: _Floats" for name in ("kappa_scale", "logw_shift", "step_size", "gamma")), "steps: Sequence[int]"]

BEGIN = "# Made from operations.toml by csrc/operations.py:"
END = "# End of what is made."


def operations() -> dict[str, Any]:
    """The operations of the table, by name."""
    return dict(load("operations").TABLES)


def parameters(operation: Any, types: dict[str, str]) -> Iterator[str]:
    """The parameters of the method that users call."""
    for argument in operation.arguments:
        if argument.keyword:
            yield "*"
        optional = " | None" if argument.default == "None" else ""
        default = f" = {argument.default}" if argument.default else ""
        yield f"{argument.name}: {types[argument.kind]}{optional}{default}"


def method(operation: Any) -> Iterator[str]:
    types = KEPT if operation.device else PYTHON
    yield signature("    ", operation.name, ["self", *parameters(operation, types)], f" -> {operation.returns}:")
    yield docstring(operation.does)
    if operation.rows:
        given = ", ".join([f'"{operation.name}"', *(argument.name for argument in operation.arguments)])
        yield f"        return self._rows({given})\n"
    else:
        yield f'        result: {operation.returns} = self._operation("{operation.name}", locals())'
        yield "        return result\n"


def docstring(text: str) -> str:
    if "\n" in text:
        text += "\n"
    lines = f'"""{text}"""'.splitlines()
    return "\n".join(f"        {line}".rstrip() for line in lines)


def signature(indent: str, name: str, inner: list[str], end: str) -> str:
    """A signature as ruff formats it: one line, all parameters on one line, or a line for each."""
    one = ", ".join(inner)
    if len(line := f"{indent}def {name}({one}){end}") <= WIDTH:
        return line
    if len(line := f"{indent}    {one}") <= WIDTH:
        return f"{indent}def {name}(\n{line}\n{indent}){end}"
    lines = "".join(f"{indent}    {parameter},\n" for parameter in inner)
    return f"{indent}def {name}(\n{lines}{indent}){end}"


def stub(operation: Any, types: dict[str, str], own: list[str], indent: str) -> Iterator[str]:
    """A function of an extension. It takes the levels of a schedule as arrays.

    own: parameters before those of the table.
    """
    inner = [*own]
    for argument in operation.arguments:
        optional = " | None" if argument.default == "None" else ""
        inner += LEVELS if argument.kind == "levels" else [f"{argument.name}: {types[argument.kind]}{optional}"]
    results = [
        (types | CPU if result.host else types)["index" if result.below else "tensor"] for result in operation.results
    ]
    returned = results[0] if len(results) == 1 else f"tuple[{', '.join(results)}]"
    yield signature(indent, operation.name, inner, f" -> {returned}:")
    said = ", ".join(f"{result.name} {result.shape}" for result in operation.results)
    yield textwrap.fill(f'"""{said}."""', 100, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    ") + "\n"


def protocol(table: Iterable[Any]) -> Iterator[str]:
    for operation in table:
        if not operation.device:
            yield from method(operation)


def chained(table: Iterable[Any]) -> Iterator[str]:
    for operation in table:
        if operation.device:
            yield from method(operation)


def cpu(table: Iterable[Any]) -> Iterator[str]:
    for operation in table:
        if operation.cpu == "all":
            yield from stub(operation, CPU, [], "")


def vulkan(table: Iterable[Any]) -> Iterator[str]:
    for operation in table:
        if operation.vulkan == "all":
            yield from stub(operation, VULKAN, ["self"], "    ")


MADE: dict[Path, Callable[[Iterable[Any]], Iterator[str]]] = {
    ENGINE / "api.py": protocol,
    ENGINE / "chained.py": chained,
    ENGINE.parent / "_cpu.pyi": cpu,
    ENGINE.parent / "_vulkan.pyi": vulkan,
}


def filled(text: str, lines: Iterable[str]) -> str:
    """The text with these lines between its marks, or after the first mark if there is only one."""
    begin = text.find(BEGIN)
    if begin < 0:
        raise SystemExit(f"a file has lost the line {BEGIN!r}, which must stand before the operations")
    begin = text.index("\n", begin) + 1
    end = text.find(END, begin)
    rest = "\n" + text[text.rindex("\n", 0, end) + 1 :] if end > 0 else ""
    return text[:begin] + "\n" + "\n".join(lines).rstrip("\n") + "\n" + rest


def main() -> None:
    table = list(operations().values())
    for path, make in MADE.items():
        path.write_text(filled(path.read_text(encoding="utf-8"), make(table)), encoding="utf-8")


if __name__ == "__main__":
    main()
