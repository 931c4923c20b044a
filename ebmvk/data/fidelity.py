"""Checks that encoding and decoding gives back the same text, and counts what was changed.

This matters for a tokenizer.json from elsewhere: if it drops or replaces characters, the model
learns a different text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ebmvk.data import foreign
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.errors import DataError

MOST = 4_000_000  # characters to check; this takes about three seconds
_PIECE = 1 << 20  # characters of a document to encode at once
_SHOWN = 12


@dataclass(frozen=True)
class RoundTrip:
    """The result of a check.

    characters: the number of characters checked. pieces, changed: the number of pieces of
    documents, and how many of them came back changed.
    example: the first difference, (original, decoded). unknown: the number of characters that
    became unknown tokens. blanks: the number of white-space characters that no token contains.
    """

    characters: int
    pieces: int
    changed: int
    unknown: int
    blanks: int
    example: tuple[str, str] | None

    def __str__(self) -> str:
        looked = f"{self.characters:,} characters were turned into tokens and back"
        if not self.changed:
            return f"{looked}: every one came back"
        parts = [f"{self.changed:,} of {self.pieces:,} texts come back changed"]
        parts += [f"the first one turns {self.example[0]!r} into {self.example[1]!r}"] if self.example else []
        parts += [f"{self.unknown:,} characters became unknown tokens"] if self.unknown else []
        parts += [f"{self.blanks:,} blanks and line ends are in no token"] if self.blanks else []
        return f"{looked}: {'; '.join(parts)}. Bits per byte count the whole text, although its tokens say less"


def round_trip(tokenizer: Tokenizer, name: str, documents: Iterable[str], most: int = MOST) -> RoundTrip:
    """Encode and decode up to `most` characters of the documents.

    name: the tokenizer's file, for messages.

    Raises:
        DataError: no token contains some character that isn't white space.
    """
    characters = pieces = changed = unknown = blanks = 0
    example = None
    for piece in _pieces(documents, most):
        characters, pieces = characters + len(piece), pieces + 1
        back = tokenizer.decode(tokenizer.encode(piece))
        if back == piece:
            continue
        changed += 1
        example = example or foreign.difference(piece, back)
        found = tokenizer.spelling(piece)
        if found.lost:
            raise DataError(
                f"--tokenizer {name} leaves out {len(found.lost):,} characters of the text: {found.lost[:_SHOWN]!r}",
                why="no token contains them, so the model would learn a different text",
                hint="use a tokenizer that keeps them: bpe or gpt2",
            )
        unknown, blanks = unknown + found.unknown, blanks + found.blanks
    return RoundTrip(characters, pieces, changed, unknown, blanks, example)


def _pieces(documents: Iterable[str], most: int) -> Iterable[str]:
    for document in documents:
        for at in range(0, min(len(document), most), _PIECE):
            yield document[at : min(at + _PIECE, most)]
        most -= len(document)
        if most <= 0:
            return
