"""Cleaning repairs texts without loss and keeps documents once; analysis measures them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk.config import sizes as presets
from ebmvk.data.analysis import FEW_TOKENS, Analysis, analyse, preset_for
from ebmvk.data.cleaning import LONG_PARAGRAPH, Blanks, Rules, Same, clean, clean_text
from ebmvk.data.corpus import Corpus
from ebmvk.data.splitting import hold_out
from ebmvk.data.tokenizer_kinds import character_tokenizer

PARAGRAPH = "This paragraph stands under every page of the site and says nothing that anyone wants to learn. " * 2


def test_encodings_and_blanks_are_repaired() -> None:
    broken = "La\u00a0educaciÃ³n  bÃ¡sica de Espan\u0303a\u200b\u0007\r\n\r\n\r\n\r\nﬁn\u00ad "
    assert clean_text(broken) == "La educación básica de España\n\nfin"
    assert clean_text("ÁRBOL", Rules(preserve_case=False)) == "árbol"


@given(st.text(), st.sampled_from(["auto", "keep", "single", "flat"]))
def test_cleaning_twice_changes_nothing_more(text: str, blanks: Blanks) -> None:
    once = clean_text(text, Rules(blanks=blanks))
    assert clean_text(once, Rules(blanks=blanks)) == once


@given(st.lists(st.text(alphabet="aAb \n.+", max_size=30), max_size=8), st.sampled_from(["text", "letters"]))
def test_every_document_is_kept_exactly_once(documents: list[str], same: Same) -> None:
    rules = Rules(same=same)
    found = clean(documents, rules)
    wanted = list(dict.fromkeys(text for text in map(clean_text, documents) if text))
    assert found.documents == wanted or same == "letters"
    said = [_letters(text) if same == "letters" else text for text in found.documents]
    assert len(set(said)) == len(said)
    assert set(said) == {_letters(text) if same == "letters" else text for text in wanted}
    assert len(found.documents) + found.documents_empty + found.documents_repeated == len(documents)
    assert clean(found.documents, rules).documents == found.documents


def _letters(text: str) -> str:
    """The letters and digits of a text, without case; a text without letters stands for itself."""
    return "".join(c for c in text.lower() if c.isalnum()) or text


@pytest.mark.parametrize(
    "different",
    [
        ("x > 0", "x < 0"),
        ("C", "C++", "c"),
        ("😀", "😂"),
        ("!", "?"),
        ("राम", "रमा"),
        ("int f();", "int f;"),
        ("a  b:", "a b"),
    ],
)
def test_different_documents_are_kept(different: tuple[str, ...]) -> None:
    assert clean(different).documents == [clean_text(text) for text in different]
    assert clean([*different, different[0]]).documents_repeated == 1


def test_same_letters_ignores_case_and_punctuation() -> None:
    found = clean(["Page 1: end", "PAGE 1 — end!", "कि", "की", "😀", "😂"], Rules(same="letters"))
    assert found.documents == ["Page 1: end", "कि", "की", "😀", "😂"]


CODE = "def f(x):\n\tif x  > 0:\n\t\treturn  'a  b'\n\n\nclass A:\n    x = 1   # one"


@pytest.mark.parametrize(
    ("text", "blanks", "wanted"),
    [
        (CODE, "auto", CODE),
        (CODE, "keep", CODE),
        ("  a  b \n\tc\t\td", "single", "  a b\n\tc d"),
        ("  a  b \n\tc\t\td", "flat", "a b\nc d"),
        ("a  b\u00a0c\td \n\n\n\ne", "auto", "a b c\td\n\ne"),
        ("a  b \n\n\n\ne", "keep", "a  b\n\n\ne"),
        ("\u3000\u3000第一\u3000段", "auto", "\u3000\u3000第一\u3000段"),
        ("ᠨᠢᠭᠡ\u202fᠶᠢᠨ", "auto", "ᠨᠢᠭᠡ\u202fᠶᠢᠨ"),
    ],
)
def test_blanks_become_single_only_in_text_without_indentation(text: str, blanks: Blanks, wanted: str) -> None:
    assert clean_text(text, Rules(blanks=blanks)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "你好，世界！（这是：测试；“引号”）。",
        "ＡＢＣ１２３「日本語」ﾊﾝｶｸ",
        "می\u200cخواهم",
        "ക്\u200dഷ क\u094d\u200cष",
        "👩\u200d💻 👨\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 🏴\U000e0067\U000e0062\U000e007f",
        "ភាសា\u200bខ្មែរ ภาษา\u200bไทย",
        "שלום עולם",
        "ſ Ĳ ß œ x ≤ y ∧ ¬z",
    ],
)
def test_writing_systems_are_not_damaged(text: str) -> None:
    # A digraph that today's texts write as two letters
    assert clean_text(text) == text.replace("Ĳ", "IJ")


def test_invisible_characters_are_removed() -> None:
    assert clean_text("a\u202eb\u200ec\u2066d\u2069\u200f\u061c\u202a") == "abcd"
    assert clean_text("a\u202eb\u200e", Rules(keep_direction=True)) == "a\u202eb\u200e"
    assert clean_text("he\u200dl\u200clo\u200b wor\u00adld\ufeff\u2060") == "hello world"
    assert clean_text("one\x0ctwo\x0bthree\x07") == "one\ntwo\nthree"
    assert clean_text("ＡＢＣ，", Rules(narrow=True)) == "ABC,"


def test_changes_are_counted_by_kind() -> None:
    found = clean(["caf\u00c3\u00a9 one", "two\u200e", "three\u200e \u202e!", "four  five", "six"])
    assert found.changes == {"encodings mended": 1, "direction signs removed": 2, "runs of blanks made one": 1}
    assert found.documents_changed == 4


def test_repeated_paragraphs_are_kept_once() -> None:
    assert len(PARAGRAPH) > LONG_PARAGRAPH
    documents = [f"Page {i}\n{PARAGRAPH}\nshort line\nEnd {i}" for i in range(3)] + ["Page 1: end", "Page 1: end"]
    found = clean(documents)
    assert found.paragraphs_repeated == 2
    assert found.documents[0] == documents[0].replace(PARAGRAPH, PARAGRAPH.strip())
    assert found.documents[1] == "Page 1\nshort line\nEnd 1"
    assert found.documents_repeated == 1
    assert found.documents_changed == 3  # a blank at the end of the paragraph


def _analysed(documents: list[str], longest: int = 256) -> Analysis:
    return analyse(documents, character_tokenizer(Corpus("c", "", {"train": documents})), "small", longest)


def test_an_analysis_has_the_right_figures() -> None:
    documents = ["a" * 100, "b" * 300, "c" * 500, "de" * 1000]
    found = _analysed(documents)
    assert (found.documents, found.tokens, found.bytes) == (4, 2900, 2900)
    assert (found.mean, found.median, found.least, found.most) == (725.0, 400.0, 100, 2000)
    assert (found.block_size, found.stride, found.preset) == (256, 192, "small")
    assert found.perplexity is not None
    assert found.perplexity[0] == 1.0  # a quarter of the trigram's would be below 1
    assert 1.0 <= found.perplexity[1] < 1.1  # "dede..."; the trigram is certain
    train, held = hold_out(documents)
    assert (found.fitted, found.measured) == (len("".join(train)) + len(train), len("".join(held)) + len(held))
    assert _analysed(["ab"]).perplexity is None


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.sampled_from([256, 512, 1024]))
def test_block_and_stride_follow_from_lengths_and_preset(lengths: list[int], longest: int) -> None:
    """A document is measured as a whole, whatever training holds out."""
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
