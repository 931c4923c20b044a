"""Bars, histograms and maps, in the style of `plots`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from ebmvk.report.plots import GRID, SERIES, STYLE, WIDTH, dress, legend, svg_of


@contextmanager
def _axes(name: str, size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def bar_plot(
    name: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str
) -> str:
    """An <svg> element: a group of bars for each label, a colour for each of the series."""
    with _axes(name, (WIDTH, 2.7)) as (figure, axes):
        width = 0.8 / len(series)
        colours = [SERIES[i % len(SERIES)] for i in range(len(series))]
        for i, values in enumerate(series.values()):
            place = np.arange(len(labels)) + (i + 0.5) * width - 0.4
            axes.bar(place, list(values), width * 0.92, color=colours[i])
        dress(axes, xlabel, ylabel)
        axes.set_xticks(range(len(labels)), labels)
        if len(series) > 1:
            legend(figure, [Patch(color=colour) for colour in colours], list(series))
        return svg_of(figure, name)


def histogram_plot(name: str, edges: Sequence[float], counts: Sequence[int], *, xlabel: str, ylabel: str) -> str:
    """An <svg> element. edges: (bins + 1); counts: (bins)."""
    with _axes(name, (WIDTH, 2.1)) as (figure, axes):
        low, wide = np.asarray(edges[:-1]), np.diff(edges)
        axes.bar(low, list(counts), wide * 0.94, align="edge", color=SERIES[0])
        dress(axes, xlabel, ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
        axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        return svg_of(figure, name)


def _apart(x: Sequence[float], y: Sequence[float], labels: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The labels that have room: a text takes about 1/60 of the map's width per character, and 1/24 of its height."""
    wide, high = (max(np.ptp(np.asarray(part, dtype=float)), 1e-9) if len(part) else 1.0 for part in (x, y))
    taken: list[tuple[float, float, float]] = []
    for i, text in labels:
        left, low, length = x[i] / wide, y[i] / high, (len(text) + 1) / 60
        if all(abs(low - b) > 1 / 24 or left > a + n or a > left + length for a, b, n in taken):
            taken.append((left, low, length))
            yield i, text


def map_plot(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    shade: Sequence[float],
    labels: Sequence[tuple[int, str]] = (),
) -> str:
    """An <svg> element of points; a larger shade, 0 to 1, is drawn fuller. labels: (index of the point, text), the most
    important first; a label that would cover another is left out."""
    with _axes(name, (6.4, 4.6)) as (figure, axes):
        alpha = 0.25 + 0.75 * np.asarray(shade, dtype=float)
        axes.scatter(x, y, s=14, c=[to_rgba(SERIES[0], float(share)) for share in alpha], linewidths=0)
        axes.set(xticks=[], yticks=[], aspect="equal")
        for i, text in _apart(x, y, labels):
            axes.annotate(text, (x[i], y[i]), xytext=(3, 1), textcoords="offset points", fontsize=9)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_color(GRID)
        return svg_of(figure, name)
