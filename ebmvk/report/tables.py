"""Writes figures and tables, in one way for pages and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ebmvk.host.terminal import printable
from ebmvk.runs.metrics import Row

Cells = Sequence[str]
TRAINED, STATIC = "consolidated during training", "static memory"  # names of splat stores


@dataclass(frozen=True)
class Table:
    """head: one cell per column. words: True if columns have text rather than figures. prose:
    True if cells are sentences; the page then explains their terms and marks their commands."""

    head: Cells
    rows: Sequence[Cells]
    words: bool = False
    prose: bool = False


DASH = "–"  # for undefined values
UNBOUNDED = 1e300  # perplexities are cut off here, before they overflow
HUGE = 1e6  # figures with decimals from here on are written with a power of ten
SETTLED = 1e-3  # with a smaller reference error the token is obvious, and a ratio means nothing
MOST_TOKENS = 2.5  # per word; with more, as in code, perplexity per word means nothing


def number(value: float | None, form: str = ".4f") -> str:
    """A figure as text for users. form: a format specification; `f` means a fixed number of
    decimals.

    None and NaN become a dash, infinity becomes ∞. The minus sign is "−", not a hyphen. A value
    that rounds to zero has no minus (it is 0.0000, or +0.0000 if `form` asks for a sign). A
    fixed-point figure of a million or more gets a power of ten, such as 5.50e8: its other digits
    are noise and don't fit into columns. From 1e300 on it is `> 1e300`.
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isfinite(value) and abs(value) >= UNBOUNDED:
        return f"{'< −' if value < 0 else '> '}1e300"
    if math.isinf(value):
        return f"{'−' if value < 0 else '+' if '+' in form else ''}∞"
    if form.endswith("f") and abs(value) >= HUGE:
        sign = "+" if "+" in form else ""
        digits, _, exponent = f"{value:{sign}.2e}".partition("e")
        return _signed(f"{digits}e{int(exponent)}")
    fixed = form[-1:] in "f%" and "z" not in form  # z: a value that rounds to zero loses its minus
    sign, rest = (form[0], form[1:]) if form[:1] in ("+", "-", " ") else ("", form)
    return _signed(format(value, f"{sign}z{rest}" if fixed else form))


def _signed(text: str) -> str:
    """The text with a true minus sign in front. An exponent keeps its hyphen, so it can be
    copied."""
    return f"−{text[1:]}" if text.startswith("-") else text


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    text = number(None if value is None else 100 * value, f".{digits}f")
    return text if text == DASH else f"{text} %"


def duration(seconds: float) -> str:
    """A duration such as '42 s', '3 min 20 s', '5 h 10 min', '2 days 3 h'; a dash if unknown."""
    if not math.isfinite(seconds) or seconds < 0:
        return DASH
    for unit, part, name, smaller in ((86_400, 3600, "day", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if (rounded := round(seconds / part) * part) >= unit:
            count, rest = divmod(rounded, unit)
            several = "s" if name == "day" and count > 1 else ""
            return f"{count:,} {name}{several}" + (f" {rest // part} {smaller}" if rest else "")
    return f"{round(seconds)} s"


def below(level: Row) -> str:
    """How far the error at a noise level is below that of a denoiser that knows only frequencies.

    A dash if that denoiser has hardly any error (`SETTLED`), because then the ratio means nothing.
    """
    if level["ratio"] is None or level["unigram_loss"] < SETTLED:
        return DASH
    share = percent(1 - level["ratio"])
    if level["error"] is None:  # the text is too short to tell
        return share
    return f"{share} ± {number(100 * level['error'], '.1f')}"


def per_word(row: Row) -> float | None:
    """Perplexity per word of a row of likelihood; None if it means nothing: the text has no words,
    or a word has more than `MOST_TOKENS` tokens, so it isn't a unit of this text."""
    return None if row["ppl_word"] is None or row["tokens"] > MOST_TOKENS * row["words"] else row["ppl_word"]


def why_no_word(row: Row) -> str:
    """Why a row of likelihood has no perplexity per word."""
    if not row["words"]:
        return "the text has no words"
    each = number(row["tokens"] / row["words"], ".1f")
    return f"not shown: {each} tokens per word; compare bits per byte"


def shown(token: str) -> str:
    """A token with white space made visible and characters that control a terminal escaped."""
    return printable(token.replace("\n", "⏎").replace(" ", "␣"))


def interval(gain: Row) -> str:
    """A paired difference of nats per token with its interval, if there is one."""
    value = number(gain["nats_per_token"], "+.4f")
    if gain["low"] is None or gain["high"] is None:
        return f"{value} (no interval)"
    return f"{value} ({number(gain['low'], '+.4f')} to {number(gain['high'], '+.4f')})"


def at(record: Row, *keys: Any) -> Any:
    """The value at a path below a record's sections; None if the path ends early.

    keys: of dictionaries; in a list, an index or the name of a row.
    """
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
