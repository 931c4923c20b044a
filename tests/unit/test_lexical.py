"""Pretrained tables: every format, damaged files, the row that a token gets, and the projection."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import train_tokenizer
from ebmvk.errors import DataError
from ebmvk.initialisation.lexical import from_table
from ebmvk.initialisation.tables import read_table

TEXT = ["the old king sees the house and the old king likes the house 1234 naïve"] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(Corpus("made-up", "", {"train": TEXT, "validation": TEXT}), 300)


def _rows(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def _binary(words: list[str], rows: np.ndarray, count: int | None = None, end: bytes = b"\n") -> bytes:
    head = f"{len(words) if count is None else count} {rows.shape[1]}\n".encode()
    return head + b"".join(
        word.encode() + b" " + row.astype("<f4").tobytes() + end for word, row in zip(words, rows, strict=True)
    )


def _text(words: list[str], rows: np.ndarray, count: int | None = None) -> bytes:
    lines = [f"{len(words) if count is None else count} {rows.shape[1]}"]
    lines += [word + " " + " ".join(map(repr, row.tolist())) for word, row in zip(words, rows, strict=True)]
    return ("\n".join(lines) + "\n").encode()


# ---- matrices ------------------------------------------------------------------------------------


def test_the_same_vocabulary_is_matched_row_by_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With width d on both sides only the mean is removed, so the angles are those of the table."""
    rows = _rows(tokenizer.vocab_size, 16)
    np.save(tmp_path / "t.npy", rows.numpy())
    tokenizer.save(tmp_path / "tokenizer.json")
    found = from_table(read_table(tmp_path / "t.npy", None, ()), tokenizer, 16, seed=0)
    expected = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(found.mu, expected, atol=1e-5, rtol=0)
    assert (found.facts["whole"], found.facts["pieces"]) == (tokenizer.vocab_size, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_safetensors_of_a_hub_folder(tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype) -> None:
    rows = _rows(tokenizer.vocab_size, 12).to(dtype)
    other = {"h.0.ln.weight": torch.ones(12), "h.0.mlp.weight": torch.ones(12, 12)}
    save_file({"wte.weight": rows, **other}, tmp_path / "model.safetensors")
    tokenizer.save(tmp_path / "tokenizer.json")
    by_folder, by_name = (
        from_table(read_table(path, tensor, ()), tokenizer, 12, seed=0)
        for path, tensor in ((tmp_path, None), (tmp_path / "model.safetensors", "wte.weight"))
    )
    assert torch.equal(by_folder.mu, by_name.mu)
    centred = rows.double() - rows.double().mean(0)
    torch.testing.assert_close(by_folder.mu.double(), torch.nn.functional.normalize(centred, dim=1), atol=1e-5, rtol=0)


def test_wider_tables_are_projected_to_their_leading_directions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = _rows(tokenizer.vocab_size, 40) * 0.8 ** torch.arange(40) + 3.0
    np.save(tmp_path / "t.npy", rows.numpy())
    tokenizer.save(tmp_path / "tokenizer.json")
    mu = from_table(read_table(tmp_path / "t.npy", None, ()), tokenizer, 8, seed=0).mu.double()
    centred = (rows - rows.mean(0)).double().numpy()
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = torch.nn.functional.normalize(torch.from_numpy(u[:, :8] * s[:8]), dim=1)
    torch.testing.assert_close(mu @ mu.T, expected @ expected.T, atol=1e-5, rtol=0)  # doesn't depend on signs


def test_narrower_tables_keep_their_angles(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = _rows(tokenizer.vocab_size, 5)
    np.save(tmp_path / "t.npy", rows.numpy())
    tokenizer.save(tmp_path / "tokenizer.json")
    mu = from_table(read_table(tmp_path / "t.npy", None, ()), tokenizer, 33, seed=0).mu
    expected = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    assert mu.shape[1] == 33
    torch.testing.assert_close(mu @ mu.T, expected @ expected.T, atol=1e-5, rtol=0)


def test_tokens_of_another_vocabulary_are_the_mean_of_their_pieces(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A vocabulary of single bytes spells each of our tokens in pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.save(str(tmp_path / "tokenizer.json"))
    rows = _rows(256, 300)
    np.save(tmp_path / "t.npy", rows.numpy())
    found = from_table(read_table(tmp_path / "t.npy", None, ()), tokenizer, 300, seed=0)
    symbols = [tokenizer.symbol(i) for i in range(tokenizer.vocab_size)]
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    # Parts of a letter have no text to spell, unless they are single bytes; end-of-text has none at
    # all.
    spelled = [s in alphabet or (bool(t) and "\ufffd" not in t) for s, t in zip(symbols, texts, strict=True)]
    known = torch.tensor(spelled)
    assert torch.equal(found.known, known)
    own = [symbol for symbol, is_known in zip(symbols, spelled, strict=True) if is_known]
    means = torch.stack([rows[[alphabet.index(letter) for letter in symbol]].mean(0) for symbol in own])
    assert found.facts["pieces"] == len(own) - 256 > 0
    expected = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    torch.testing.assert_close(found.mu[known], expected, atol=1e-4, rtol=0)
    assert found.facts["whole"] == 256


def test_zero_rows_stay_random(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = _rows(tokenizer.vocab_size, 16)
    rows[[3, 77]] = 0
    np.save(tmp_path / "t.npy", rows.numpy())
    tokenizer.save(tmp_path / "tokenizer.json")
    found = from_table(read_table(tmp_path / "t.npy", None, ()), tokenizer, 16, seed=0)
    assert (~found.known).nonzero().flatten().tolist() == [3, 77]


# ---- word2vec ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "write"), [(".bin", _binary), (".vec", _text), (".txt", _text)])
def test_word2vec_by_word(
    tokenizer: Tokenizer, tmp_path: Path, suffix: str, write: Callable[[list[str], np.ndarray], bytes]
) -> None:
    words = ["king", "nowhere", "house", "ï", "naïve", "the"]
    rows = _rows(len(words), 20).numpy()
    path = tmp_path / f"w{suffix}"
    path.write_bytes(write(words, rows))
    wanted = {tokenizer.decode([i]).removeprefix(" ") for i in range(tokenizer.vocab_size)}
    found = from_table(read_table(path, None, wanted), tokenizer, 20, seed=0)
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    known = {texts[i] for i in found.known.nonzero().flatten().tolist()}
    assert {" king", " house", " the"} <= known <= {t for t in texts if t.removeprefix(" ") in words}
    # Words that nobody needs are not kept
    assert found.facts["rows"] == len({t.removeprefix(" ") for t in known})
    king, house = (found.mu[texts.index(text)].double() for text in (" king", " house"))
    listed = [texts[i].removeprefix(" ") for i in found.known.nonzero().flatten().tolist()]
    mean = np.mean([rows[words.index(word)] for word in listed], axis=0)
    a, b = rows[0] - mean, rows[2] - mean
    assert float(king @ house) == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=1e-5)


def test_binary_word2vec_without_line_ends(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(_binary(["king", "the"], _rows(2, 4).numpy(), end=b""))
    assert len(read_table(path, None, {"king", "the"}).rows) == 2


def test_a_byte_order_mark_before_word2vec_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "w.vec"
    path.write_bytes(b"\xef\xbb\xbf" + _text(["king", "the"], _rows(2, 4).numpy()))
    assert len(read_table(path, None, {"king", "the"}).rows) == 2


# ---- what is damaged -----------------------------------------------------------------------------


def _npy(array: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "t.npy", array, allow_pickle=True)
        return folder / "t.npy"

    return write


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _tensors(**tensors: torch.Tensor) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save_file(tensors, folder / "t.safetensors")
        return folder / "t.safetensors"

    return write


_NAN = _rows(400, 4)
_NAN[17, 2] = torch.nan
_WORDS = _binary(["king", "the"], _rows(2, 4).numpy())

DAMAGED = {
    "pickled objects": (_npy(np.array([{"a": 1}], dtype=object)), "not a plain npy array"),
    "integers": (_npy(np.ones((400, 4), dtype=np.int64)), "dtype int64"),
    "a vector": (_npy(np.ones(400, dtype=np.float32)), r"shape \(400,\)"),
    "a cube": (_npy(np.ones((400, 2, 2), dtype=np.float32)), r"shape \(400, 2, 2\)"),
    "NaN": (_npy(_NAN.numpy()), "row 17 is not finite"),
    "cut npy": (_bytes("t.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"), "not a plain npy array"),
    "too few rows": (_npy(np.ones((9, 4), dtype=np.float32)), "the matrix has only 9 rows"),
    "no safetensors": (_bytes("t.safetensors", b"nonsense"), "not valid safetensors"),
    "bool tensors": (
        _tensors(embeddings=torch.ones(400, 4, dtype=torch.bool)),
        "torch.bool; expected a matrix of floats",
    ),
    "int8 tensors": (
        _tensors(embeddings=torch.ones(400, 4, dtype=torch.int8)),
        "torch.int8; expected a matrix of floats",
    ),
    "complex tensors": (
        _tensors(embeddings=torch.ones(400, 4, dtype=torch.complex64)),
        "complex64; expected a matrix of floats",
    ),
    "FP8 that is not finite": (
        _tensors(embeddings=torch.full((400, 4), torch.nan).to(torch.float8_e5m2)),
        "row 0 is not finite",
    ),
    "packed four-bit numbers": (
        _tensors(embeddings=torch.ones(400, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)),
        "float4_e2m1fn_x2",
    ),
    "no rows": (_tensors(embeddings=torch.ones(0, 4)), r"shape \(0, 4\)"),
    "no columns": (_npy(np.ones((400, 0), dtype=np.float32)), r"shape \(400, 0\)"),
    "a number": (_npy(np.float32(1.0)), r"shape \(\)"),
    "complex npy": (_npy(np.ones((400, 4), dtype=np.complex64)), "dtype complex64"),
    "bool npy": (_npy(np.ones((400, 4), dtype=bool)), "dtype bool"),
    "records": (_npy(np.zeros(400, dtype=[("a", "f4")])), "not a floating-point type"),
    "an empty file": (_bytes("t.safetensors", b""), "not valid safetensors"),
    "an empty npy": (_bytes("t.npy", b""), "not a plain npy array"),
    "an empty word2vec": (_bytes("t.vec", b""), "first line is not"),
    "integer tensors": (_tensors(embeddings=torch.ones(400, 4, dtype=torch.int32)), "torch.int32"),
    "two matrices": (_tensors(a=torch.ones(400, 4), b=torch.ones(3, 3)), r"a \(400, 4\), b \(3, 3\)"),
    "no matrix": (_tensors(a=torch.ones(400)), "has 0 tensors"),
    "another format": (_bytes("t.pt", b"x"), r"unknown format '\.pt'"),
    "cut word2vec": (_bytes("t.bin", _WORDS[:-7]), "entry 2 of 2 doesn't have 4 numbers"),
    "word2vec promising more": (_bytes("t.bin", _binary(["king"], np.ones((1, 4)), count=3)), "entry 2 of 3"),
    "cut text": (_bytes("t.vec", b"2 3\nking 1 2 3\nthe 1 2\n"), "entry 2 of 2 doesn't have 3 numbers"),
    "words for numbers": (_bytes("t.vec", b"1 3\nking 1 two 3\n"), "entry 1 of 1"),
    "GloVe": (_bytes("t.txt", b"king 1 2 3\nthe 1 2 3\n"), "first line is not 'ROWS WIDTH'"),
    "NaN word": (_bytes("t.vec", b"1 3\nking 1 nan 3\n"), "'king' is not finite"),
    "binary called text": (_bytes("t.txt", struct.pack("<8f", *range(8))), "first line is not"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tables_are_named(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write, message = DAMAGED[case]
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=message) as caught:
        read_table(write(tmp_path), None, {"king", "the"})
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint


def test_rows_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.ones((4, 4), dtype=np.float32))
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        read_table(tmp_path / "t.npy", None, ())
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="isn't a tokenizer"):
        read_table(tmp_path / "t.npy", None, ())


def test_an_unknown_tensor_is_refused_and_the_known_ones_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_file({"wte.weight": torch.ones(400, 4)}, tmp_path / "t.safetensors")
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=r"no tensor 'wpe'; matrices: wte\.weight"):
        read_table(tmp_path / "t.safetensors", "wpe", ())


@pytest.mark.parametrize("word", ["zzz", "king"])
def test_no_match_is_an_error(word: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A single match isn't enough: minus the mean, its row is zero."""
    (tmp_path / "t.vec").write_bytes(_text([word], _rows(1, 4).numpy()))
    with pytest.raises(DataError, match="none of the"):
        from_table(read_table(tmp_path / "t.vec", None, {"king"}), tokenizer, 8, seed=0)
