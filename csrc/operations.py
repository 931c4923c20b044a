"""Writes what is made from ebmvk/engine/operations.toml, after a change of it:

the operations of `Backend` in ebmvk/engine/api.py, and the signatures in ebmvk/_cpu.pyi.

A test fails if they don't fit the table.
"""

from __future__ import annotations

import re
from typing import Any

from tables import ENGINE, load

WIDTH = 120

PYTHON = {
    "tensor": "Tensor", "index": "Tensor", "points": "Points", "int": "int", "seed": "int", "counter": "int",
    "real": "float", "levels": "Schedule", "scheme": "Scheme",
}  # fmt: skip
NATIVE = {"tensor": "_Floats", "index": "_Ids", "points": "_Floats", "scheme": "str"}
LEVELS = ["levels: _Floats", "steps: list[int]", "per_chain: bool"]
NATIVE_RESULTS = {"F": "_Floats", "I": "_Ids", "n": "int"}

MARK = "    # Made from operations.toml by csrc/operations.py, up to the end.\n"


def operations() -> list[Any]:
    """The operations of the table."""
    return list(load("operations").OPERATIONS.values())


def protocol(table: list[Any], text: str) -> str:
    """`text` of api.py with the operations of the table after the mark."""
    head, mark, _ = text.partition(MARK)
    if not mark:
        raise SystemExit("ebmvk/engine/api.py has lost the line after which the operations stand")
    return head + mark + "\n" + "\n".join(method(operation) for operation in table)


def method(operation: Any) -> str:
    parameters = ["self"]
    for argument in operation.arguments:
        if argument.keyword:
            parameters.append("*")
        optional = " | None" if argument.default == "None" else ""
        default = f" = {argument.default}" if argument.default else ""
        parameters.append(f"{argument.name}: {PYTHON[argument.kind]}{optional}{default}")
    head = signature("    ", operation.name, parameters, f" -> {operation.returns}:")
    lines = [head, docstring(operation.does)]
    if operation.rows:
        given = ", ".join([f'"{operation.name}"', *(argument.name for argument in operation.arguments)])
        lines.append(f"        return self._rows({given})")
    return "\n".join([*lines, ""])


def docstring(text: str) -> str:
    if "\n" in text:
        text += "\n"
    lines = f'"""{text}"""'.splitlines()
    return "\n".join(f"        {line}".rstrip() for line in lines)


def signature(indent: str, name: str, parameters: list[str], end: str) -> str:
    """As ruff formats it: in one line, or the parameters in one, or each in its own."""
    inner = ", ".join(parameters)
    if len(line := f"{indent}def {name}({inner}){end}") <= WIDTH:
        return line
    if len(line := f"{indent}    {inner}") <= WIDTH:
        return f"{indent}def {name}(\n{line}\n{indent}){end}"
    lines = "".join(f"{indent}    {parameter},\n" for parameter in parameters)
    return f"{indent}def {name}(\n{lines}{indent}){end}"


def stub(operation: Any) -> str:
    """The function of the CPU extension. It takes arrays, and the levels of a schedule in one."""
    parameters = []
    for argument in operation.arguments:
        if argument.kind == "levels":
            parameters += LEVELS
            continue
        optional = " | None" if argument.default == "None" else ""
        parameters.append(f"{argument.name}: {NATIVE.get(argument.kind, PYTHON[argument.kind])}{optional}")
    parameters += operation.native_takes
    results = [NATIVE_RESULTS[letter] for letter in operation.native.split()]
    returned = results[0] if len(results) == 1 else f"tuple[{', '.join(results)}]"
    return signature("", operation.name, parameters, f" -> {returned}:")


def cpu_stub(table: list[Any], text: str) -> str:
    """`text` of _cpu.pyi with the signatures of the table; what stands between them stays."""
    for operation in table:
        if operation.native:
            pattern = rf"^def {operation.name}\([^)]*\) -> [^:]*:"
            if not re.search(pattern, text, re.MULTILINE):
                text += f"{stub(operation)} ...\n"
            new = stub(operation)
            text = re.sub(pattern, lambda _, new=new: new, text, count=1, flags=re.MULTILINE)
    return text


MADE = {ENGINE / "api.py": protocol, ENGINE.parent / "_cpu.pyi": cpu_stub}


def main() -> None:
    table = operations()
    for path, make in MADE.items():
        path.write_text(make(table, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
