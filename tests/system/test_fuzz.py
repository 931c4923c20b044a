"""Files mutated at random are read, or refused with a typed error; nothing crashes or hangs.

EBMVK_FUZZ=N tries N mutations of each kind of file instead of a few; `-m slow` tries 25,000, which
is 100,000 together. A failure names the number of its mutation, which reproduces it.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ebmvk.data.datasets import resolve
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import Batches, encode_split
from ebmvk.errors import DataError, EbmvkError
from ebmvk.runs.folder import OpenRun, open_run, read_config
from ebmvk.runs.manifest import MANIFEST, MODEL, SOC, STATE

from .conftest import made_up_text
from .damage import forge
from .test_checkpoints import SPLATS, go_on

pytestmark = pytest.mark.usefixtures("no_pictures")

FEW, MANY = int(os.environ.get("EBMVK_FUZZ", "40")), 25_000
LONGEST = 20  # seconds for one file
NUMBERS = (
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483648",
    "9223372036854775807",
    "-9223372036854775809",
    "1e308",
    "1e-320",
)
WORDS = (
    *NUMBERS,
    "nan",
    "-inf",
    "true",
    "null",
    "[]",
    "{}",
    '""',
    '"x"',
    "'",
    '"',
    "\\u0000",
    "\n[",
    "=",
    "../",
    "\ud7ff",
)


@dataclass(frozen=True)
class Folder:
    """A copy of a run to damage, and the good run."""

    run: Path
    good: Path

    @property
    def step(self) -> Path:
        return self.run / "checkpoints" / "step-8"


# ---- mutations -----------------------------------------------------------------------------------


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A byte string with one to four changes."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        to = min(len(content), at + chance.choice((1, 2, 8, 64, 1000)))
        kind = chance.randrange(7)
        middle = (
            bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 : to] if kind == 0 and at < to else
            chance.randbytes(to - at) if kind == 1 else
            b"" if kind == 2 else
            content[at:to] * 2 if kind == 3 else
            chance.choice(WORDS).encode() if kind == 4 else
            content[at:to] + bytes(chance.choice((1, 8, 4096))) if kind == 5 else
            content[:at][-8:]
        )  # fmt: skip
        content = content[:at] + middle + content[to:]
        if chance.random() < 0.05:
            content = content[: chance.randrange(len(content) + 1)]
    return content


def mutated_json(text: str, chance: random.Random) -> str:
    """JSON in which one value is replaced by another one, or by one of another type."""
    tree = json.loads(text)
    tree.pop("sha256", None)  # otherwise nothing behind it would be reached
    nodes = [(parent, key) for parent, key in _places(tree)]
    for _ in range(chance.randint(1, 3)):
        parent, key = chance.choice(nodes)
        other, name = chance.choice(nodes)
        values = (None, True, -1, 0, 1 << 70, 1.5, "", "x" * 1000, [], {}, [[]], {"$tensor": "o"}, {"$items": 1})
        parent[key] = other[name] if chance.random() < 0.3 else chance.choice(values)
    try:
        return json.dumps(tree)
    except (ValueError, RecursionError):  # a value that holds itself
        return json.dumps(list(range(99)))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


def _either(path: Path, chance: random.Random) -> bytes:
    """A JSON file, mutated as JSON or as bytes."""
    content = path.read_bytes()
    return mutated_json(content.decode(), chance).encode() if chance.random() < 0.7 else mutated(content, chance)


# ---- what is read --------------------------------------------------------------------------------


def _checkpoint(at: Folder, chance: random.Random) -> None:
    """Mutate one of a checkpoint's files. Half of the time the digests are made right, so that the
    content is read.
    """
    good = at.good / "checkpoints" / "step-8"
    file = chance.choice((MANIFEST, MODEL, STATE, SOC))
    try:
        if file == MANIFEST:
            (at.step / file).write_bytes(_either(good / file, chance))
        elif chance.random() < 0.1:
            (at.step / file).write_bytes(mutated((good / file).read_bytes(), chance))
        else:
            forge(at.step, _tensors(good / file, chance), file)
        go_on(_opened(at.step))
    finally:
        for name in (MANIFEST, file):
            shutil.copyfile(good / name, at.step / name)


def _tensors(path: Path, chance: random.Random) -> bytes:
    """Mutate the header or the numbers of a safetensors file."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    kind = chance.randrange(3)
    if kind == 0:
        return mutated(content, chance)
    if kind == 1:
        header = mutated_json(content[8:end].decode(), chance).encode()
        return len(header).to_bytes(8, "little") + header + content[end:]
    at = chance.randrange(end, len(content))
    return content[:at] + chance.randbytes(8) + content[at + 8 :]


def _opened(path: Path) -> OpenRun:
    return open_run(path, "--checkpoint", lambda _: None)


def _config(at: Folder, chance: random.Random) -> None:
    """Mutate bytes of config.toml, or exchange a value."""
    content = (at.good / "config.toml").read_bytes()
    lines = content.splitlines()
    line = chance.randrange(len(lines))
    lines[line] = lines[line].partition(b"=")[0] + b"= " + chance.choice(WORDS).encode()
    (at.run / "config.toml").write_bytes(b"\n".join(lines) if chance.random() < 0.5 else mutated(content, chance))
    read_config(at.run)


def _tokenizer(at: Folder, chance: random.Random) -> None:
    (at.run / "tokenizer.json").write_bytes(_either(at.good / "tokenizer.json", chance))
    tokenizer = Tokenizer.load(at.run / "tokenizer.json")
    ids = tokenizer.encode_prompt("The old king paints 12 houses. <unk>")
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    tokenizer.decode(ids)
    tokenizer.beginning("The old king", tokenizer.encode("The old king"))


def _corpus(at: Folder, chance: random.Random) -> None:
    path = at.run / "text.txt"
    path.write_bytes(mutated(made_up_text(60, seed=3).encode(), chance))
    stream = encode_split(resolve(str(path), None), "train", _KNOWN[at.good])
    assert Batches(stream, 2, 16, seed=chance.randrange(9)).batch(0).shape == (2, 17)


_KNOWN: dict[Path, Tokenizer] = {}
READERS: dict[str, Callable[[Folder, random.Random], None]] = {
    "checkpoint": _checkpoint, "config": _config, "tokenizer": _tokenizer, "corpus": _corpus,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, small: Path) -> Folder:
    _KNOWN.setdefault(small, Tokenizer.load(small / "tokenizer.json"))
    return Folder(shutil.copytree(small, tmp_path / "run"), small)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path) -> Path:
    """A run with splats and with small files, so that a mutation is likely to hit something that
    matters.
    """
    run = tmp_path_factory.mktemp("small") / "run"
    args = ["--run-dir", run, "--dataset", text, "--config", tiny, "--device", "cpu", "--quiet", "--sample-tokens", 0]
    small = ("--latent-dim", 8, "--ffn-dim", 8, "--hidden-dim", 8, "--n-layers", 1, "--vocab-size", 260)
    assert importlib.import_module("ebmvk.train").main([str(arg) for arg in (*args, *small, *SPLATS)]) == 0
    return run


class Hang(BaseException):
    """Not an error of a file, so that nothing that reads files catches it."""


@contextmanager
def _alarm(what: str) -> Iterator[None]:
    """Raise Hang after LONGEST seconds. A timer that ran before, such as the test's own, keeps
    running.
    """

    def rings(*_: object) -> None:
        raise Hang(f"{what}: not done after {LONGEST} s")

    handler, began = signal.signal(signal.SIGALRM, rings), time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)))


def test_the_alarm_keeps_the_timer_that_ran_before() -> None:
    with _alarm("outer"):
        handler, left = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
        with _alarm("inner"):
            assert signal.getsignal(signal.SIGALRM) is not handler
        assert signal.getsignal(signal.SIGALRM) is handler
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= left


def test_a_hang_of_the_tokenizer_isnt_taken_for_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """Named like the library's panics."""

    def raising(error: BaseException) -> Callable[[str], None]:
        def from_str(_: str) -> None:
            raise error

        return from_str

    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    for error, seen in ((Hang(), Hang), (PanicException(), DataError), (Exception(), DataError)):
        monkeypatch.setattr("ebmvk.data.tokenizer._Bpe", SimpleNamespace(from_str=raising(error)))
        with pytest.raises(seen):
            Tokenizer.load(tmp_path / "tokenizer.json")


def _refused(kind: str, folder: Folder, number: int) -> bool:
    what = f"mutation {number} of a {kind}"
    try:
        with _alarm(what):
            READERS[kind](folder, random.Random(f"{kind}/{number}"))
    except EbmvkError as error:
        return bool(error.hint)
    except BaseException as error:
        error.add_note(what)
        raise
    return False


def _fuzz(kind: str, folder: Folder, count: int) -> None:
    refused = [_refused(kind, folder, number) for number in range(count)]
    assert any(refused)  # not all of them are harmless


@pytest.mark.parametrize("kind", READERS)
def test_mutated_files_are_read_or_refused(kind: str, folder: Folder) -> None:
    _fuzz(kind, folder, FEW)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", READERS)
def test_many_mutated_files_are_read_or_refused(kind: str, folder: Folder) -> None:
    _fuzz(kind, folder, MANY)
