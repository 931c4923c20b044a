"""The operations of the engine: operations.toml as data.

csrc/operations.py runs this file on its own, so it imports only the standard library.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("operations.toml")

Kind = Literal["tensor", "index", "points", "int", "seed", "counter", "real", "levels", "scheme"]
Made = Literal["all", "arguments", "none"]


@dataclass(frozen=True)
class Argument:
    """One argument; operations.toml explains the fields. of: the names of its sizes."""

    name: str
    kind: Kind
    of: tuple[str, ...] = ()
    values: str = ""
    below: str | int = 0
    low: float = 0
    high: str | int = 0
    extent: str = ""
    dimensions: int = 1
    default: str | None = None
    hint: str = ""
    keyword: bool = False

    @property
    def shape(self) -> str:
        """The shape as messages write it: (B, d), or (B,)."""
        return _shape(self.of)


@dataclass(frozen=True)
class Result:
    """One result; operations.toml explains the fields. below: "" for floats."""

    name: str
    of: tuple[str, ...]
    below: str = ""
    host: bool = False

    @property
    def shape(self) -> str:
        """The shape as messages write it: (B, d), or (B,)."""
        return _shape(self.of)


@dataclass(frozen=True)
class Operation:
    """One table; operations.toml explains the fields."""

    name: str
    does: str
    returns: str
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...] = ()
    exact: str = ""
    rows: bool = False
    device: bool = False
    extends: str = ""
    cpu: Made = "all"
    vulkan: Made = "all"
    together: str = ""


def _shape(of: tuple[str, ...]) -> str:
    return f"({', '.join(of)}{',' if len(of) == 1 else ''})"


def read(path: Path = TABLE) -> dict[str, Operation]:
    """All operations, by name. Raises ValueError if a table isn't valid."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    found = {name: _operation(name, table) for name, table in tables.items()}
    for operation in found.values():
        if operation.extends and not {*found[operation.extends].arguments} <= {*operation.arguments}:
            raise ValueError(
                f"{path.name}: {operation.name} lacks an argument of {operation.extends}, which it extends"
            )
    return found


def _operation(name: str, table: dict[str, Any]) -> Operation:
    fields: dict[str, Any] = {key: value.strip() if isinstance(value, str) else value for key, value in table.items()}
    arguments = tuple(
        Argument(name=argument, of=tuple(more.pop("of", ())), **more)
        for argument, more in fields.pop("arguments").items()
    )
    results = tuple(
        Result(name=result, of=tuple(more.pop("of")), **more) for result, more in fields.pop("results", {}).items()
    )
    if fields.get("rows"):
        fields |= {"cpu": "none", "vulkan": "none"}
    if fields.get("device"):
        fields |= {"cpu": "none"}
    operation = Operation(name=name, arguments=arguments, results=results, **fields)
    if "all" in (operation.cpu, operation.vulkan) and not results:
        raise ValueError(f"{TABLE.name}: {name} lists no results, but its C++ code must return some; list them")
    return operation


TABLES = read()
OPERATIONS = {name: operation for name, operation in TABLES.items() if not operation.device}
"""The operations that every backend offers."""
