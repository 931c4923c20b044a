"""operations.toml and what is made from it: protocols, signatures, stubs, bindings."""

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
from vulkan_open import open_vulkan

from ebmvk.engine import native
from ebmvk.engine.api import Backend
from ebmvk.engine.operations import OPERATIONS, TABLES, Argument, Operation, Result

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """csrc/operations.py, which makes the files."""
    return script("operations", monkeypatch)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not (ROOT / "csrc" / f"{name}.py").exists():
        pytest.skip("no source tree")
    monkeypatch.syspath_prepend(str(ROOT / "csrc"))
    for module in ("bindings", "integrators", "operations", "tables"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(name)


def test_the_files_made_from_the_table_are_up_to_date(made: ModuleType) -> None:
    """If this fails: python csrc/operations.py"""
    table = made.operations().values()
    for path, make in made.MADE.items():
        text = path.read_text(encoding="utf-8")
        assert made.filled(text, make(table)) == text, f"{path} isn't made from operations.toml"


NEW = Operation(
    name="nearest",
    does="Made up.",
    returns="TopK",
    arguments=(
        Argument("x", "tensor", ("B", "d"), "unit"),
        Argument("points", "points"),
        Argument("tokens", "index", ("B", "K"), below="N"),
        Argument("weight", "tensor", ("N",), "finite", default="None"),
    ),
    results=(Result("scores", ("B",)), Result("ids", ("B",), below="N")),
)


def test_a_new_table_appears_in_every_file(made: ModuleType) -> None:
    kept = replace(NEW, device=True, cpu="none")
    for path, make in made.MADE.items():
        text = path.read_text(encoding="utf-8")
        assert "def nearest(" in made.filled(text, make([NEW, kept])), path
        assert "def nearest(" not in text


def test_a_new_table_gets_functions_for_both_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = script("bindings", monkeypatch)
    monkeypatch.setattr(bindings, "operations", lambda: {"nearest": NEW})
    files = {name: "\n".join(lines) for name, lines in bindings.files().items()}
    assert "void Nearest(const NearestArguments& in, const NearestResults& out);" in files["cpu_operations.h"]
    assert "void nearest(const Points& points, const NearestArguments& in" in files["vulkan_methods.h"]
    for target in ("cpu", "vulkan"):
        assert re.search(r"\{&rows, &k\}", files[f"{target}_bindings.h"])
        assert 'require_below(in.tokens, rows * k, "tokens", n);' in files[f"{target}_bindings.h"]
        assert "optional_argument<float>(" in files[f"{target}_bindings.h"]


def test_a_table_without_results_is_refused(tmp_path: Path) -> None:
    from ebmvk.engine.operations import read

    path = tmp_path / "operations.toml"
    path.write_text('[nearest]\ndoes = "Made up."\nreturns = "Tensor"\narguments = {}\n')
    with pytest.raises(ValueError, match="nearest lists no results"):
        read(path)


@pytest.mark.parametrize("module", ["reference", "cpu", "vulkan"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_backends_have_the_signatures_of_the_table(module: str, name: str) -> None:
    backend = getattr(importlib.import_module(f"ebmvk.engine.{module}"), module.capitalize())
    own, wanted = (inspect.signature(getattr(kind, name)) for kind in (backend, Backend))
    assert own == wanted
    assert [*wanted.parameters] == ["self", *(argument.name for argument in OPERATIONS[name].arguments)]


@pytest.mark.parametrize("name", [name for name, operation in TABLES.items() if operation.results])
def test_results_are_the_fields_of_what_is_returned(name: str) -> None:
    """In the same order, because they are passed by position."""
    results = {result.name: result.name for result in TABLES[name].results}
    returned = native.returned(name, results.values())
    assert returned == (*results,)[0] if TABLES[name].returns == "Tensor" else flat(returned) == results


def flat(result: Any) -> dict[str, Any]:
    """The fields of a dataclass and of those that it holds."""
    own = dict(vars(result))
    inner = [own.pop(name) for name, value in vars(result).items() if not isinstance(value, str)]
    return own | {name: value for part in inner for name, value in flat(part).items()}


@pytest.mark.parametrize("name", [name for name, operation in TABLES.items() if operation.cpu == "all"])
def test_the_cpu_extension_takes_the_arguments_of_the_table(cpu_kernels: Any, made: ModuleType, name: str) -> None:
    assert_same_arguments(getattr(cpu_kernels, name), *made.cpu([TABLES[name]]))


@pytest.mark.parametrize("name", [name for name, operation in TABLES.items() if operation.vulkan == "all"])
def test_the_vulkan_extension_takes_the_arguments_of_the_table(made: ModuleType, name: str) -> None:
    assert_same_arguments(getattr(open_vulkan()._extension.Engine, name), *made.vulkan([TABLES[name]]))


def assert_same_arguments(function: Any, stub: str, *_: str) -> None:
    said, wanted = (re.findall(r"(\w+): ", text.partition(" ->")[0]) for text in (function.__doc__, stub))
    assert [name for name in said if name != "self"] == wanted
