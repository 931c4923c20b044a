"""Renders pages: every report is one HTML file without network, scripts or other files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup, escape

from ebmvk.report import glossary
from ebmvk.report.drawing import draw
from ebmvk.report.section import Part, Picture

CODE = re.compile(r"`([^`]+)`|(--[a-z][A-Za-z-]*(?: [0-9][\w.+-]*)?)")
"""A command in backticks, or a flag, with its value if that is a number."""


@dataclass(frozen=True)
class Page:
    """title: heading of the page; kind: what kind of page, for the title of the window; lead: the
    line below the heading; version: of ebmvk."""

    title: str
    kind: str
    lead: str
    parts: Sequence[Part]
    version: str = ""


def render(page: Page) -> str:
    """The HTML of a page."""
    return _template().render(page=page, words=_Words(), svg=_Drawn().svg)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ebmvk.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def marked(text: str) -> list[tuple[str, bool]]:
    """Pieces of a line, and whether each is a command or a flag."""
    pieces, done = [], 0
    for found in CODE.finditer(text):
        pieces += [(text[done : found.start()], False), (found[1] or found[2], True)]
        done = found.end()
    return [*pieces, (text[done:], False)]


class _Drawn:
    """Draws the pictures of one page; a number makes the ids of each picture unique."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def svg(self, picture: Picture) -> Markup:
        return Markup(draw(picture.chart, picture.title, f"{next(self._numbers)}"))  # noqa: S704  # texts are escaped


class _Words:
    """Marks up the texts of one page: flags and commands as code, and the first use of a term in
    each part as a link to its entry in the glossary."""

    def __init__(self) -> None:
        self._linked: set[str] = set()
        self._used: set[str] = set()

    def begin(self) -> str:
        """Begin a new part of the page, where terms are linked again."""
        self._linked = set()
        return ""

    @property
    def used(self) -> list[glossary.Term]:
        """The terms of the page so far."""
        return [term for term in glossary.TERMS if term.name in self._used]

    def __call__(self, text: str) -> Markup:
        return Markup("").join(self._code(piece) if code else self._prose(piece) for piece, code in marked(text))

    def _code(self, text: str) -> Markup:
        return Markup("<code{}>{}</code>").format(Markup(' class="flag"') if text.startswith("--") else "", text)

    def _prose(self, text: str) -> Markup:
        return Markup("").join(self._term(piece, term) for piece, term in glossary.found(text))

    def _term(self, text: str, term: glossary.Term | None) -> Markup:
        if term is None or term.name in self._linked:
            return escape(text)
        self._linked.add(term.name)
        self._used.add(term.name)
        link = Markup('<a class="term" href="#word-{}" title="{}">{}</a>')
        return link.format(term.key, term.meaning, text)
