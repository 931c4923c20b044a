"""Turns text into token ids and back.

Byte-level BPE gives back any text exactly, except end-of-text and `<unk>`; `Tokenizer.spelling`
counts what other tokenizers lose. In word-level text (WikiText) a token includes the blank before
it. So no token crosses the border between words. The end of a line, " \\n", is one token and one
word.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as _Bpe

from ebmvk.data import foreign
from ebmvk.data.files import write_text
from ebmvk.data.foreign import Description
from ebmvk.errors import ArgumentError, DataError, StorageError

# Names of files in a hub's snapshot and in an exported model. A run has these files too, but in
# different folders.
TOKENIZER_FILE, WEIGHTS_FILE = "tokenizer.json", "model.safetensors"
Ids = npt.NDArray[np.int32]

UNKNOWN = "<unk>"
# The least share of ids that must be used. A model has a row for every id up to the largest, even
# if the id is unused.
FEWEST_USED = 7 / 8
_PART = 1 << 16  # characters whose offsets are held in memory at once


@dataclass(frozen=True)
class Spelling:
    """The characters of a text that its tokens don't keep.

    unknown: number of characters that became unknown tokens. blanks: number of white-space
    characters in no token. lost: other characters in no token.
    """

    unknown: int = 0
    blanks: int = 0
    lost: str = ""


class Tokenizer:
    """Text to ids and back.

    Ids run from 0 to vocab_size - 1; a tokenizer from elsewhere may skip some. One trained here has
    bytes first, then merges, `<unk>` and end-of-text. `<unk>` written in a text is one token (in
    word-level text it includes the blank before it). No text can contain the end token;
    `encode_split` puts it at the start of each document.

    Attributes:
        end_token, eos_id: the token that ends a document.
        unk_id: the token for everything that cannot be spelled, and for `<unk>` written in a text;
            None if the tokenizer has none.
        notes: lines for users on what was changed in a tokenizer.json from elsewhere.
        altered: True if the file truncates, pads or the like, which is switched off here.
    """

    def __init__(self, bpe: _Bpe, end_token: str | None = None, notes: Sequence[str] = ()) -> None:
        """end_token: None for the usual one.

        Raises DataError if required ids or tokens are missing.
        """
        self._written = bpe.to_str()
        description = json.loads(self._written)
        self.end_token = foreign.end_token(description, end_token)
        self._usual_end = self.end_token == foreign.usual_end(description)
        self.vocab_size = table_rows(bpe)
        _switch_off(bpe, description)
        # So that "<|endoftext|>" written in a text stays text.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self.notes = tuple(notes)
        self.altered = bpe.to_str() != self._written
        self.eos_id: int = bpe.get_vocab(with_added_tokens=True)[self.end_token]
        self._unknown = foreign.needed_unknown(description)
        literal = bpe.token_to_id(" " + UNKNOWN)
        self.word_level = literal is not None
        self.unk_id: int | None = literal if literal is not None else bpe.token_to_id(self._unknown or UNKNOWN)
        self._byte_lengths = _byte_lengths(bpe, description, self.vocab_size)

    @property
    def spells_bytes(self) -> bool:
        """True if every token stands for known bytes, so that tokens determine a text's bytes."""
        return self._byte_lengths is not None

    def encode(self, text: str) -> Ids:
        """The ids of a text, (n,) int32, without end-of-text.

        `decode` returns exactly `text` if the tokenizer was trained here or spells bytes. Otherwise
        unknown characters become the unknown token, and a word tokenizer may drop blanks;
        `spelling` counts both.

        Raises:
            ArgumentError: the text holds half of a surrogate pair, so it isn't valid Unicode.
        """
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[Ids]:
        """`encode` of each text, on all cores."""
        try:
            encodings = self._bpe.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:  # this is how the library rejects text that UTF-8 can't encode
            raise _lone_surrogate(texts) from error
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_prompt(self, text: str) -> Ids:
        """The ids of end-of-text and of the text as the start of a document, (n,) int32.

        In word-level text a document starts with a blank; a missing blank is added.
        """
        text = " " + text if self.word_level and text and not text.startswith(" ") else text
        return np.concatenate([np.array([self.eos_id], dtype=np.int32), self.encode(text)])

    def decode(self, ids: Iterable[int] | Ids) -> str:
        """The text of ids.

        End-of-text tokens are dropped; bytes that aren't UTF-8 become U+FFFD.
        """
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def symbol(self, token_id: int) -> str:
        """A token as tokenizer.json spells it, in characters or in letters that stand for bytes."""
        return self._bpe.id_to_token(token_id) or ""

    def label(self, token_id: int) -> str:
        """A token as people read it: its text, or its name if it has no text."""
        return self.decode([token_id]) or self.symbol(token_id)

    def beginning(self, text: str, ids: Ids) -> bytes:
        """The UTF-8 bytes at the start of a text that its first tokens, `ids`, stand for.

        If the tokenizer doesn't spell bytes, a character that is partly covered counts as covered.
        White space that belongs to no token counts with the text after it.
        """
        if self._byte_lengths is not None:
            return text.encode()[: int(self._byte_lengths[ids].sum())]
        size = 8 * len(ids) + 64
        while True:
            found = self._bpe.encode(text[:size], add_special_tokens=False)
            own = found.ids[: len(ids)]
            # If cutting the text here changed its last tokens, read more of it.
            if size >= len(text) or (len(found.ids) > len(ids) and np.array_equal(own, ids)):
                return text[: found.offsets[len(own) - 1][1] if own else 0].encode()
            size *= 2

    def spelling(self, text: str) -> Spelling:
        """Counts the characters of a text that its tokens don't keep."""
        if self.spells_bytes:
            return Spelling()
        found = [self._spelling(part) for part in _parts(text)]
        return Spelling(
            sum(one.unknown for one in found), sum(one.blanks for one in found), "".join(one.lost for one in found)
        )

    def _spelling(self, text: str) -> Spelling:
        encoding = self._bpe.encode(text, add_special_tokens=False)
        return Spelling(self._unknown_characters(encoding, text), *_left_out(encoding, text))

    def _unknown_characters(self, encoding: Encoding, text: str) -> int:
        """The number of characters behind unknown tokens, without `<unk>` written in the text."""
        if self._unknown is None:
            return 0
        unknown, offsets = self._bpe.token_to_id(self._unknown), encoding.offsets
        places = (offsets[i] for i in np.flatnonzero(np.asarray(encoding.ids) == unknown))
        return sum(end - start for start, end in places if text[start:end].strip() != self._unknown)

    def unknown_characters(self, text: str, ids: Ids) -> int:
        """The number of characters of a text that became unknown tokens.

        ids: the tokens of the text.
        """
        return self.spelling(text).unknown if self.has_unknown(ids) else 0

    def has_unknown(self, ids: Ids) -> bool:
        """True if `ids` contains the token for text that the tokenizer cannot spell."""
        return self._unknown is not None and bool((ids == self._bpe.token_to_id(self._unknown)).any())

    def digest(self) -> str:
        """SHA-256 of what `save` writes, and of the end token if it isn't the usual one."""
        return hashlib.sha256((self._written + ("" if self._usual_end else self.end_token)).encode()).hexdigest()

    def faithful(self) -> Tokenizer:
        """A copy to save into a new run. Its file omits the steps that are switched off here."""
        return Tokenizer(_Bpe.from_str(self._bpe.to_str()), self.end_token) if self.altered else self

    def save(self, path: Path) -> None:
        """Write tokenizer.json whole or not at all. Raises StorageError."""
        try:
            write_text(path, self._written)
        except OSError as error:
            hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name a file in another folder"
            raise StorageError(f"{path} cannot be written: {error.strerror or error}", hint=hint) from error

    @classmethod
    def load(cls, path: Path, end_token: str | None = None) -> Tokenizer:
        """Read a file that `save` wrote. end_token: from the run's settings.

        Raises:
            DataError: the file is missing or isn't a tokenizer.
        """
        bpe = read_library_tokenizer(path)
        try:
            return cls(bpe, end_token)
        except DataError as error:
            raise DataError(f"{path}: {error.what}", why=error.why, hint=error.hint) from None


def read_library_tokenizer(path: Path) -> _Bpe:
    """Open a tokenizer.json with the tokenizers library.

    Raises DataError if the file can't be read or isn't a tokenizer.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="name a run folder that ebmvk wrote") from error
    try:
        return _Bpe.from_str(text)
    except BaseException as error:  # the library's panics are not Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"{path} isn't a tokenizer: {error}", hint="name a tokenizer.json of the tokenizers library"
        ) from error


def table_rows(bpe: _Bpe) -> int:
    """The number of rows that a model needs, one for each id up to the largest.

    Raises DataError if two tokens share an id, or if too many ids are unused.
    """
    ids = sorted(bpe.get_vocab(with_added_tokens=True).values())
    size = ids[-1] + 1 if ids else 0
    twice = next((a for a, b in pairwise(ids) if a == b), None)
    if twice is not None or len(ids) < FEWEST_USED * size:
        raise DataError(
            f"the tokenizer has two tokens with id {twice}"
            if twice is not None
            else f"the tokenizer has {len(ids):,} tokens with ids up to {size - 1:,}",
            why="the file was damaged or edited" if twice is not None else "a model would have rows for unused ids",
            hint="download the file again, or number its tokens from 0",
        )
    return size


def _switch_off(bpe: _Bpe, description: Description) -> None:
    """Switches off steps that the files of older runs may have; new runs' files don't have them."""
    bpe.no_truncation()
    bpe.no_padding()
    if bpe.num_special_tokens_to_add(False):
        bpe.post_processor = None
    if description["model"].get("dropout"):
        bpe.model.dropout = None


def _byte_lengths(bpe: _Bpe, description: Description, size: int) -> npt.NDArray[np.int64] | None:
    """Bytes of each token, (size,); None if tokens don't determine a text's bytes."""
    if not foreign.is_byte_level(description) or foreign.missing_bytes(description) or foreign.changes(description):
        return None
    added = foreign.added_tokens(description)
    symbols = [bpe.id_to_token(i) or "" for i in range(size)]
    return np.array([len(symbol.encode() if symbol in added else symbol) for symbol in symbols], dtype=np.int64)


def _left_out(encoding: Encoding, text: str) -> tuple[int, str]:
    """(number of blanks, other characters) of a text that no token contains."""
    blanks, lost, at = 0, "", 0
    for start, end in chain(encoding.offsets, [(len(text), len(text))]):
        if start > at:
            other = "".join(text[at:start].split())
            blanks, lost = blanks + start - at - len(other), lost + other
        at = max(at, end)
    return blanks, lost


def _parts(text: str) -> Iterator[str]:
    """Yields a text in parts of bounded length, each cut after a blank if there is one."""
    at = 0
    while at < len(text):
        end = at + _PART
        if end < len(text):
            blank = max(text.rfind(" ", at, end), text.rfind("\n", at, end))
            end = blank + 1 if blank >= at else end
        yield text[at:end]
        at = end


def _lone_surrogate(texts: list[str]) -> ArgumentError:
    text, at = next((text, at) for text in texts for at, c in enumerate(text) if "\ud800" <= c <= "\udfff")
    return ArgumentError(
        f"text holds the lone surrogate {text[at]!r} at {at}", hint="decode the text from its bytes as UTF-8"
    )
