"""The tokenizer loses nothing, is reproducible, and respects the borders of words."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk.data.corpus import Corpus, count_words
from ebmvk.data.datasets import resolve
from ebmvk.data.foreign import END_OF_TEXT
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import make_tokenizer, train_tokenizer
from ebmvk.errors import ArgumentError, ConfigError, DataError, StorageError

WORDS = (
    " \n = Lobster = \n \n The <unk> lobster , known as the common lobster , weighs 6 @.@ 5 kg . \n"
    " The lobster <unk> and the common lobster weighs 7 kg , not 6 @.@ 5 kg . \n"
)
WORD_LEVEL = Corpus("words", "test", {"train": [WORDS * 5], "validation": [WORDS]}, word_level=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(resolve("builtin"), 1024)


@pytest.fixture(scope="module")
def word_tokenizer() -> Tokenizer:
    return train_tokenizer(WORD_LEVEL, 320)


@given(text=st.text())
@pytest.mark.parametrize("kind", ["tokenizer", "word_tokenizer"])
def test_any_text_survives_encoding_and_decoding(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    for whole in (text, f"a {text}<unk> <unk>{text}  {END_OF_TEXT}\r\n\t{text}"):
        ids = tokenizer.encode(whole)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == whole
        assert tokenizer.beginning(whole, ids) == whole.encode()
        assert tokenizer.eos_id not in ids


def test_the_same_text_gives_the_same_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    again = train_tokenizer(resolve("builtin"), 1024)
    tokenizer.save(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    loaded = Tokenizer.load(tmp_path / "a.json")
    text = "The <unk> statement" + END_OF_TEXT
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.vocab_size == tokenizer.vocab_size == 1024
    assert (loaded.eos_id, loaded.unk_id, loaded.word_level) == (tokenizer.eos_id, tokenizer.unk_id, False)


def test_unk_is_one_token_everywhere(tokenizer: Tokenizer, word_tokenizer: Tokenizer) -> None:
    for each in (tokenizer, word_tokenizer):
        ids = each.encode(" the <unk> of <unk> <unk> . \n")
        assert (ids == each.unk_id).sum() == 3
    # In word-level text the token includes its blank, so a word is one token.
    assert [word_tokenizer.decode([i]) for i in word_tokenizer.encode(" <unk> \n")] == [" <unk>", " \n"]


def test_no_token_crosses_a_border_of_words(word_tokenizer: Tokenizer) -> None:
    pieces = [word_tokenizer.decode([i]) for i in word_tokenizer.encode(WORDS)]
    assert all(" " not in piece[1:] for piece in pieces)
    # Each word and each end of line starts with a blank, so this many tokens start words.
    assert sum(piece.startswith(" ") for piece in pieces) == count_words(WORDS, word_level=True)
    assert " lobster" in pieces


def test_a_prompt_is_the_start_of_a_document(tokenizer: Tokenizer, word_tokenizer: Tokenizer) -> None:
    for each, text in ((tokenizer, "The if"), (word_tokenizer, " The lobster")):
        ids = each.encode_prompt(text.strip())
        assert ids[0] == each.eos_id
        assert each.decode(ids) == text
    assert word_tokenizer.encode_prompt("").tolist() == [word_tokenizer.eos_id]


def test_the_vocabulary_has_the_requested_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("x" * 50).max() < tokenizer.vocab_size
    smallest = train_tokenizer(WORD_LEVEL, 258)
    assert smallest.vocab_size == 258
    # The text has no more pairs to merge
    assert train_tokenizer(WORD_LEVEL, 10_000).vocab_size < 400
    with pytest.raises(ConfigError, match="--vocab-size 257"):
        train_tokenizer(WORD_LEVEL, 257)


GPT2 = Path(os.environ.get("EBMVK_DATA_DIR", "no-such-folder"))


@pytest.mark.skipif(not (GPT2 / "gpt2-bpe").is_dir(), reason="EBMVK_DATA_DIR has no gpt2-bpe")
def test_gpt2_gives_the_published_tokens() -> None:
    """Its published examples; `<unk>` is one more token; any text survives."""
    gpt2 = make_tokenizer("gpt2", WORD_LEVEL, 0, [GPT2 / "nothing", GPT2])
    assert (gpt2.vocab_size, gpt2.eos_id) == (50_258, 50_256)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert gpt2.encode("This is an example of text, and").tolist() == [1212, 318, 281, 1672, 286, 2420, 11, 290]
    text = WORDS + "año 猫 🙂 <|endoftext|>"
    assert gpt2.decode(gpt2.encode(text)) == text
    assert gpt2.beginning(text, gpt2.encode(text)) == text.encode()
    assert (gpt2.encode(WORDS) == gpt2.unk_id).sum() == WORDS.count("<unk>")


def test_characters_are_tokens(tmp_path: Path) -> None:
    text = "año\n\nThe 猫 said: <unk>! " + "x" * 200
    corpus = Corpus("c", "test", {"train": [text, "Ω"], "validation": [text]})
    made = make_tokenizer("char", corpus, 0)
    made.save(tmp_path / "tokenizer.json")
    for tokenizer in (
        made,
        Tokenizer.load(tmp_path / "tokenizer.json"),
        make_tokenizer(str(tmp_path / "tokenizer.json"), corpus, 0),
    ):
        assert tokenizer.vocab_size == len(set(text)) + 3
        plain = text.replace("<unk>", "")
        assert len(tokenizer.encode(plain)) == len(plain)
        assert tokenizer.decode(tokenizer.encode(plain)) == plain
        assert tokenizer.beginning(plain, tokenizer.encode(plain)) == plain.encode()
        assert tokenizer.decode(tokenizer.encode("The ñandú")) == "The ñand<unk>"
    assert made.digest() == make_tokenizer("char", corpus, 0).digest()


def test_missing_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gpt2-bpe/vocab.bpe(.|\n)*--data-dir"):
        make_tokenizer("gpt2", WORD_LEVEL, 0, [tmp_path])
    for name in ("chars", str(tmp_path), ""):
        with pytest.raises(ConfigError, match=f"--tokenizer {name}: no such file"):
            make_tokenizer(name, WORD_LEVEL, 0)


def test_bad_text_and_bad_tokenizer_files_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ArgumentError, match="surrogate"):
        tokenizer.encode("half \ud800 a pair")
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer.load(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match="isn't a tokenizer"):
        Tokenizer.load(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text(
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
    )
    with pytest.raises(DataError, match="has no end-of-text token"):
        Tokenizer.load(tmp_path / "other.json")
    tokenizer.save(tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text(encoding="utf-8"))
    token = next(name for name in good["model"]["vocab"] if len(name) == 1)
    del good["model"]["vocab"][token]
    (tmp_path / "gap.json").write_text(json.dumps(good | {"model": good["model"] | {"merges": []}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"gap\.json: the tokenizer has two tokens with id \d+"):
        Tokenizer.load(tmp_path / "gap.json")
    with pytest.raises(StorageError, match="cannot be written"):
        tokenizer.save(tmp_path / "missing" / "tokenizer.json")


def test_a_tokenizer_without_a_decoder_is_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "bare.json")
    bare = json.loads((tmp_path / "bare.json").read_text(encoding="utf-8")) | {"decoder": None}
    (tmp_path / "bare.json").write_text(json.dumps(bare), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "bare.json").vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    "letters",
    [
        "ACGT",
        "กขคงจฉชซ",
        " ",
        *(pytest.param(more, marks=pytest.mark.slow) for more in ("天地玄黃宇宙洪荒", "\n", "=", "0123456789")),
    ],
    ids=repr,
)
def test_training_on_text_without_blanks_takes_linear_time(letters: str) -> None:
    """300,000 letters in one piece once took over a minute: each merge moved all of them."""
    text = "".join(random.Random(1).choices(letters, k=300_000))
    corpus = Corpus("one piece", "test", {"train": [text]})
    began = time.process_time()
    tokenizer = train_tokenizer(corpus, 400)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert count_words(text, word_level=False) <= 1
    assert time.process_time() - began < 15  # takes about one second on a quiet core


def test_the_limit_on_pieces_does_not_change_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is longer than any piece of ordinary text, and isn't written to the file."""
    bounded = train_tokenizer(resolve("builtin"), 1024)
    monkeypatch.setattr("ebmvk.data.tokenizer_kinds.LONGEST_PIECE", 100_000)
    assert bounded.digest() == train_tokenizer(resolve("builtin"), 1024).digest()


def test_wikitext_2_takes_under_one_and_a_quarter_tokens_a_word() -> None:
    if "EBMVK_DATA_DIR" not in os.environ:
        pytest.skip("EBMVK_DATA_DIR is not set")
    corpus = resolve("wikitext-2")
    tokenizer = train_tokenizer(corpus, 8192)
    ids = np.concatenate(tokenizer.encode_many(corpus.documents("validation")))
    assert tokenizer.decode(ids) == "".join(corpus.documents("validation"))
    assert (ids == tokenizer.unk_id).sum() == 11_718
    assert len(ids) / corpus.words("validation") < 1.25  # 1.183 measured
