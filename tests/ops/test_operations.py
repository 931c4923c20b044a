"""operations.toml and what is made from it: the protocol, the backends' signatures, the stubs."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ebmvk.engine.api import Backend
from ebmvk.engine.operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """csrc/operations.py, which makes the files."""
    if not (ROOT / "csrc/operations.py").exists():
        pytest.skip("no source tree")
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    for name in ("operations", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("operations")


def test_the_files_made_from_the_table_are_up_to_date(made: ModuleType) -> None:
    """If this fails: python csrc/operations.py"""
    table = made.operations()
    for path, make in made.MADE.items():
        text = path.read_text(encoding="utf-8")
        assert make(table, text) == text, f"{path} isn't made from operations.toml"


def test_a_change_of_the_table_changes_every_file(made: ModuleType) -> None:
    table = made.operations()
    k = table.index(next(operation for operation in table if operation.name == "topk"))
    renamed = [replace(argument, name=argument.name.replace("k", "count")) for argument in table[k].arguments]
    table[k] = replace(table[k], arguments=tuple(renamed))
    for path, make in made.MADE.items():
        text = path.read_text(encoding="utf-8")
        assert re.search(r"\bk: int", text)
        assert "count: int" in make(table, text)


@pytest.mark.parametrize("module", ["reference", "cpu", "vulkan"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_backends_have_the_signatures_of_the_table(module: str, name: str) -> None:
    backend = getattr(importlib.import_module(f"ebmvk.engine.{module}"), module.capitalize())
    own, wanted = (inspect.signature(getattr(kind, name)) for kind in (backend, Backend))
    assert own == wanted
    assert [*wanted.parameters] == ["self", *(argument.name for argument in OPERATIONS[name].arguments)]


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.native])
def test_the_extension_takes_the_arguments_of_the_table(cpu_kernels: Any, made: ModuleType, name: str) -> None:
    (operation,) = [operation for operation in made.operations() if operation.name == name]
    wanted = re.findall(r"(\w+): ", made.stub(operation).partition(" ->")[0])
    said = getattr(cpu_kernels, name).__doc__.partition(" ->")[0]
    assert re.findall(r"(\w+): ", said) == wanted
