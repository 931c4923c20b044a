"""Byte-level BPE with an exact round trip of any text, two tokens apart: end-of-text and `<unk>`; or characters.

Word-level text (WikiText) is cut at its blanks, and a token carries the blank before it: no token crosses a border of
words, and " \\n", the end of a line, is one token and one word. Other text is cut at words, numbers and punctuation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Bpe

from ebmvk.data.datasets import Corpus
from ebmvk.data.files import write_text
from ebmvk.errors import ArgumentError, ConfigError, DataError, StorageError

# Beside one another in a hub's snapshot, an exported model and, save for folders between them, a run.
TOKENIZER_FILE, WEIGHTS_FILE = "tokenizer.json", "model.safetensors"
Ids = npt.NDArray[np.int32]

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
BYTES = 256

WORD_LEVEL_PATTERN = r" ?[^ \n]+| ?\n| +"
TEXT_PATTERN = r"'(?:s|t|re|ve|m|ll|d)\b| ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer:
    """Text to ids and back.

    Ids run from 0 to vocab_size − 1: bytes first, then merges, `<unk>`, end-of-text. `<unk>` written in a text is
    one token (in word-level text together with the blank before it); the end-of-text token cannot be written in a text:
    it stands at the start of each document, where `encode_documents` puts it.
    """

    def __init__(self, bpe: _Bpe) -> None:
        eos = bpe.token_to_id(END_OF_TEXT)
        self.word_level = bpe.token_to_id(" " + UNKNOWN) is not None
        unk = bpe.token_to_id(" " + UNKNOWN if self.word_level else UNKNOWN)
        if eos is None or unk is None:
            raise DataError(
                f"the tokenizer has no {UNKNOWN if unk is None else END_OF_TEXT} token",
                hint="use the tokenizer.json that ebmvk wrote",
            )
        ids = sorted(bpe.get_vocab().values())
        if ids != list(range(len(ids))):
            raise DataError(
                f"the tokenizer's ids are not 0 to {len(ids) - 1}, each of one token",
                hint="use the tokenizer.json that ebmvk wrote",
            )
        # So that "<|endoftext|>" written in a text stays text.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.eos_id: int = eos
        self.unk_id: int = unk
        self.vocab_size: int = bpe.get_vocab_size()
        self._byte_level = (json.loads(bpe.to_str())["decoder"] or {}).get("type") == "ByteLevel"
        self._byte_lengths = np.array([self._byte_length(i) for i in range(self.vocab_size)], dtype=np.int64)

    def _byte_length(self, token_id: int) -> int:
        if token_id == self.eos_id:
            return 0
        symbol = self.symbol(token_id)
        return len(symbol) if self._byte_level else len(symbol.encode())  # <unk> is ASCII

    def encode(self, text: str) -> Ids:
        """(n,) int32 ids with no end-of-text token; `decode` gives exactly `text` back, but for characters that a
        tokenizer of characters does not know: each is `<unk>`.

        Raises:
            ArgumentError: the text holds half of a surrogate pair, which is no Unicode text.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[Ids]:
        """`encode` of each text, on all cores."""
        try:
            encodings = self._bpe.encode_batch_fast(texts)
        except TypeError as error:  # the library's word for text that has no UTF-8
            raise _lone_surrogate(texts) from error
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_prompt(self, text: str) -> Ids:
        """End-of-text, then the text as the start of a document (word-level text starts with a blank)."""
        text = " " + text if self.word_level and text and not text.startswith(" ") else text
        return np.concatenate([np.array([self.eos_id], dtype=np.int32), self.encode(text)])

    def decode(self, ids: Iterable[int] | Ids) -> str:
        """The text of ids; end-of-text tokens leave nothing, bytes that are no UTF-8 give U+FFFD."""
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def symbol(self, token_id: int) -> str:
        """A token as tokenizer.json spells it: one letter of the byte-level alphabet for each byte, or a character."""
        return self._bpe.id_to_token(token_id) or ""

    def count_bytes(self, ids: Ids) -> int:
        """UTF-8 bytes that ids stand for; end-of-text stands for none."""
        return int(self._byte_lengths[ids].sum())

    def digest(self) -> str:
        """SHA-256 of what `save` writes: the same tokens, merges and cuts."""
        return hashlib.sha256(self._bpe.to_str().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write tokenizer.json, whole or not at all. Raises StorageError."""
        try:
            write_text(path, self._bpe.to_str())
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror or error}", hint="free some space"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read what `save` wrote. Raises DataError if it is missing or no tokenizer."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {error}", hint="name a run folder that ebmvk wrote") from error
        try:
            bpe = _Bpe.from_str(text)
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(
                f"{path} is no tokenizer: {error}", hint="use the tokenizer.json that ebmvk wrote"
            ) from error
        try:
            return cls(bpe)
        except DataError as error:
            raise DataError(f"{path}: {error.what}", hint=error.hint) from None


def _lone_surrogate(texts: list[str]) -> ArgumentError:
    text, at = next((text, at) for text in texts for at, c in enumerate(text) if "\ud800" <= c <= "\udfff")
    return ArgumentError(
        f"text holds the lone surrogate {text[at]!r} at {at}", hint="decode the text from its bytes as UTF-8"
    )


KINDS = ("bpe", "char", "gpt2")


def make_tokenizer(kind: str, corpus: Corpus, vocab_size: int, folders: Iterable[Path] = ()) -> Tokenizer:
    """What `--tokenizer` names: `bpe`, trained on the corpus; `char`, its characters; `gpt2`; or a tokenizer.json.

    folders: where GPT-2's files may lie, in a folder `gpt2-bpe`.

    Raises:
        ConfigError: no such file; vocab_size is too small.
    """
    if kind == "bpe":
        return train_tokenizer(corpus, vocab_size)
    if kind == "char":
        return character_tokenizer(corpus)
    if kind == "gpt2":
        return gpt2_tokenizer(list(folders), word_level=corpus.word_level)
    check_named(kind)
    return Tokenizer.load(Path(kind))


def check_named(kind: str) -> None:
    """Raises ConfigError if --tokenizer names neither a kind nor a file."""
    if kind not in KINDS and (Path(kind).is_dir() or not Path(kind).exists()):
        raise ConfigError(
            f"--tokenizer {kind}: no such file", hint=f"take {', '.join(KINDS)}, or the path of a tokenizer.json"
        )


def character_tokenizer(corpus: Corpus) -> Tokenizer:
    """A token for each character of the training split, in the order of code points."""
    characters = sorted(set().union(*map(set, corpus.documents("train"))))
    vocabulary = {character: i for i, character in enumerate([*characters, UNKNOWN])}
    bpe = _Bpe(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]{1,64}|\n"), behavior="isolated")  # short ones are faster
    bpe.decoder = decoders.Fuse()
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return Tokenizer(bpe)


def gpt2_tokenizer(folders: list[Path], *, word_level: bool) -> Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019), its 50,257 tokens and `<unk>`.

    Raises:
        ConfigError: its two files are in none of the folders.
    """
    names = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
    places = [(folder / "gpt2-bpe" / a, folder / "gpt2-bpe" / b) for folder in folders for a, b in names]
    found = next((pair for pair in places if all(path.is_file() for path in pair)), None)
    if found is None:
        raise ConfigError(
            "--tokenizer gpt2: there is no gpt2-bpe/encoder.json with gpt2-bpe/vocab.bpe",
            why=f"looked in {', '.join(map(str, folders))}" if folders else "no folder of data sets is named",
            hint="name the folder that holds gpt2-bpe with --data-dir",
        )
    bpe = _Bpe(models.BPE.from_file(*map(str, found)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([AddedToken(" " + UNKNOWN if word_level else UNKNOWN, normalized=False)])
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return Tokenizer(bpe)


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Train on the training split. The same text gives the same tokenizer, token for token.

    Args:
        corpus: its `train` documents are read, and `word_level` chooses where text is cut.
        vocab_size: all tokens together, at least 258 (bytes, `<unk>`, end-of-text); a short text can give fewer.

    Raises:
        ConfigError: vocab_size is too small.
    """
    if vocab_size < BYTES + 2:
        raise ConfigError(
            f"--vocab-size {vocab_size} is too small", hint=f"give at least {BYTES + 2}: bytes and two more"
        )
    bpe = _Bpe(models.BPE())
    pattern = WORD_LEVEL_PATTERN if corpus.word_level else TEXT_PATTERN
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    unknown = " " + UNKNOWN if corpus.word_level else UNKNOWN
    bpe.train_from_iterator(_without(unknown, corpus.documents("train")), trainer)
    bpe.add_tokens([AddedToken(unknown, normalized=False)])
    bpe.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    return Tokenizer(bpe)


def _without(unknown: str, documents: Iterable[str]) -> Iterator[str]:
    """Training must not spend merges on the letters of `<unk>`, which is a token of its own."""
    for document in documents:
        yield from document.split(unknown)
