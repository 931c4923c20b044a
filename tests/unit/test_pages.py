"""The registry of report sections, and the renderer that both pages share."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ebmvk.diagnosis import diagnosis
from ebmvk.report import glossary, run_page
from ebmvk.report.charts import Curve, Lines
from ebmvk.report.page import Page, render
from ebmvk.report.section import Banner, Part, Picture, Section, Shown, Tile
from ebmvk.report.tables import Table


@pytest.mark.parametrize("sections", [diagnosis.SECTIONS, run_page.SECTIONS])
def test_sections_have_different_names(sections: tuple[Section[Any, Any], ...]) -> None:
    names = [section.name for section in sections]
    assert len(set(names)) == len(names)


def _page(*parts: Part) -> str:
    return render(Page("a title", "test", "a lead", parts))


def test_a_page_shows_every_kind_of_content() -> None:
    inner = Shown(
        note="a note",
        banners=[Banner("a word", "a text", "a reason", "good")],
        tiles=[Tile("42", "a name", "a hint")],
        points=["a point"],
        tables=[Table(("a head", "another"), [("a cell", "7")]), Table((), [("a key", "a value")], words=True)],
        pictures=[Picture("a picture", "how to read it", Lines([Curve("one", [0.0, 1.0], [1.0, 2.0])], "y"))],
        texts=[("a caption", "a sample")],
    )
    page = _page(
        Part("a part", Shown(parts=[Part("a side", inner)])), Part("folded", Shown(parts=[Part("x", inner)]), True)
    )
    for words in ("a title", "a lead", "a part", "a side", *re.findall(r"'([^']+)'", repr(inner))):
        assert words in page, words
    assert page.count("<svg") == 2
    assert page.count("<details>") == 1


def test_terms_link_to_their_entry_in_the_glossary() -> None:
    page = _page(Part("one", Shown("Splats in nats, and more splats.")), Part("two", Shown("A splat.")))
    links = re.findall(r'href="#([^"]+)"', page)
    assert links == ["word-splat", "word-nat", "word-splat"]  # once in each part
    assert all(f'id="{link}"' in page for link in links)
    assert "Words on this page" not in _page(Part("none", Shown("Nothing to explain.")))


def test_texts_and_labels_cannot_inject_html() -> None:
    evil = '<b onclick="x">&'
    chart = Lines([Curve(evil, [0.0, 1.0], [1.0, 2.0]), Curve("b", [0.0], [1.0])], evil)
    shown = Shown(evil, points=[f"`{evil}`"], texts=[(evil, evil)], pictures=[Picture(evil, evil, chart)])
    assert "<b on" not in _page(Part(evil, shown))


@pytest.mark.parametrize("term", glossary.TERMS, ids=lambda term: term.key)
def test_a_term_is_found_by_its_own_name(term: glossary.Term) -> None:
    name = {"φ (phi)": "phi", "distinct-n": "distinct-2", "attention head": "head", "context and stride": "stride"}
    text = f"the {name.get(term.name, term.name)} of it"
    assert [found.name for _, found in glossary.found(text) if found] == [term.name]
    assert "".join(piece for piece, _ in glossary.found(text)) == text
