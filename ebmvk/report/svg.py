"""The style of all pictures. They take their colours from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ebmvk.report.charts import COLOURS

# Curves are drawn in colours that nothing else has, which are then replaced by the page's
# variables.
SERIES = tuple(f"#0a0b{i + 1:02x}" for i in range(COLOURS))
INK, GRID = "#0a0bfe", "#0a0bff"
_VARIABLES = {colour: f"var(--series-{i + 1})" for i, colour in enumerate(SERIES)} | {
    INK: "var(--ink-soft)",
    GRID: "var(--rule)",
}
_OUTSIDE = {"var(--ink-soft)": "#555", "var(--rule)": "#ccc", "var(--sans)": "sans-serif"}
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
WIDTH = 4.8  # inches of a chart: legible in a column of a wide page, and on a phone
LEGIBLE = 0.95  # pixels per point for legible text; narrower pages scroll the picture
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a run may be named $x$
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@contextmanager
def figure_of(salt: str, size: tuple[float, float], *, grid: bool = True) -> Iterator[Figure]:
    """An empty figure in this style. salt: makes the ids of the picture unique on its page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt, "axes.grid": grid}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def legend(figure: Figure, marks: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above the axes, in as many columns as fit, even with labels that begin with _."""
    longest = max(map(len, labels))
    columns = 3 if longest <= 17 else 2 if longest <= 28 else 1
    figure.legend(
        marks, labels, loc="outside upper left", ncols=columns, fontsize=9, labelcolor=INK, handlelength=1.6,
        columnspacing=1.2, borderpad=0.1,
    )  # fmt: skip


def dress(axes: Axes, xlabel: str, ylabel: str, log: bool = False, log_x: bool = False) -> None:
    """Labels, ticks and lines of the axes. By default the x axis has whole numbers."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(visible=False, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0)
    if log:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    if log_x:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
    axes.margins(x=0.01)


def _log_ticks(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    narrow = high < 10 * low  # needs more labels
    digits = (1.0, 1.5, *range(2, 10)) if narrow else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=digits, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def svg_of(figure: Figure, name: str, least: float = LEGIBLE, most: float | None = None) -> str:
    """The figure as an <svg> element for a page, as wide as its container.

    name: for readers who can't see the picture. least, most: pixels per point.
    """
    layout = figure.get_layout_engine()
    assert layout is not None  # figure_of gives one
    layout.execute(figure)
    figure.set_layout_engine("none")  # otherwise savefig would draw everything once more to lay it out
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # unused, and the same in every picture
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", svg)
    size = re.search(r'viewBox="\S+ \S+ (\S+) [^"]+"', svg)
    assert size is not None  # matplotlib writes one
    wide = float(size[1])
    limit = f";max-width:{most * wide:.0f}px" if most else ""
    style = f'style="min-width:{least * wide:.0f}px{limit}"'
    return f'<svg {size[0]} {style} role="img" aria-label="{escape(name)}">{svg[svg.index(">") + 1 :]}'


def alone(svg: str) -> str:
    """A picture as a file of its own, with namespaces and colours that a page would provide."""
    named = svg.replace("<svg ", f"<svg {_NAMESPACES} ", 1)
    for variable, value in _OUTSIDE.items():
        named = named.replace(variable, value)
    return named
