"""Charts as data, which `drawing` draws, so sections and tests need no drawing library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEP = "step"
COLOURS = 8  # a page has this many colours for series; further curves are dashed


@dataclass(frozen=True)
class Curve:
    """One line. faint: raw values behind a smoothed line, not in the legend; dots: mark points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    dots: bool = False
    colour: int = 0


@dataclass(frozen=True)
class Lines:
    """Curves over steps, or over `xlabel`.

    marks: horizontal reference lines, by label. span: the least height of the y axis, so that noise
    around a constant doesn't look like a trend.
    """

    curves: Sequence[Curve]
    ylabel: str
    xlabel: str = STEP
    log: bool = False
    log_x: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    span: float = 0.0


@dataclass(frozen=True)
class Bars:
    """A group of bars for each label, with one bar and colour for each of the series."""

    labels: Sequence[str]
    series: Mapping[str, Sequence[float]]
    xlabel: str
    ylabel: str


@dataclass(frozen=True)
class Histogram:
    """edges: (bins + 1); counts: (bins)."""

    edges: Sequence[float]
    counts: Sequence[int]
    xlabel: str
    ylabel: str


@dataclass(frozen=True)
class Map:
    """Points of a plane. shade: 0 to 1, how strongly each is drawn. labels: (index of the point,
    text), the most important first; a label that would cover an earlier one is omitted."""

    x: Sequence[float]
    y: Sequence[float]
    shade: Sequence[float]
    labels: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Heads:
    """An attention map for each head. rows: (layer, weights (H, T, T)); titles: one for each head
    of each layer; tokens: (T) at the positions."""

    rows: Sequence[tuple[str, Sequence[Any]]]
    titles: Sequence[Sequence[str]]
    tokens: Sequence[str] = ()


@dataclass(frozen=True)
class Blocks:
    """Rectangles, such as tensors in memory over time.

    boxes: (left, right, bottom, top, number of its name). names: of colours, for the legend.
    """

    boxes: Sequence[tuple[float, float, float, float, int]]
    names: Sequence[str]
    xlabel: str
    ylabel: str


Chart = Lines | Bars | Histogram | Map | Heads | Blocks


def is_course(curves: Sequence[Curve]) -> bool:
    """True if there is more than one x: a single point isn't a curve, and tables have its value."""
    return len({x for curve in curves for x in curve.x}) > 1
