"""Corpora are repaired without loss of sense, said once, and measured as they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebmvk.data.analysis import analyse
from ebmvk.data.cleaning import LONG_PARAGRAPH, clean, clean_text
from ebmvk.data.datasets import Corpus
from ebmvk.data.tokenizer import character_tokenizer

PARAGRAPH = "This paragraph stands under every page of the site and says nothing that anyone wants to learn. " * 2


def test_what_is_repaired() -> None:
    broken = "La\u00a0educaciÃ³n  bÃ¡sica\tde Espan\u0303a\u200b\u0007\r\n\r\n\r\n\r\nﬁn\u00ad "
    assert clean_text(broken) == "La educación básica de España\n\nfin"
    assert clean_text("ÁRBOL", preserve_case=False) == "árbol"


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once


@given(st.lists(st.text(alphabet="ab \n.", max_size=30), max_size=8))
def test_no_document_is_said_twice(documents: list[str]) -> None:
    found = clean(documents)
    said = ["".join(c for c in text if c.isalnum()) for text in found.documents]
    assert len(set(said)) == len(said)
    left = len(found.documents) + found.documents_empty + found.documents_repeated
    assert left == len(documents)
    assert clean(found.documents).documents == found.documents


def test_boilerplate_is_said_once() -> None:
    assert len(PARAGRAPH) > LONG_PARAGRAPH
    documents = [f"Page {i}\n{PARAGRAPH}\nshort line\nEnd {i}" for i in range(3)] + ["PAGE 1 — end!", "page 1: end"]
    found = clean(documents)
    assert found.paragraphs_repeated == 2
    assert found.documents[0] == documents[0].replace(PARAGRAPH, PARAGRAPH.strip())
    assert found.documents[1] == "Page 1\nshort line\nEnd 1"
    assert found.documents_repeated == 1
    assert found.documents_changed == 3  # a blank at the end of the paragraph


def test_what_an_analysis_says() -> None:
    documents = ["a" * 100, "b" * 300, "c" * 500, "de" * 1000]
    found = analyse(documents, character_tokenizer(Corpus("c", "", {"train": documents})))
    assert (found.documents, found.tokens, found.bytes) == (4, 2900, 2900)
    assert (found.mean, found.median, found.least, found.most) == (725.0, 400.0, 100, 2000)
    assert (found.block_size, found.stride, found.preset) == (256, 192, "small")
    assert found.perplexity is not None
    assert found.perplexity[1] < 1.1  # "dede..."; the trigram is certain
    assert analyse(["ab"], character_tokenizer(Corpus("c", "", {"train": ["ab"]}))).perplexity is None
