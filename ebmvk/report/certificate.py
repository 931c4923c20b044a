"""Draws the pictures of a certification, each as an SVG file."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ebmvk.certification.results import Picture

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
}
COLOURS = ("#2563a8", "#c4551d", "#2f7d4f")


def draw(picture: Picture) -> str:
    """The text of an SVG file; equal pictures give equal texts."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": picture.name}):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for series, colour in zip(picture.series, COLOURS, strict=False):
            style = "o" if series.marks else "-"
            axes.plot(list(series.x), list(series.y), style, label=series.label, color=colour, markersize=4.5)
        for label, value in picture.lines.items():
            axes.axhline(value, color="#666666", linewidth=1.1, linestyle=(0, (4, 3)), label=label)
        axes.set(title=picture.title, xlabel=picture.xlabel, ylabel=picture.ylabel)
        if picture.log:
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
