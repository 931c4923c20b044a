"""Draws charts as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from ebmvk.report.charts import STEP, Bars, Blocks, Chart, Curve, Heads, Histogram, Lines, Map
from ebmvk.report.svg import GRID, INK, SERIES, WIDTH, dress, figure_of, legend, svg_of

DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))  # when colours are used up
HEAT = (0.27, 0.53, 0.83)  # visible on light and on dark
MOST_HEADS = 6  # side by side


def draw(chart: Chart, name: str, salt: str = "") -> str:
    """An <svg> element. name: for readers who can't see the picture; salt: unique on the page."""
    salt = salt or name
    match chart:
        case Lines():
            return _lines(chart, name, salt)
        case Bars():
            return _bars(chart, name, salt)
        case Histogram():
            return _histogram(chart, name, salt)
        case Map():
            return _map(chart, name, salt)
        case Heads():
            return _heads(chart, name, salt)
        case Blocks():
            return _blocks(chart, name, salt)


def _lines(chart: Lines, name: str, salt: str) -> str:
    with figure_of(salt, (WIDTH, 2.7)) as figure:
        axes = figure.add_subplot()
        drawn = [(_curve(axes, curve), curve) for curve in chart.curves]
        named = [(line, curve.label) for line, curve in drawn if not curve.faint]
        for label, value in chart.marks.items():
            axes.axhline(value, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.annotate(  # beside the axes, where no curve is
                label, (1.0, value), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
        dress(axes, chart.xlabel, chart.ylabel, chart.log, chart.log_x)
        low, high = axes.get_ylim()
        if high - low < chart.span:
            axes.set_ylim((low + high - chart.span) / 2, (low + high + chart.span) / 2)
        if chart.xlabel == STEP:
            axes.set_xlim(left=0)  # where training begins
        if len(named) > 1:
            legend(figure, [line for line, _ in named], [label for _, label in named])
        return svg_of(figure, name)


def _curve(axes: Axes, curve: Curve) -> Line2D:
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


def _bars(chart: Bars, name: str, salt: str) -> str:
    with figure_of(salt, (WIDTH, 2.7)) as figure:
        axes = figure.add_subplot()
        width = 0.8 / len(chart.series)
        colours = [SERIES[i % len(SERIES)] for i in range(len(chart.series))]
        for i, values in enumerate(chart.series.values()):
            place = np.arange(len(chart.labels)) + (i + 0.5) * width - 0.4
            axes.bar(place, list(values), width * 0.92, color=colours[i])
        dress(axes, chart.xlabel, chart.ylabel)
        axes.set_xticks(range(len(chart.labels)), chart.labels)
        if len(chart.series) > 1:
            legend(figure, [Patch(color=colour) for colour in colours], list(chart.series))
        return svg_of(figure, name)


def _histogram(chart: Histogram, name: str, salt: str) -> str:
    with figure_of(salt, (WIDTH, 2.1)) as figure:
        axes = figure.add_subplot()
        low, wide = np.asarray(chart.edges[:-1]), np.diff(chart.edges)
        axes.bar(low, list(chart.counts), wide * 0.94, align="edge", color=SERIES[0])
        dress(axes, chart.xlabel, chart.ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        return svg_of(figure, name)


def _blocks(chart: Blocks, name: str, salt: str) -> str:
    with figure_of(salt, (2 * WIDTH, 3.6)) as figure:
        axes = figure.add_subplot()
        colours = [SERIES[i % len(SERIES)] for i in range(len(chart.names))]
        for i, colour in enumerate(colours):
            own = [box for box in chart.boxes if box[4] == i]
            faces = [Rectangle((a, low), b - a, high - low) for a, b, low, high, _ in own]
            axes.add_collection(PatchCollection(faces, facecolor=colour, edgecolor=INK, linewidth=0.3))
        dress(axes, chart.xlabel, chart.ylabel)
        axes.autoscale_view()
        axes.set_ylim(bottom=0)
        legend(figure, [Patch(color=colour) for colour in colours], list(chart.names))
        return svg_of(figure, name)


def _map(chart: Map, name: str, salt: str) -> str:
    with figure_of(salt, (6.4, 4.6)) as figure:
        axes = figure.add_subplot()
        alpha = 0.25 + 0.75 * np.asarray(chart.shade, dtype=float)
        colours = [to_rgba(SERIES[0], float(share)) for share in alpha]
        axes.scatter(chart.x, chart.y, s=14, c=colours, linewidths=0)
        axes.set(xticks=[], yticks=[], aspect="equal")
        for i, text in _apart(chart.x, chart.y, chart.labels):
            place = (chart.x[i], chart.y[i])
            axes.annotate(text, place, xytext=(3, 1), textcoords="offset points", fontsize=9)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_color(GRID)
        return svg_of(figure, name)


def _apart(x: Sequence[float], y: Sequence[float], labels: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The labels that fit without overlap. A character takes about 1/60 of the map's width and 1/24
    of its height.
    """
    wide, high = (max(np.ptp(np.asarray(part, dtype=float)), 1e-9) if len(part) else 1.0 for part in (x, y))
    taken: list[tuple[float, float, float]] = []
    for i, text in labels:
        left, low, length = x[i] / wide, y[i] / high, (len(text) + 1) / 60
        if all(abs(low - b) > 1 / 24 or left > a + n or a > left + length for a, b, n in taken):
            taken.append((left, low, length))
            yield i, text


def _heads(chart: Heads, name: str, salt: str) -> str:
    """The more position t (down) looks at position s (across), the darker the square. Shades are
    square roots of the weights, so that small ones are visible."""
    parts = [
        (label, maps[i : i + MOST_HEADS], own[i : i + MOST_HEADS])
        for (label, maps), own in zip(chart.rows, chart.titles, strict=True)
        for i in range(0, len(maps), MOST_HEADS)
    ]
    heads = max(len(maps) for _, maps, _ in parts)
    width = max(1.35 * heads + 0.5, 3.6)
    told = _numbered(chart.tokens, round(width * 15))
    with figure_of(salt, (width, 1.65 * len(parts) + 0.15 * len(told)), grid=False) as figure:
        grid = figure.subplots(len(parts), heads, squeeze=False)
        below = [len(maps) for _, maps, _ in parts[1:]] + [0]
        for cells, (label, maps, own), under in zip(grid, parts, below, strict=True):
            for axes in cells[len(maps) :]:
                axes.set_visible(False)
            for i, (axes, weights, title) in enumerate(zip(cells, maps, own, strict=False)):
                _head(axes, weights, title, across=i >= under, down=i == 0)
            cells[0].set_ylabel(label, fontsize=8)
        if told:
            figure.supxlabel("\n".join(told), x=0.01, ha="left", fontsize=8, color=INK)
        return svg_of(figure, name, least=1.35, most=1.6)  # the text of these pictures is small


def _head(axes: Axes, weights: Any, title: str, *, across: bool, down: bool) -> None:
    """across, down: True to number the positions on that axis; other maps beside or below this one
    share the numbers."""
    colour = np.zeros((*np.shape(weights), 4))
    colour[..., :3] = HEAT
    colour[..., 3] = np.sqrt(np.asarray(weights, dtype=float))
    axes.imshow(colour, interpolation="nearest")
    axes.set_title(title, fontsize=8, color=INK, pad=2)
    places = range(0, len(weights), max(1, len(weights) // 4))
    axes.set_xticks(places if across else [], [f"{place + 1}" for place in places if across], fontsize=7)
    axes.set_yticks(places if down else [], [f"{place + 1}" for place in places if down], fontsize=7)
    axes.tick_params(length=0, pad=1)


def _numbered(tokens: Sequence[str], width: int) -> list[str]:
    """Lines of at most about `width` characters: each token behind the number of its position."""
    lines: list[str] = []
    for word in (f"{place} {token}" for place, token in enumerate(tokens, start=1)):
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return lines
