"""The operations of every backend: operations.toml as data.

csrc/operations.py runs this file on its own, so it imports only the standard library.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("operations.toml")

Kind = Literal["tensor", "index", "points", "int", "seed", "counter", "real", "levels", "scheme"]


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
        """As in messages: (B, d), or (B,)."""
        return f"({', '.join(self.of)}{',' if len(self.of) == 1 else ''})"


@dataclass(frozen=True)
class Operation:
    """One table; operations.toml explains the fields."""

    name: str
    does: str
    returns: str
    arguments: tuple[Argument, ...]
    rows: bool = False
    native: str = ""
    native_takes: tuple[str, ...] = ()
    together: str = ""


def read(path: Path = TABLE) -> dict[str, Operation]:
    """All operations, by name."""
    return {name: _operation(name, table) for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def _operation(name: str, table: dict[str, Any]) -> Operation:
    fields: dict[str, Any] = {key: value.strip() if isinstance(value, str) else value for key, value in table.items()}
    arguments = tuple(
        Argument(name=argument, of=tuple(more.pop("of", ())), **more)
        for argument, more in fields.pop("arguments").items()
    )
    return Operation(name=name, arguments=arguments, **fields)


OPERATIONS = read()
