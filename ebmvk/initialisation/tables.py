"""Reading pretrained token vectors: safetensors or npy beside a tokenizer.json, word2vec, a model
from the hub.

Only numbers are read, never objects. A table can look up rows for the tokens of another vocabulary.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as _Tokenizer
from torch import Tensor

from ebmvk.data.tokenizer import TOKENIZER_FILE, WEIGHTS_FILE, read_library_tokenizer
from ebmvk.errors import DataError

# Names of the token table in widespread models; the first is that of GPT-2.
TENSORS = (
    "wte.weight",
    "transformer.wte.weight",
    "embeddings",
    "embedding.weight",
    "embed_tokens.weight",
    "model.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
)
FORMATS = (".safetensors", ".npy", ".bin", ".txt", ".vec")
_LONGEST_LINE = 1 << 20  # bytes of a header or a word; a longer one isn't word2vec
_Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """rows: (n, D), floating. find(symbol, text): the rows of a token; empty if the token is
    unknown, several if the table has it in pieces. symbol: the token as tokenizer.json spells it.
    text: the token decoded."""

    source: str
    rows: Tensor
    find: Callable[[str, str], list[int]]


def read_table(path: Path, tensor: str | None, words: Collection[str]) -> Table:
    """The table in a file, or in a folder with model.safetensors and tokenizer.json.

    Args:
        tensor: the name of the tensor in a safetensors file; None looks for a known name.
        words: the words to read from a word2vec file, which may have millions.

    Raises:
        DataError: the file is missing, damaged or in another format; its rows aren't finite
            floating numbers; or a tokenizer.json is needed and missing.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"--init {path}: there is no {file.name if path.is_dir() else 'such file'}",
            hint=f"give a {', '.join(FORMATS)} file, or a folder with {WEIGHTS_FILE} and {TOKENIZER_FILE}",
        )
    match file.suffix.lower():
        case ".safetensors":
            return _named(file, _safetensors(file, tensor))
        case ".npy":
            return _named(file, _npy(file))
        case ".bin" | ".txt" | ".vec":
            return _word2vec(file, words, binary=file.suffix.lower() == ".bin")
    raise DataError(f"--init {file}: unknown format {file.suffix!r}", hint=f"give one of {', '.join(FORMATS)}")


# ---- matrices beside a tokenizer -----------------------------------------------------------------


def _safetensors(file: Path, tensor: str | None) -> Tensor:
    try:
        with safe_open(file, framework="pt") as content:
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
            found: Tensor = content.get_tensor(_choose(file, shapes, tensor))
            return found
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"--init {file}: not valid safetensors ({error})", hint="download the file again") from None


def _choose(file: Path, shapes: dict[str, tuple[int, ...]], tensor: str | None) -> str:
    """The name of the tensor: the one asked for, else a known name, else the only matrix."""
    if tensor is not None and tensor in shapes:
        return tensor
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    known = [name for name in TENSORS if name in matrices]
    candidates = known or matrices
    if tensor is None and len(candidates) == 1:
        return candidates[0]
    what = (
        f"has no tensor {tensor!r}" if tensor is not None else f"has {len(candidates)} tensors that could be the table"
    )
    shown = ", ".join(f"{name} {shapes[name]}" for name in candidates[:8]) or "none"
    raise DataError(
        f"--init {file}: {what}; matrices: {shown}", hint=f"name one of them: --init {quote(f'{file}:TENSOR')}"
    )


def _npy(file: Path) -> Tensor:
    try:
        content = np.load(file, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"--init {file}: not a plain npy array ({error})",
            why="it is cut short, or it holds objects, which are never loaded",
            hint="save it again with numpy.save, as a float32 matrix",
        ) from None
    if content.dtype.kind != "f":
        raise DataError(f"--init {file}: dtype {content.dtype}, not a floating-point type", hint="save it as float32")
    return torch.from_numpy(np.array(content, dtype=np.float32))


def _named(file: Path, rows: Tensor) -> Table:
    """A table whose rows are named by the tokenizer beside the file."""
    if rows.dim() != 2 or not rows.is_floating_point() or not rows.numel():
        raise DataError(
            f"--init {file}: shape {tuple(rows.shape)}, {rows.dtype}; expected a matrix of floats (tokens, width)",
            hint="give the matrix of the token embeddings",
        )
    rows = _widened(file, rows)
    if bool((bad := ~torch.isfinite(rows).all(1)).any()):
        others = int(bad.sum()) - 1
        raise DataError(
            f"--init {file}: row {int(bad.nonzero()[0])} is not finite{f', nor are {others} others' if others else ''}",
            hint="the file is damaged: download it again",
        )
    tokenizer = _tokenizer(file.with_name(TOKENIZER_FILE), rows)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    unknown = {vocabulary.get(name) for name in ("<unk>", "[UNK]")}

    def find(symbol: str, text: str) -> list[int]:
        for spelling in (symbol, text.replace(" ", "▁")):  # byte-level vocabularies, and SentencePiece
            if spelling in vocabulary:
                return [vocabulary[spelling]]
        pieces: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return [] if "\ufffd" in text or unknown & set(pieces) else pieces

    return Table(str(file), rows, find)


def _widened(file: Path, rows: Tensor) -> Tensor:
    """Eight-bit numbers as float32, because torch can't compute with them.

    Their scale doesn't matter.
    """
    if rows.element_size() > 1:
        return rows
    try:
        return rows.float()
    except (RuntimeError, NotImplementedError) as error:  # for example, two four-bit numbers in a byte
        raise DataError(f"--init {file}: {rows.dtype} cannot be read", hint="save the table as float32") from error


def _tokenizer(file: Path, rows: Tensor) -> _Tokenizer:
    if not file.exists():
        raise DataError(
            f"--init: {file} is missing, so the {len(rows):,} rows have no tokens",
            hint=f"put the {TOKENIZER_FILE} of the model that the rows come from beside the file",
        )
    tokenizer = read_library_tokenizer(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= len(rows):
        raise DataError(
            f"--init: {file} has token {largest}, but the matrix has only {len(rows):,} rows",
            hint="give the tokenizer that belongs to the matrix",
        )
    return tokenizer


# ---- word2vec ------------------------------------------------------------------------------------


def _word2vec(file: Path, words: Collection[str], *, binary: bool) -> Table:
    """The rows of the wanted words in a word2vec file: a line "ROWS WIDTH", then entries of a word
    and its numbers."""
    places: dict[str, int] = {}
    rows: list[_Rows] = []
    try:
        with file.open("rb") as stream:
            count, width = _header(file, stream)
            read = _binary_row if binary else _text_row
            for number in range(count):
                word, row = read(stream, width)
                if row is None or len(row) != width:
                    raise DataError(
                        f"--init {file}: entry {number + 1} of {count:,} doesn't have {width} numbers",
                        why="the file is cut short, or has another format (.bin is binary, .txt and .vec are text)",
                        hint="download the file again",
                    )
                if word in words and word not in places:
                    if not np.isfinite(row).all():
                        raise DataError(
                            f"--init {file}: the vector of {word!r} is not finite", hint="download the file again"
                        )
                    places[word] = len(rows)
                    rows.append(row)
    except OSError as error:
        raise DataError(f"--init {file}: {error.strerror or error}", hint="check its permissions") from None
    table = torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, width)
    return Table(
        str(file), table, lambda _, text: [places[word] for word in [text.removeprefix(" ")] if word in places]
    )


def _header(file: Path, stream: BinaryIO) -> tuple[int, int]:
    fields = stream.readline(_LONGEST_LINE).removeprefix(BOM_UTF8).split()
    if len(fields) == 2 and all(field.isdigit() for field in fields) and min(map(int, fields)) > 0:
        return int(fields[0]), int(fields[1])
    raise DataError(
        f"--init {file}: its first line is not 'ROWS WIDTH', as word2vec files begin",
        hint="put that line before the first vector (GloVe files lack it)",
    )


def _text_row(stream: BinaryIO, width: int) -> tuple[str, _Rows | None]:
    fields = stream.readline(_LONGEST_LINE).decode("utf-8", errors="replace").rstrip().rsplit(" ", width)
    try:
        return fields[0], np.array(fields[1:], dtype=np.float32)
    except ValueError:
        return fields[0], None


def _binary_row(stream: BinaryIO, width: int) -> tuple[str, _Rows | None]:
    word = bytearray()
    while (letter := stream.read(1)) not in (b" ", b"") and len(word) < _LONGEST_LINE:
        word += letter
    content = stream.read(4 * width)
    name = word.removeprefix(b"\n").decode("utf-8", errors="replace")
    return name, np.frombuffer(content, dtype="<f4") if len(content) == 4 * width else None
