"""Makes the tokenizer that `--tokenizer` asks for.

Kinds: `bpe`, byte-level BPE trained on the corpus; `char`, one token per character; `gpt2`; or a
tokenizer.json from elsewhere, made faithful by `ebmvk.data.foreign`. Trained tokenizers cut
word-level text (WikiText) at blanks, and other text at words, numbers and punctuation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Bpe

from ebmvk.data import foreign
from ebmvk.data.corpus import Corpus
from ebmvk.data.foreign import BYTES, END_OF_TEXT
from ebmvk.data.tokenizer import UNKNOWN, Tokenizer, read_library_tokenizer, table_rows
from ebmvk.errors import ConfigError, DataError

OWN_KINDS = ("bpe", "char", "gpt2")  # made here, not read from a file
# Merges are learned from pieces of at most this many characters; the time grows with the square
LONGEST_PIECE = 1024

WORD_LEVEL_PATTERN = r" ?[^ \n]+| ?\n| +"
TEXT_PATTERN = r"'(?:s|t|re|ve|m|ll|d)\b| ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


def make_tokenizer(
    kind: str, corpus: Corpus, vocab_size: int, folders: Iterable[Path] = (), end_token: str | None = None
) -> Tokenizer:
    """The tokenizer that `--tokenizer` asks for.

    Args:
        kind: `bpe`, trained on the corpus; `char`, its characters; `gpt2`; or the path of a
            tokenizer.json.
        vocab_size: for `bpe`.
        folders: where to look for a folder `gpt2-bpe` with GPT-2's files.
        end_token: for a tokenizer.json; None for the usual one.

    Raises:
        ConfigError: the file doesn't exist, vocab_size is too small, or end_token is given for
            another kind.
        DataError: the file isn't a tokenizer, or texts are no longer the same after encoding and
            decoding.
    """
    if end_token is not None and kind in OWN_KINDS:
        raise ConfigError(
            f"--end-token {end_token} doesn't work with --tokenizer {kind}, whose end token is {END_OF_TEXT}",
            hint="remove --end-token",
        )
    if kind == "bpe":
        return train_tokenizer(corpus, vocab_size)
    if kind == "char":
        return character_tokenizer(corpus)
    if kind == "gpt2":
        return gpt2_tokenizer(list(folders), word_level=corpus.word_level)
    check_named(kind)
    return foreign_tokenizer(Path(kind), corpus, end_token)


def foreign_tokenizer(path: Path, corpus: Corpus, end_token: str | None = None) -> Tokenizer:
    """A tokenizer.json from elsewhere, made faithful; `notes` says what was changed.

    Raises:
        DataError: it isn't a tokenizer, or it changes the corpus in a way that cannot be switched
            off.
    """
    texts = chain.from_iterable(corpus.splits.values())
    bpe = read_library_tokenizer(path)
    try:
        # Check before the library rewrites the file: if two tokens share an id, it drops one
        table_rows(bpe)
        found, off = foreign.faithful(json.loads(bpe.to_str()), texts, end_token)
        end = foreign.end_token(found, end_token)
        notes = [f"{path}: the end of a document is {end}"] if end != END_OF_TEXT else []
        notes += [f"{path}: switched off: {'; '.join(off)}"] if off else []
        return Tokenizer(foreign.built(found), end_token, notes)
    except DataError as error:
        raise DataError(f"--tokenizer {path}: {error.what}", why=error.why, hint=error.hint) from None


def check_named(kind: str) -> None:
    """Raise ConfigError if --tokenizer names neither a kind nor a file."""
    if kind not in OWN_KINDS and (Path(kind).is_dir() or not Path(kind).exists()):
        raise ConfigError(
            f"--tokenizer {kind}: no such file", hint=f"use {', '.join(OWN_KINDS)}, or the path of a tokenizer.json"
        )


def character_tokenizer(corpus: Corpus) -> Tokenizer:
    """One token for each character of the training split, in the order of code points."""
    characters = sorted(set().union(*map(set, corpus.documents("train"))))
    vocabulary = {character: i for i, character in enumerate([*characters, UNKNOWN])}
    bpe = _Bpe(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    # Short pieces are faster
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]{1,64}|\n"), behavior="isolated")
    bpe.decoder = decoders.Fuse()
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return Tokenizer(bpe)


def gpt2_tokenizer(folders: list[Path], *, word_level: bool) -> Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019): its 50,257 tokens and `<unk>`.

    Raises:
        ConfigError: none of the folders has its two files.
    """
    names = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
    places = [(folder / "gpt2-bpe" / a, folder / "gpt2-bpe" / b) for folder in folders for a, b in names]
    found = next((pair for pair in places if all(path.is_file() for path in pair)), None)
    if found is None:
        raise ConfigError(
            "--tokenizer gpt2: gpt2-bpe/encoder.json and gpt2-bpe/vocab.bpe were not found",
            why=f"looked in {', '.join(map(str, folders))}" if folders else "no folder of data sets is named",
            hint="pass --data-dir the folder that contains gpt2-bpe",
        )
    bpe = _Bpe(models.BPE.from_file(*map(str, found)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([AddedToken(" " + UNKNOWN if word_level else UNKNOWN, normalized=False)])
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return Tokenizer(bpe)


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Train byte-level BPE on the training split. The same text gives the same tokenizer.

    Args:
        corpus: its `train` documents are read; `word_level` decides where text is cut.
        vocab_size: number of tokens in all, at least 258 (bytes, `<unk>`, end-of-text); a short
            text may give fewer.

    Raises:
        ConfigError: vocab_size is too small.
    """
    if vocab_size < BYTES + 2:
        raise ConfigError(
            f"--vocab-size {vocab_size} is too small",
            hint=f"give at least {BYTES + 2}: {BYTES} bytes, {UNKNOWN} and {END_OF_TEXT}",
        )
    bpe = _Bpe(models.BPE())
    pattern = WORD_LEVEL_PATTERN if corpus.word_level else TEXT_PATTERN
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    # A text without blanks (DNA, Thai) is one piece. The trainer moves all of the piece at each
    # merge, so its length is limited. `encode` doesn't, so the finished tokenizer has no limit.
    short = pre_tokenizers.Split(Regex(f"(?m:.){{1,{LONGEST_PIECE}}}"), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, short, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    unknown = " " + UNKNOWN if corpus.word_level else UNKNOWN
    bpe.train_from_iterator(_without(unknown, corpus.documents("train")), trainer)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    bpe.add_tokens([AddedToken(unknown, normalized=False)])
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return Tokenizer(bpe)


def _without(unknown: str, documents: Iterable[str]) -> Iterator[str]:
    """Cuts documents at `<unk>`, which is a token already, so that no merge is spent on it."""
    for document in documents:
        yield from document.split(unknown)
