"""Tables of figures, for pages and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ebmvk.report.metrics import Row

Cells = Sequence[str]
TRAINED, STATIC = "consolidated during training", "static memory"  # stores of splats


@dataclass(frozen=True)
class Table:
    """head: one cell per column; words: columns of text rather than of figures."""

    head: Cells
    rows: Sequence[Cells]
    words: bool = False


@dataclass(frozen=True)
class Section:
    """key: of the record's section. texts: (caption, text), side by side on the page."""

    key: str
    title: str
    note: str
    tables: Sequence[Table] = ()
    texts: Sequence[tuple[str, str]] = ()


def number(value: float | None, form: str = ".4f") -> str:
    """A dash for None, a true minus sign for what is negative."""
    return "–" if value is None else format(value, form).replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def shown(token: str) -> str:
    """A token with its white space visible, and nothing that would steer a terminal."""
    text = token.replace("\n", "⏎").replace(" ", "␣")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def interval(gain: Row) -> str:
    """A paired difference of nats per token with its interval, if it has one."""
    low, high = number(gain["low"], "+.4f"), number(gain["high"], "+.4f")
    return f"{number(gain['nats_per_token'], '+.4f')} ({'no interval' if gain['low'] is None else f'{low} to {high}'})"


def at(record: Row, *keys: Any) -> Any:
    """The value at a path below the sections, where a name picks a row of a list; None where it ends early."""
    value: Any = record["sections"]
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            value = value[key]
        elif isinstance(value, list):
            value = next((row for row in value if row.get("name") == key), None)
        else:
            return None
    return value


def plain(table: Table) -> list[str]:
    """Lines of a table: columns aligned, figures to the right."""
    rows = [list(table.head), *map(list, table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust if table.words or i == 0 else str.rjust for i in range(len(widths))]
    return [
        "  ".join(how(cell, width) for how, cell, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    ]
