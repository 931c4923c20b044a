"""Tests programs on disk. They are read as they were written or not at all, and only if nothing
that they depend on has changed."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import random
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from programs import LIMITS, Builder, random_program
from torch import Tensor

from ebmvk.compute import codec, decompose, expr, program_cache
from ebmvk.compute.capture import trace
from ebmvk.compute.codec import Unreadable, pack, unpack
from ebmvk.compute.ir import Const
from ebmvk.compute.lowering import Lowered
from ebmvk.compute.plan import Plan, make_plan
from ebmvk.compute.program_cache import ProgramCache, key_of
from ebmvk.host.cache_folder import cache_folder

pytestmark = pytest.mark.usefixtures("extension")


@pytest.fixture
def cache(tmp_path: Path) -> ProgramCache:
    return ProgramCache(tmp_path / "programs")


@pytest.fixture(scope="module")
def planned() -> Plan:
    return make_plan(random_program(random.Random(3)), LIMITS)


def same(a: Plan, b: Plan) -> None:
    assert repr(without_constants(a)) == repr(without_constants(b))
    assert a.steps == b.steps
    assert a.settled == b.settled
    assert a.program.nodes == b.program.nodes
    for (one, value), (other, read) in zip(a.program.constants.items(), b.program.constants.items(), strict=True):
        assert one == other
        assert np.asarray(value).dtype == np.asarray(read).dtype
        assert np.array_equal(np.asarray(value), np.asarray(read))


def without_constants(plan: Plan) -> Plan:
    return replace(plan, program=replace(plan.program, constants={}))


# --------------------------------------------------------------------------------- bytes and back


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_is_read_as_it_was_written(seed: int) -> None:
    made = make_plan(random_program(random.Random(seed)), LIMITS)
    same(made, unpack("key", pack("key", made)))


def test_numbers_keep_their_bits_and_types() -> None:
    """1, 1.0 and True are equal in Python, and so are 0.0 and -0.0, but not in a program."""
    values = [0.0, -0.0, 1, 1.0, True, False, 0, math.inf, -math.inf, math.nan, 5e-324, -(2**31), 2**32 - 1]
    build = Builder()
    program = build.program
    x = build.leaf(3)
    kinds = {float: "float32", int: "int32", bool: "bool"}
    for value in values:
        const = Const(value, kinds[type(value)])
        build.output(build.loop(expr.where(expr.op("gt", expr.load(x), expr.load(x)), const, const), (3,)))
    read = unpack("key", pack("key", made := make_plan(program, LIMITS)))
    for number, value in enumerate(values):
        for plan in (made, read):
            (const, *_) = [own for own in expr.walk(plan.program.nodes[number].stores[0].value) if type(own) is Const]
            assert repr(const.value) == repr(value)


def test_a_deep_expression_is_written_without_recursion() -> None:
    build = Builder()
    value = expr.load(build.leaf(2))
    for _ in range(4 * sys.getrecursionlimit()):
        value = expr.op("exp", value)
    build.output(build.loop(value, (2,)))
    made = make_plan(build.program, LIMITS, lower=lambda *_: Lowered((), (), 1.0, 1.0))
    assert len(unpack("key", pack("key", made)).program.nodes) == 1


def test_damaged_bytes_are_never_a_plan(planned: Plan) -> None:
    data = pack("key", planned)
    chance = random.Random(0)
    with pytest.raises(Unreadable, match="another program"):
        unpack("other", data)
    for size in (0, 1, len(codec.MAGIC), len(codec.MAGIC) + 32, 200, len(data) - 1):
        with pytest.raises(Unreadable):
            unpack("key", data[:size])
    for _ in range(200):
        at = chance.randrange(len(data))
        damaged = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        with pytest.raises(Unreadable):
            unpack("key", damaged)


def forged(change: Any, planned: Plan) -> bytes:
    """A file that somebody who knows the format has changed."""
    start = len(codec.MAGIC) + 32
    body = pack("key", planned)[start:]
    size = int.from_bytes(body[:8], "little")
    said = json.loads(body[8 : 8 + size])
    change(said)
    text = json.dumps(said).encode()
    body = len(text).to_bytes(8, "little") + text + body[8 + size :]
    return codec.MAGIC + hashlib.sha256(body).digest() + body


def tensor_of(said: Any) -> Any:
    return next(values for name, values in said["objects"] if name == "Tensor")


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["objects"].append(["Popen", [["true"]]]),
        lambda said: said["objects"][0].__setitem__(0, "object"),
        lambda said: tensor_of(said).__setitem__(0, "1"),
        lambda said: tensor_of(said).__setitem__(0, True),
        lambda said: tensor_of(said).__setitem__(1, [1.5]),
        lambda said: tensor_of(said).__setitem__(2, "float64"),
        lambda said: tensor_of(said).append(0),
        lambda said: said["objects"][-1][1].__setitem__(0, len(said["objects"]) - 1),
        lambda said: said["objects"][-1][1].__setitem__(0, -1),
        lambda said: said.__setitem__("root", 0),
        lambda said: said.__setitem__("root", None),
        lambda said: said["sizes"].append(1 << 40),
        lambda said: said["sizes"].append(-1),
        lambda said: said.pop("objects"),
    ],
    ids=["unknown class", "object", "text", "bool", "fraction", "type", "field", "itself", "negative", "no plan",
         "null", "large", "negative size", "missing"],
)  # fmt: skip
def test_contents_that_no_plan_can_have_are_refused(change: Any, planned: Plan) -> None:
    assert unpack("key", forged(lambda _: None, planned))
    with pytest.raises(Unreadable):
        unpack("key", forged(change, planned))


@dataclass(frozen=True)
class Unknown:
    number: int = 0


def test_only_plans_are_written(planned: Plan) -> None:
    with pytest.raises(TypeError, match="isn't part of a plan"):
        pack("key", replace(planned, fetched=(Unknown(),)))  # type: ignore[arg-type]


def test_every_class_of_a_plan_can_be_read() -> None:
    """The format follows from the classes' annotations, so the reader must know each of them."""
    reader = codec._Reader(b"", [])
    for name in codec.CLASSES:
        with pytest.raises(ValueError, match="zip"):
            reader.add(name, [])


# ----------------------------------------------------------------------------------------- folder


def test_a_program_is_kept_and_found(cache: ProgramCache, planned: Plan) -> None:
    assert cache.load("one") is None
    cache.store("one", planned)
    found = cache.load("one")
    assert found is not None
    same(planned, found)
    assert cache.load("two") is None
    assert [path.name for path in cache.folder.iterdir()] == ["one.program"]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "renamed"])
def test_a_damaged_file_is_deleted_with_one_warning(cache: ProgramCache, planned: Plan, damage: str) -> None:
    cache.store("one", planned)
    path = cache.folder / "one.program"
    data = path.read_bytes()
    if damage == "renamed":
        path = path.rename(cache.folder / "two.program")
    else:
        path.write_bytes({"cut": data[:-9], "changed": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    with pytest.warns(RuntimeWarning, match=r"\.program: it is.*; the program is compiled again") as said:
        assert cache.load(path.stem) is None
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, planned: Plan, monkeypatch: Any) -> None:
    cache = ProgramCache(tmp_path)
    cache.store("one", planned)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(program_cache.tempfile, "mkstemp", refused)  # root may write anywhere
    monkeypatch.setattr(program_cache.os, "utime", refused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.store("two", planned)
        assert cache.load("one") is not None
        assert cache.load("two") is None
        ProgramCache(tmp_path / "one.program" / "below").store("three", planned)


def test_a_full_disk_leaves_nothing(cache: ProgramCache, planned: Plan, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache.store("one", planned)
    assert list(cache.folder.iterdir()) == []


def test_the_files_unused_for_longest_go_first(tmp_path: Path, planned: Plan) -> None:
    size = len(pack("a", planned))
    cache = ProgramCache(tmp_path, most=3 * size + size // 2)
    now = time.time()
    for number, key in enumerate("abc"):
        cache.store(key, planned)
        os.utime(tmp_path / f"{key}.program", (now - 100 + number, now - 100 + number))
    assert cache.load("a") is not None  # now b is the oldest
    cache.store("d", planned)
    assert sorted(path.stem for path, _, _ in cache.sizes()) == ["a", "c", "d"]
    ProgramCache(tmp_path, most=size // 2).store("e", planned)
    assert len(list(cache.sizes())) == 3  # a program that is larger than the whole cache isn't kept


def test_unfinished_files_of_ended_processes_are_deleted(cache: ProgramCache, planned: Plan) -> None:
    cache.folder.mkdir()
    old, young = cache.folder / "x.part", cache.folder / "y.part"
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    cache.store("one", planned)
    assert not old.exists()
    assert young.exists()


def _write_and_read(folder: Path, seed: int, wrong: Any) -> None:
    warnings.simplefilter("error")
    chance = random.Random(seed)
    plans = {str(number): make_plan(random_program(random.Random(number)), LIMITS) for number in range(3)}
    cache = ProgramCache(folder, most=2 * len(pack("0", plans["0"])))
    for _ in range(60):
        key = chance.choice("012")
        if chance.random() < 0.5:
            cache.store(key, plans[key])
        elif (found := cache.load(key)) is not None and found.steps != plans[key].steps:
            wrong.value += 1


def test_several_processes_write_and_read_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    running = [context.Process(target=_write_and_read, args=(tmp_path, seed, wrong)) for seed in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert wrong.value == 0
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("named", "shared", "expected"),
    [("", "/x", "/x/ebmvk"), ("/y", "/x", "/y"), ("off", "/x", None), ("", "", "/home/me/.cache/ebmvk")],
)
def test_the_folder_can_be_moved_and_switched_off(
    named: str, shared: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("EBMVK_CACHE_DIR", named)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    assert cache_folder() == (None if expected is None else Path(expected))
    assert (ProgramCache.default() is None) == (expected is None)


# -------------------------------------------------------------------------------------------- key


def device(**changes: Any) -> Any:
    about = {"name": "card", "driver": "driver 1", "index": 0, "float16": True, "api_version": 4198400}
    limits = replace(LIMITS, **{name: changes.pop(name) for name in list(changes) if hasattr(LIMITS, name)})
    return SimpleNamespace(backend=SimpleNamespace(capabilities=SimpleNamespace(**about | changes)), limits=limits)


def test_the_key_changes_with_all_that_a_program_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first = key_of(device(), "graph", check=True, placed=[])
    assert key_of(device(index=1), "graph", placed=[], check=True) == first  # the same card in another slot
    others = {
        key_of(device(name="other"), "graph", check=True, placed=[]),
        key_of(device(driver="driver 2"), "graph", check=True, placed=[]),
        key_of(device(float16=False), "graph", check=True, placed=[]),
        key_of(device(alignment=256), "graph", check=True, placed=[]),
        key_of(device(), "other", check=True, placed=[]),
        key_of(device(), "graph", check=False, placed=[]),
        key_of(device(), "graph", check=True, placed=[1]),
    }
    for place, value in [
        ("torch.__version__", "9.9"), ("ebmvk.__version__", "9.9"), ("numpy.__version__", "9.9"),
        ("ebmvk.compute.program_cache.code", lambda: "other"),
        ("torch.are_deterministic_algorithms_enabled", lambda: True),
    ]:  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(place, value)
            others.add(key_of(device(), "graph", check=True, placed=[]))
    torch.set_default_dtype(torch.float64)
    try:
        others.add(key_of(device(), "graph", check=True, placed=[]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(others) == 13
    assert first not in others


def test_the_hash_of_the_code_is_of_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    files = [tmp_path / "__init__.py", tmp_path / "sub" / "model.py", tmp_path / "_vulkan.so"]
    monkeypatch.setattr("ebmvk.__file__", str(files[0]))
    seen = set()
    for text in ("1", "2"):
        for file in files:
            file.write_text(text)
            program_cache.code.cache_clear()
            seen.add(program_cache.code())
    monkeypatch.undo()
    program_cache.code.cache_clear()
    assert len(seen) == 6


TABLE = torch.tensor([1.0, 2.0, 3.0, 4.0])


def traced_key(function: Any, *shapes: tuple[int, ...]) -> str:
    return trace(function, [torch.ones(shape) for shape in shapes]).key


def test_the_key_of_a_graph_has_its_constants_and_shapes() -> None:
    def times(table: Tensor) -> Any:
        return lambda x: [x.reshape(-1)[:4].sum() * table.sum()]

    found = [
        traced_key(times(TABLE), (4,)),
        traced_key(times(TABLE + 1), (4,)),
        traced_key(times(TABLE.reshape(2, 2)), (4,)),
        traced_key(times(TABLE.view(torch.int32)), (4,)),  # the same bytes
        traced_key(times(TABLE), (5,)),
        traced_key(lambda x: [x.reshape(-1)[:4].sum() * 2.0], (4,)),
        traced_key(lambda x: [x.reshape(-1)[:4].sum() * 2.5], (4,)),
    ]
    assert len(set(found)) == len(found)
    assert "" not in found
    assert traced_key(times(TABLE.clone()), (4,)) == found[0]


def test_operations_of_others_have_no_key() -> None:
    with torch.library._scoped_library("elsewhere", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
        torch.library.register_fake("elsewhere::twice", torch.empty_like, lib=library)
        assert traced_key(lambda x: [torch.ops.elsewhere.twice(x)], (4,)) == ""


def test_there_is_no_key_if_other_code_takes_an_operation_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget() -> None:
        decompose._table.cache_clear()
        decompose._all_own.cache_clear()

    assert decompose.all_own()
    with monkeypatch.context() as patched:
        patched.setattr(decompose, "_REGISTERED", {torch.ops.aten.sinc.default: lambda x: x})
        forget()
        assert traced_key(lambda x: [x + 1], (4,)) == ""
    forget()
    assert decompose.all_own()
