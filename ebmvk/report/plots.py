"""Curves as inline SVG that takes its colours from the page, so one picture serves light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Drawn in these colours, which nothing else in the picture has, then replaced by the page's own variables.
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06", "#0a0b07", "#0a0b08")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))  # for further lines when the colours are used up
INK, GRID = "#0a0b0c", "#0a0b0d"
COLOURS = {colour: f"var(--series-{i + 1})" for i, colour in enumerate(SERIES)} | {
    INK: "var(--ink-soft)",
    GRID: "var(--rule)",
}
HEAT = (0.20, 0.45, 0.75)  # seen on light and on dark
WIDTH = 4.8  # inches of a chart: legible in a column of a wide page, and over the whole width of a phone
LEGIBLE = 0.95  # pixels per point for legible text; narrower pages scroll the picture
MOST_HEADS = 6  # side by side
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
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


STEP = "step"


@dataclass(frozen=True)
class Curve:
    """Points of one line. `faint`: the raw values behind a smoothed line; `dots`: few points, each one marked."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    dots: bool = False
    colour: int = 0


def line_plot(
    name: str,
    curves: Sequence[Curve],
    *,
    ylabel: str,
    log: bool = False,
    lines: Mapping[str, float] | None = None,
    span: float = 0.0,
    xlabel: str = STEP,
    log_x: bool = False,
) -> str:
    """An <svg> element.

    Args:
        name: of the picture, for readers that can't see it; also keeps its ids apart from the other pictures'.
        lines: horizontal reference lines, by label.
        span: the least height of the y axis, so that noise around a constant does not look like a story.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        drawn = [(_draw(axes, curve), curve) for curve in curves]
        named = [(line, curve.label) for line, curve in drawn if not curve.faint]
        for label, value in (lines or {}).items():
            axes.axhline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(  # beside the axes, where no curve is
                label, (1.0, value), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
        dress(axes, xlabel, ylabel, log, log_x)
        low, high = axes.get_ylim()
        if high - low < span:
            axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)
        if xlabel == STEP:
            axes.set_xlim(left=0)  # where training begins
        if len(named) > 1:
            legend(figure, [line for line, _ in named], [label for _, label in named])
        return svg_of(figure, name)


def legend(figure: Figure, marks: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above the axes, in as many columns as fit; it shows all labels, also those that begin with _."""
    longest = max(map(len, labels))
    columns = 3 if longest <= 17 else 2 if longest <= 28 else 1
    figure.legend(
        marks, labels, loc="outside upper left", ncols=columns, fontsize=9, labelcolor=INK, handlelength=1.6,
        columnspacing=1.2, borderpad=0.1,
    )  # fmt: skip


def is_course(curves: Sequence[Curve]) -> bool:
    """True if there is more than one point to draw: a single dot isn't a curve, and tables have its value."""
    return len({x for curve in curves for x in curve.x}) > 1


def heat_maps(
    name: str, rows: Sequence[tuple[str, Sequence[Any]]], titles: Sequence[Sequence[str]], tokens: Sequence[str] = ()
) -> str:
    """An <svg> element with a picture per head: rows of (label, weights (H, T, T)), titles of each head, and the
    tokens (T) at the positions.

    The darker, the more position t (down) looks at position s (across); square roots make small weights visible.
    """
    parts = [
        (label, maps[i : i + MOST_HEADS], own[i : i + MOST_HEADS])
        for (label, maps), own in zip(rows, titles, strict=True)
        for i in range(0, len(maps), MOST_HEADS)
    ]
    heads = max(len(maps) for _, maps, _ in parts)
    width = max(1.35 * heads + 0.5, 3.6)
    told = _numbered(tokens, round(width * 15))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name, "axes.grid": False}):
        height = 1.65 * len(parts) + 0.15 * len(told)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(len(parts), heads, squeeze=False)
        for cells, (label, maps, own) in zip(grid, parts, strict=True):
            for axes in cells[len(maps) :]:
                axes.set_visible(False)
            for axes, weights, title in zip(cells, maps, own, strict=False):
                colour = np.zeros((*np.shape(weights), 4))
                colour[..., :3] = HEAT
                colour[..., 3] = np.sqrt(np.asarray(weights, dtype=float))
                axes.imshow(colour, interpolation="nearest")
                axes.set_title(title, fontsize=8, color=INK, pad=2)
                places = range(0, len(weights), max(1, len(weights) // 4))
                axes.set_xticks(places, [f"{place + 1}" for place in places], fontsize=7)
                axes.set_yticks(places, [f"{place + 1}" for place in places], fontsize=7)
                axes.tick_params(length=0, pad=1)
            cells[0].set_ylabel(label, fontsize=8)
        if told:
            figure.supxlabel("\n".join(told), x=0.01, ha="left", fontsize=8, color=INK)
        return svg_of(figure, name, least=1.35, most=1.6)  # the text of these pictures is small


def _numbered(tokens: Sequence[str], width: int) -> list[str]:
    """Lines of at most about `width` characters: each token behind the number of its position."""
    lines: list[str] = []
    for word in (f"{place} {token}" for place, token in enumerate(tokens, start=1)):
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return lines


def _draw(axes: Axes, curve: Curve) -> Line2D:
    (line,) = axes.plot(
        np.asarray(curve.x, dtype=float),
        np.asarray(curve.y, dtype=float),
        color=SERIES[curve.colour % len(SERIES)],
        linestyle=DASHES[curve.colour // len(SERIES) % len(DASHES)],
        alpha=0.28 if curve.faint else 1.0,
        linewidth=1.0 if curve.faint else 1.8,
        marker="o" if curve.dots else None,
        markersize=4.0,
    )
    return line


def dress(axes: Axes, xlabel: str, ylabel: str, log: bool = False, log_x: bool = False) -> None:
    """Labels, ticks and lines of axes, in the style of all pictures; by default the x axis counts."""
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
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def svg_of(figure: Figure, name: str, least: float = LEGIBLE, most: float | None = None) -> str:
    """The figure as an <svg> element for a page, as wide as its container. name: for readers that can't see it; least,
    most: pixels per point."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, least, most)


def _inline(svg: str, name: str, least: float, most: float | None) -> str:
    """The <svg> element alone, scaling with the page, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every picture, and used by none
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", svg)
    size = re.search(r'viewBox="\S+ \S+ (\S+) [^"]+"', svg)
    assert size is not None  # matplotlib writes one
    wide = float(size[1])
    limit = f";max-width:{most * wide:.0f}px" if most else ""
    style = f'style="min-width:{least * wide:.0f}px{limit}"'
    return f'<svg {size[0]} {style} role="img" aria-label="{escape(name)}">{svg[svg.index(">") + 1 :]}'
