"""With a tokenizer.json from elsewhere, tokens stand for the whole text and nothing else."""
# ruff: noqa: S105, S106  (tokens are not passwords)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from ebmvk.data.corpus import Corpus, count_words
from ebmvk.data.fidelity import round_trip
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import character_tokenizer, foreign_tokenizer, train_tokenizer
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.errors import CheckpointError, ConfigError, DataError
from ebmvk.evaluation.comparison import Passages
from ebmvk.evaluation.likelihood import text_size
from ebmvk.training.job import _unaltered

TEXTS = [
    "El año del 猫: the cat saw the  cats.\n\nThen   it slept 🙂 for 12 days .\n",
    " leading blank, no end",
    "naïve café — the cat sat on the mat, the cats sat on the mats.\n" * 6,
    "x",
]
CORPUS = Corpus("made up", "test", {"train": TEXTS, "validation": TEXTS})
PREFIX = "▁"
Make = Callable[[], Library]


def byte_level(end: str = "<|endoftext|>", *, prefix: bool = False) -> Library:
    found = Library(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[end],
        show_progress=False,
    )
    found.train_from_iterator(TEXTS, trainer)
    return found


def metaspace_bpe() -> Library:
    """SentencePiece's BPE as in Llama 2 and Mistral, without bytes: all characters of a text."""
    found = Library(models.BPE(unk_token="<unk>", fuse_unk=True))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    found.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    return found


def metaspace_unigram() -> Library:
    found = Library(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    return found


def word_piece() -> Library:
    found = Library(models.WordPiece(unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    return found


def word_level() -> Library:
    found = Library(models.WordLevel(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<unk>", "</s>"]
    found.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(vocab_size=12, special_tokens=special, show_progress=False)
    )
    return found


KINDS: dict[str, Make] = {
    "byte-level": byte_level, "prefix space": lambda: byte_level(prefix=True), "metaspace BPE": metaspace_bpe,
    "metaspace unigram": metaspace_unigram, "word piece": word_piece, "word level": word_level,
}  # fmt: skip
EXACT = ("byte-level", "prefix space", "metaspace BPE", "metaspace unigram")


def opened(made: Library | str, folder: Path, corpus: Corpus = CORPUS, end: str | None = None) -> Tokenizer:
    (folder / "t.json").write_text(made if isinstance(made, str) else made.to_str(), encoding="utf-8")
    return foreign_tokenizer(folder / "t.json", corpus, end)


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "char", "trained here"])
def test_bytes_and_words_are_counted_from_the_text(kind: str, tmp_path: Path) -> None:
    """For whole documents and for streams cut anywhere; compared with counting characters."""
    if kind in KINDS:
        tokenizer = opened(KINDS[kind](), tmp_path)
    else:
        tokenizer = character_tokenizer(CORPUS) if kind == "char" else train_tokenizer(CORPUS, 300)
    stream = encode_split(CORPUS, "train", tokenizer)
    size = text_size(stream, tokenizer)
    assert size.bytes == sum(len(text.encode()) for text in TEXTS)
    assert size.words == sum(count_words(text, word_level=False) for text in TEXTS)
    counts = [text_size(stream.take(n), tokenizer).bytes for n in range(1, len(stream) + 1)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == size.bytes
    for n in range(2, len(stream)):
        taken = text_size(stream.take(n), tokenizer)
        starts = stream.starts[stream.starts < n]
        before = sum(len(text.encode()) for text in TEXTS[: len(starts) - 1])
        own = stream.tokens[starts[-1] + 1 : n]
        if kind in (*EXACT, "char", "trained here") and "\ufffd" not in (said := tokenizer.decode(own)):
            assert taken.bytes == before + len(said.encode())
            assert TEXTS[len(starts) - 1].startswith(said)


@pytest.mark.parametrize("kind", EXACT)
def test_any_text_of_known_characters_survives(kind: str, tmp_path: Path) -> None:
    tokenizer = opened(KINDS[kind](), tmp_path)
    for text in (*TEXTS, "  the cat", "", "\n", "the\n the", "cats "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_characters_count_their_real_bytes() -> None:
    """Six thousand bytes that a character tokenizer doesn't know count as 6,000, not 5 each."""
    tokenizer = character_tokenizer(Corpus("c", "", {"train": ["ab"]}))
    text = "ab" + "猫" * 2000
    stream = encode_split(Corpus("c", "", {"train": [text, "ba"]}), "train", tokenizer)
    size = text_size(stream, tokenizer)
    assert (size.tokens, size.bytes, size.unknown) == (2005, 6004, 2000)
    cut = text_size(stream.take(1 + 2 + 10), tokenizer)
    assert (cut.bytes, cut.unknown) == (32, 10)


def test_decoding_is_compared_only_on_fully_known_passages() -> None:
    """Human text with unknown characters would decode to <unk>: five bytes that nobody wrote."""
    tokenizer = character_tokenizer(Corpus("c", "", {"train": ["abc"]}))
    text = "abc" * 8 + "猫猫猫猫" + "cab" * 8
    stream = encode_split(Corpus("c", "", {"train": [text]}), "train", tokenizer)
    found = Passages.of(stream, tokenizer, 12, 2, 2)
    assert all("unk" not in tokenizer.decode(tokens) for tokens in found.real)
    with pytest.raises(DataError, match="12 passages of 4 tokens, fewer than 13"):
        Passages.of(stream, tokenizer, 13, 2, 2)


def test_a_run_of_unknown_characters_is_counted_by_characters(tmp_path: Path) -> None:
    """One unknown token may stand for several characters; a written <unk> isn't unknown."""
    bpe, words = opened(metaspace_bpe(), tmp_path), opened(word_level(), tmp_path)
    assert bpe.spelling("the ЖЖЖ cat").unknown == 3
    assert words.spelling("the zzz <unk> the").unknown == 3
    assert words.spelling("the  the\n").blanks == 3


# ---- made faithful -------------------------------------------------------------------------------


def test_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    plain = opened(byte_level(), tmp_path)
    made = byte_level()
    made.enable_truncation(8)
    made.enable_padding(length=300, pad_token="<|endoftext|>")
    found = opened(made, tmp_path)
    assert "truncation to 8 tokens" in found.notes[0]
    assert "padding with <|endoftext|>" in found.notes[0]
    for text in TEXTS:
        assert found.encode(text).tolist() == plain.encode(text).tolist()
    found.save(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert (saved["truncation"], saved["padding"]) == (None, None)
    again = Tokenizer.load(tmp_path / "saved.json")
    assert again.digest() == found.digest()
    assert not again.altered


def test_special_tokens_are_not_added_to_documents_or_prompts(tmp_path: Path) -> None:
    made = metaspace_bpe()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    found = opened(made, tmp_path)
    assert any("special tokens around each text (TemplateProcessing)" in note for note in found.notes)
    assert not {1, 2} & set(found.encode(TEXTS[0]).tolist())
    assert found.encode_prompt("the cat")[1:].tolist() == found.encode("the cat").tolist()


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    made = byte_level()
    data = json.loads(made.to_str())
    data["model"]["dropout"] = 0.5
    found = opened(Library.from_str(json.dumps(data)), tmp_path)
    assert "dropout of 0.5" in found.notes[0]
    assert len({tuple(found.encode(TEXTS[2]).tolist()) for _ in range(5)}) == 1


def test_files_of_older_runs_are_read_without_added_steps(tmp_path: Path) -> None:
    """The digest stays that of the file, so that the checkpoint still belongs to it."""
    made = byte_level()
    made.enable_truncation(8)
    made.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", made.token_to_id("<|endoftext|>"))]
    )
    (tmp_path / "t.json").write_text(made.to_str(), encoding="utf-8")
    found = Tokenizer.load(tmp_path / "t.json")
    assert found.altered
    assert found.decode(found.encode(TEXTS[0])) == TEXTS[0]
    assert found.eos_id not in found.encode(TEXTS[0])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json truncates or pads texts(?s:.)*start a new run"):
        _unaltered(found, tmp_path)
    found.faithful().save(tmp_path / "new.json")
    assert not Tokenizer.load(tmp_path / "new.json").altered


@pytest.mark.parametrize("word_level", [False, True])
@pytest.mark.parametrize("make", [lambda corpus: train_tokenizer(corpus, 300), character_tokenizer])
def test_a_file_written_here_is_not_changed(
    make: Callable[[Corpus], Tokenizer], word_level: bool, tmp_path: Path
) -> None:
    """So that runs from one file, by any version, have comparable tokens."""
    own = make(Corpus("c", "", {"train": TEXTS}, word_level=word_level))
    own.save(tmp_path / "own.json")
    found = foreign_tokenizer(tmp_path / "own.json", CORPUS)
    assert (found.digest(), found.notes, found.altered) == (own.digest(), (), False)


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.Lowercase(), normalizers.NFKC(), normalizers.Replace(Regex(" +"), " "), normalizers.Strip()],
    ids=repr,
)
def test_a_normaliser_that_changes_the_text_is_refused_or_left_out(
    normalizer: normalizers.Normalizer, tmp_path: Path
) -> None:
    """A byte vocabulary spells text without it; a character vocabulary needs its output."""
    corpus = Corpus("c", "", {"train": ["The ﬁsh  saw\n"]})
    bytes_, characters = byte_level(), metaspace_bpe()
    bytes_.normalizer = characters.normalizer = normalizer
    found = opened(bytes_, tmp_path, corpus)
    assert "the normaliser" in found.notes[0]
    assert found.decode(found.encode("The ﬁsh  saw\n")) == "The ﬁsh  saw\n"
    with pytest.raises(DataError, match=r"t\.json: the tokenizer's normaliser \w+ changes the text: 'The .*' becomes "):
        opened(characters, tmp_path, corpus)
    # On a text that it doesn't change, it is removed there too.
    plain = opened(characters, tmp_path, Corpus("c", "", {"train": ["x"]}))
    assert plain.decode(plain.encode("x  x ")) == "x  x "


def test_blanks_of_llama_2_survive(tmp_path: Path) -> None:
    """The normaliser adds a blank and writes blanks as ▁; the decoder undoes both."""
    trained = json.loads(metaspace_bpe().to_str())
    vocabulary = dict(trained["model"]["vocab"])
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    made = Library(
        models.BPE(
            vocab=vocabulary, merges=[tuple(pair) for pair in trained["model"]["merges"]],
            byte_fallback=True, unk_token="<unk>", fuse_unk=True,
        )
    )  # fmt: skip
    made.normalizer = normalizers.Sequence([normalizers.Prepend(PREFIX), normalizers.Replace(" ", PREFIX)])
    made.decoder = decoders.Sequence(
        [decoders.Replace(PREFIX, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    found = opened(made, tmp_path)
    for text in (*TEXTS, " the", "the", "  Ж\t𝄞 ", "<s> </s> <unk>"):
        assert found.decode(found.encode(text)) == text
        assert found.beginning(text, found.encode(text)) == text.encode()
        assert found.eos_id not in found.encode(text)
    assert found.spelling("Ж𝄞").unknown == 0


def test_added_tokens_keep_their_letters_and_neighbouring_blanks(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("gâteau"), AddedToken("<x>")])
    found = opened(made, tmp_path)
    text = "the   <mask>  cat, gâteau <x>."
    assert found.decode(found.encode(text)) == text
    assert found.beginning(text, found.encode(text)) == text.encode()
    assert "absorbing of blanks by <mask>" in found.notes[0]
    assert "gâteau" in found.notes[0]


def test_lost_blanks_are_reported_and_lost_letters_refused(tmp_path: Path) -> None:
    words = round_trip(opened(word_level(), tmp_path), "t.json", ["the cat\n\nsat qqq", "the cat"])
    assert (words.pieces, words.changed, words.unknown, words.blanks) == (2, 1, 3, 4)
    assert "3 characters became unknown tokens; 4 blanks and line ends are in no token" in str(words)
    assert "every one came back" in str(round_trip(opened(byte_level(), tmp_path), "t.json", TEXTS))
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[0-9]"), behavior="removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(DataError, match=r"--tokenizer t\.json leaves out 2 characters of the text: '12'"):
        round_trip(opened(made, tmp_path), "t.json", TEXTS)


def test_a_round_trip_stops_at_its_limit(tmp_path: Path) -> None:
    found = round_trip(opened(byte_level(), tmp_path), "t.json", ["abcdef", "ghi", "jkl"], most=8)
    assert (found.characters, found.pieces) == (8, 2)


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
def test_text_that_spells_the_end_token_does_not_end_a_document(make: Make, tmp_path: Path) -> None:
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

    with pytest.raises(ConfigError, match="--end-token </s> with --tokenizer bpe"):
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
