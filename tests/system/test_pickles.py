"""Nothing in the package reads or writes pickled objects, which could run code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ebmvk

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "pickletools",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "copyreg",
}
CALLS = {
    *("torch.save", "torch.load", "torch.jit.load", "torch.jit.save", "torch.hub.load", "torch.package"),
    *("pandas.read_pickle", "np.fromregex"),
}
ARRAYS = ("load", "save", "savez", "savez_compressed")  # of numpy, with pickle unless told not to


def pickles(source: str) -> list[str]:
    """The places in a program that could read or write pickled objects."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (getattr(node, "module", None) or "").split(".")[0]
            names = {alias.name.split(".")[0] for alias in node.names}
            whole = {f"{module}.{alias.name}" for alias in node.names}
            found += sorted((({module} | names) & MODULES) | (whole & CALLS))
        elif isinstance(node, ast.Attribute) and (name := ast.unparse(node)) in CALLS:
            found.append(name)
        elif isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in {
            f"{module}.{call}" for module in ("np", "numpy") for call in ARRAYS
        }:
            allowed = {word.arg: ast.unparse(word.value) for word in node.keywords}.get("allow_pickle")
            found += [name] if allowed != "False" else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in (
            "__import__",
            "import_module",
        ):
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in MODULES]
    return found


def test_nothing_is_pickled() -> None:
    """Loading a checkpoint must never run code that somebody put there."""
    package = Path(ebmvk.__file__).parent
    sources = [*package.rglob("*.py"), *(package.parent / "bench").rglob("*.py")]
    assert len(sources) > 100
    assert {path.name: found for path in sources if (found := pickles(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill as d", "torch.load(f)", "torch.save(x, f)",
        "from torch import load", "np.load(f)", "np.load(f, allow_pickle=True)", "numpy.save(f, x)", "import shelve",
        "importlib.import_module('pickle')", "__import__('marshal')", "loader = torch.load",
    ],
)  # fmt: skip
def test_the_search_finds_every_way_of_pickling(source: str) -> None:
    assert pickles(source)
