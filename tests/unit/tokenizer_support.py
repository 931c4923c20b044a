"""Tokenizers as other libraries make them, for tests."""

# ruff: noqa: S106  (tokens are not passwords)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import foreign_tokenizer

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
