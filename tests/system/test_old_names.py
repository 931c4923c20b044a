"""Modules that have moved: their old names still work."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ebmvk.host.old_names import MOVED

ON_THE_COMMAND_LINE = ("train", "evaluate", "generate", "diagnose", "memory", "doctor", "prepare_corpus", "export")


@pytest.mark.parametrize("old", sorted(set(MOVED) - {"ebmvk.harness_model"}))
def test_an_old_name_is_the_same_module(old: str) -> None:
    """Both names give one object, which keeps the spec of its new name."""
    module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__spec__ is not None
    assert module.__spec__.name == MOVED[old]


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_a_command_runs_as_a_module_of_the_package(name: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", f"ebmvk.{name}", "--help"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"usage: ebmvk {name.replace('_', '-')}")
    assert said.stderr == ""


def test_a_name_that_never_was_is_an_ordinary_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"ebmvk\.nothing"):
        importlib.import_module("ebmvk.nothing")
