"""Corpora are repaired without loss of sense, said once, and measured as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk import presets
from ebmvk.data.analysis import FEW_TOKENS, Analysis, analyse, preset_for
from ebmvk.data.cleaning import LONG_PARAGRAPH, clean, clean_text
from ebmvk.data.datasets import Corpus
from ebmvk.data.splitting import hold_out
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


def _analysed(documents: list[str], longest: int = 256) -> Analysis:
    return analyse(documents, character_tokenizer(Corpus("c", "", {"train": documents})), "small", longest)


def test_what_an_analysis_says() -> None:
    documents = ["a" * 100, "b" * 300, "c" * 500, "de" * 1000]
    found = _analysed(documents)
    assert (found.documents, found.tokens, found.bytes) == (4, 2900, 2900)
    assert (found.mean, found.median, found.least, found.most) == (725.0, 400.0, 100, 2000)
    assert (found.block_size, found.stride, found.preset) == (256, 192, "small")
    assert found.perplexity is not None
    assert found.perplexity[1] < 1.1  # "dede..."; the trigram is certain
    train, held = hold_out(documents)
    assert (found.fitted, found.measured) == (len("".join(train)) + len(train), len("".join(held)) + len(held))
    assert _analysed(["ab"]).perplexity is None


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.sampled_from([256, 512, 1024]))
def test_block_and_stride_follow_from_the_lengths_and_from_the_preset(lengths: list[int], longest: int) -> None:
    """Whatever training holds out, a document is measured whole."""
    found = _analysed(["x" * length for length in lengths], longest)
    assert (found.documents, found.tokens, found.least, found.most) == (
        len(lengths), sum(lengths), min(lengths), max(lengths),
    )  # fmt: skip
    assert found.block_size <= min(longest, max(32, found.median))
    assert 2 * found.block_size > min(longest, found.median)
    assert found.stride == (found.block_size * 3 // 4 if found.median > found.block_size else found.block_size)
    assert found.tokens < FEW_TOKENS


@pytest.mark.parametrize("size", [1, 600_000, 199_999_999])
def test_a_suggested_block_fits_its_preset(size: int) -> None:
    preset = preset_for(["x" * size])
    assert preset == "small"
    assert _analysed(["x" * 5000], presets.recipe("minillm", preset)["seq_length"]).block_size == 256
