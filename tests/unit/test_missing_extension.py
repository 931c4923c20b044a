"""The message if an extension module can't be imported names the cause and what to do."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from ebmvk.engine import missing
from ebmvk.errors import DeviceError

OWN = f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
ABSENT = ImportError("cannot import name '_cpu' from 'ebmvk'")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ebmvk package in a source folder, without extensions; nothing is installed."""
    folder = tmp_path / "source" / "ebmvk"
    folder.mkdir(parents=True)
    (folder.parent / "CMakeLists.txt").touch()
    monkeypatch.setattr(missing, "PACKAGE", folder)
    monkeypatch.setattr(missing, "_installed", lambda: None)
    return folder


def _said(name: str = "_cpu", error: ImportError = ABSENT) -> DeviceError:
    return missing.extension_error(name, error)


def test_the_error_names_a_source_folder_that_isnt_built(package: Path) -> None:
    found = _said()
    assert found.why == f"ebmvk is taken from its source folder {package}, where nothing is built"
    assert "./run setup" in found.hint


def test_the_error_names_a_source_folder_that_hides_the_installed_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages" / "ebmvk"
    installed.mkdir(parents=True)
    (installed / OWN).touch()
    monkeypatch.setattr(missing, "_installed", lambda: installed)
    found = _said()
    assert found.why.startswith(f"the source folder {package} is found before the installed package {installed}")
    assert f"start in a folder other than {package.parent}" in found.hint
    assert "pip install" not in found.hint  # pip install was the cause


def test_the_error_names_an_extension_for_another_python(package: Path) -> None:
    (package / "_cpu.cpython-35m-x86_64-linux-gnu.so").touch()
    found = _said()
    assert "_cpu.cpython-35m-x86_64-linux-gnu.so" in found.why
    assert OWN in found.why


def test_the_error_names_a_missing_library(package: Path) -> None:
    error = ImportError("libhwy.so.1: cannot open shared object file", path=str(package / OWN))
    found = _said(error=error)
    assert "libhwy.so.1: cannot open shared object file" in found.why
    assert found.hint.startswith("build it on this machine")


def test_the_error_names_the_file_of_an_extension_that_doesnt_load(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that Python itself makes names the file."""
    (package / OWN).write_bytes(b"no library")
    monkeypatch.setattr(sys, "path", [str(package), *sys.path])
    with pytest.raises(ImportError) as caught:
        importlib.import_module("_cpu")
    assert "it is there" not in _said(error=caught.value).why
    assert str(package / OWN) in _said(error=caught.value).why


def test_the_error_says_why_the_build_left_out_vulkan(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "it failed to build: device.cpp:29: error (log: build/vulkan.log)"
    monkeypatch.setitem(sys.modules, "ebmvk._built", SimpleNamespace(VULKAN_LEFT_OUT=why))  # type: ignore[misc]
    assert _said("_vulkan").why == f"it was left out: {why}"
    assert "./run setup" in _said("_vulkan").hint
