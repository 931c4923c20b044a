"""End tokens and unknown tokens of tokenizers from elsewhere."""

# ruff: noqa: S105, S106  (tokens are not passwords)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizer_support import (
    CORPUS,
    TEXTS,
    Make,
    byte_level,
    metaspace_bpe,
    metaspace_unigram,
    opened,
    word_level,
    word_piece,
)
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import train_tokenizer
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.errors import ConfigError, DataError
from ebmvk.evaluation.likelihood import text_size

# ---- end tokens and unknown tokens ---------------------------------------------------------------


def neox() -> Library:
    """GPT-NeoX: byte-level with NFC; the end token has the first id; runs of blanks are tokens."""
    found = byte_level()
    found.normalizer = normalizers.NFC()
    found.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return found


def llama_3() -> Library:
    """Llama 3: whole words before merges, its own pattern, a begin token, reserved tokens."""
    found = byte_level("<|end_of_text|>")
    data = json.loads(found.to_str())
    data["model"]["ignore_merges"] = True
    found = Library.from_str(json.dumps(data))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.add_special_tokens(["<|begin_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"])
    begin = ("<|begin_of_text|>", found.token_to_id("<|begin_of_text|>"))
    found.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[begin]),
        ]
    )
    return found


def qwen() -> Library:
    """Qwen: NFC, an end-of-text token and an end-of-turn token."""
    found = byte_level("<|endoftext|>")
    found.normalizer = normalizers.NFC()
    found.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return found


def smol() -> Library:
    """SmolLM: each digit is a token."""
    found = byte_level("<|endoftext|>")
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return found


def mistral() -> Library:
    return metaspace_bpe()


@pytest.mark.parametrize(
    ("make", "end"),
    [(neox, "<|endoftext|>"), (llama_3, "<|end_of_text|>"), (qwen, "<|endoftext|>"), (smol, "<|endoftext|>"),
     (mistral, "</s>"), (word_piece, "[SEP]")],
)  # fmt: skip
def test_published_layouts_are_read(make: Make, end: str, tmp_path: Path) -> None:
    found = opened(make(), tmp_path)
    assert (found.end_token, found.label(found.eos_id)) == (end, end)
    assert any(end in note for note in found.notes) == (end != "<|endoftext|>")
    for text in (f"a {end} b", end, f"{end}{end}", f"a\n{end}", "e\u0301 <|im_end|> <|begin_of_text|>"):
        ids = found.encode(text)
        assert found.eos_id not in ids
        if make is not word_piece and make is not mistral:
            assert found.decode(ids) == text
    assert found.encode_prompt("the cat")[0] == found.eos_id
    stream = encode_split(CORPUS, "train", found)
    assert (stream.tokens == found.eos_id).sum() == len(TEXTS)
    found.save(tmp_path / "saved.json")
    again = Tokenizer.load(tmp_path / "saved.json")
    assert (again.digest(), again.eos_id) == (found.digest(), found.eos_id)


@pytest.mark.parametrize("make", [metaspace_unigram, word_level])
def test_an_end_token_that_the_model_spells_stays_text(make: Make, tmp_path: Path) -> None:
    """A unigram model has "</s>" among its pieces, a word-level model among its words."""
    made = make()
    made.encode_special_tokens = True
    assert made.token_to_id("</s>") in made.encode("the </s> cat").ids
    found = opened(made, tmp_path)
    assert found.eos_id not in found.encode("the </s> cat </s></s>")
    assert "matching of </s> as one token in text" in found.notes[1]


def test_another_end_token_can_be_named(tmp_path: Path) -> None:
    usual, other = opened(qwen(), tmp_path), opened(qwen(), tmp_path, end="<|im_end|>")
    assert other.label(other.eos_id) == "<|im_end|>"
    assert usual.eos_id not in other.encode("a <|im_end|> b <|endoftext|>")
    assert other.eos_id not in other.encode("a <|im_end|> b <|endoftext|>")
    assert usual.digest() != other.digest()
    with pytest.raises(DataError, match=r"t\.json: the tokenizer has no token '<nothing>'(?s:.)*<\|im_start\|>"):
        opened(qwen(), tmp_path, end="<nothing>")
    with pytest.raises(DataError, match=r"has no end-of-text token(?s:.)*--end-token: <fin>"):
        opened(byte_level("<fin>"), tmp_path)
    assert opened(byte_level("<fin>"), tmp_path, end="<fin>").label(0) == "<fin>"
    with pytest.raises(DataError, match=r"the end token 'x' can be spelled in a text"):
        opened(byte_level(), tmp_path, end="x")


def test_special_tokens_are_preferred_as_end_token(tmp_path: Path) -> None:
    """Gemma has <eos>, and </s> as an HTML tag."""
    made = byte_level("<eos>")
    made.add_tokens(["</s>"])
    found = opened(made, tmp_path)
    assert found.end_token == "<eos>"
    assert made.token_to_id("</s>") in found.encode("a </s> b")


def test_an_end_token_that_is_also_the_unknown_token_is_refused(tmp_path: Path) -> None:
    data = json.loads(metaspace_bpe().to_str())
    data["model"]["unk_token"] = "</s>"
    with pytest.raises(DataError, match="'</s>' is both the end token and the unknown token"):
        opened(json.dumps(data), tmp_path)


def test_end_token_is_refused_for_tokenizers_made_here() -> None:
    from ebmvk.data.tokenizer_kinds import make_tokenizer

    with pytest.raises(ConfigError, match="--end-token </s> doesn't work with --tokenizer bpe"):
        make_tokenizer("bpe", CORPUS, 300, end_token="</s>")


def test_a_vocabulary_that_cannot_spell_a_text_needs_an_unknown_token(tmp_path: Path) -> None:
    made = Library(models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
    words = Library(models.WordLevel({"a": 0, "</s>": 1}, unk_token="[UNK]"))
    pieces = Library(models.Unigram([("a", 0.0), ("</s>", -1.0)]))
    for found in (made, words, pieces):
        with pytest.raises(DataError, match="has no unknown token, and no token for single bytes"):
            opened(found, tmp_path)
    data = json.loads(byte_level().to_str())
    del data["model"]["vocab"]["Ġ"]
    data["model"]["merges"] = []
    with pytest.raises(DataError, match="has no unknown token, and no token for Ġ"):
        opened(Library.from_str(json.dumps(data)), tmp_path)


def test_ids_may_have_a_few_gaps(tmp_path: Path) -> None:
    """A model has a row for each id up to the largest, so large gaps would waste memory."""
    data = json.loads(byte_level().to_str())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    size = len(data["model"]["vocab"])

    def with_token(number: int) -> str:
        added = [*data["added_tokens"], token | {"id": number, "content": "<far>"}]
        vocabulary = data["model"]["vocab"] | {"<far>": number}
        return json.dumps(data | {"added_tokens": added, "model": data["model"] | {"vocab": vocabulary}})

    found = opened(with_token(size + 9), tmp_path)
    assert found.vocab_size == size + 10
    assert found.decode([size + 3]) == ""
    assert found.decode(found.encode(TEXTS[0])) == TEXTS[0]
    with pytest.raises(DataError, match=r"has \d+ tokens with ids up to 2,000,000,000"):
        opened(with_token(2_000_000_000), tmp_path)
    with pytest.raises(DataError, match="two tokens with id 5"):
        opened(with_token(5), tmp_path)


def test_a_cut_stream_knows_if_its_last_document_is_complete() -> None:
    tokenizer = train_tokenizer(CORPUS, 258)
    stream = encode_split(CORPUS, "train", tokenizer)
    second = int(stream.starts[1])
    assert [whole for *_, whole in stream.take(second).documents()] == [True]
    assert [whole for *_, whole in stream.take(second + 3).documents()] == [True, False]
    assert [whole for *_, whole in stream.take(second + 3).take(second).documents()] == [True]
    assert text_size(stream.take(second + 3), tokenizer).bytes == len(TEXTS[0].encode()) + 2
    assert isinstance(stream, TokenStream)
    assert np.array_equal(stream.take(10**9).tokens, stream.tokens)
