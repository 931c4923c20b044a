"""What a page consists of, as data: sections that measure something and show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from ebmvk.report.charts import Chart
from ebmvk.report.tables import Table

S = TypeVar("S")
T = TypeVar("T")
State = Literal["good", "bad", "doubt", "going", "plain"]


@dataclass(frozen=True)
class Picture:
    """A chart with its title. note: how to read it. wide: over the whole width of the page."""

    title: str
    note: str
    chart: Chart
    wide: bool = False


@dataclass(frozen=True)
class Tile:
    """One of the few figures that matter most."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Banner:
    """A conclusion that readers must not miss. state: good or bad news, which decides the
    colour.
    """

    word: str
    text: str = ""
    note: str = ""
    state: State = "plain"


@dataclass(frozen=True)
class Shown:
    """The content of a section, in the order of the page.

    note: how to read it. points: a list of sentences. texts: (caption, text), side by side. parts:
    sections within this one, side by side.
    """

    note: str = ""
    banners: Sequence[Banner] = ()
    tiles: Sequence[Tile] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    texts: Sequence[tuple[str, str]] = ()
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Part:
    """A heading with its content. folded: closed until the reader opens it."""

    title: str
    shown: Shown
    folded: bool = False


@dataclass(frozen=True)
class Absent:
    """A section that makes no sense for a model or a run, and why."""

    why: str


@dataclass(frozen=True)
class Section(Generic[S, T]):
    """One section of a page. Nothing else needs to know about the section.

    Args:
        name: the key of its figures in a record.
        measure: the figures of a subject. If there are none, `Absent` with a reason, or None.
        show: content for the page, made from what `measure` returned, perhaps in an earlier
            version.
        also: keys of the whole record that `show` needs too.
    """

    name: str
    title: str
    measure: Callable[[S], T | Absent | None]
    show: Callable[[T], Shown]
    also: Sequence[str] = ()
