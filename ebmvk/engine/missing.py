"""Explains why an extension module can't be imported, and what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import sysconfig
from pathlib import Path

from ebmvk.errors import DeviceError

PACKAGE = Path(__file__).resolve().parents[1]
WHAT = {
    "_cpu": "the CPU kernels (ebmvk._cpu) cannot be loaded",
    "_vulkan": "the Vulkan engine (ebmvk._vulkan) cannot be loaded",
}
BUILD = "run `./run setup` or `pip install .` in the project folder; it needs a C++17 compiler"


def extension_error(name: str, error: ImportError) -> DeviceError:
    """The error to raise for `ebmvk.<name>`, whose import failed with `error`."""
    why, hint = _cause(name, error, PACKAGE)
    return DeviceError(WHAT[name], why=why, hint=hint)


def _cause(name: str, error: ImportError, package: Path) -> tuple[str, str]:
    """(why, hint)"""
    own = name + str(sysconfig.get_config_var("EXT_SUFFIX"))
    if error.path and Path(error.path).name == own:  # the file exists, so a library that it needs is missing
        return f"{error.path}: {error}", "build it on this machine: " + BUILD
    left_out = _left_out() if name == "_vulkan" else ""
    if left_out:
        return (
            f"it was left out: {left_out}",
            "fix that, then run `./run setup` or `pip install .` in the project folder",
        )
    others = sorted(path.name for path in package.glob(f"{name}.*") if path.suffix in (".so", ".pyd"))
    if others:
        return f"{package} has it for another Python ({', '.join(others)}), and this one needs {own}", BUILD
    installed = _installed()
    if installed and installed != package and any(installed.glob(f"{name}.*")):
        return (
            f"the source folder {package} is found before the installed package {installed}, and has no extensions",
            f"start in a folder other than {package.parent}, or run `./run setup` there, which installs that folder",
        )
    if (package.parent / "CMakeLists.txt").is_file():
        return f"ebmvk is taken from its source folder {package}, where nothing is built", BUILD
    return str(error), BUILD


def _left_out() -> str:
    """Why the build left out the Vulkan engine; empty if it did not, or if it isn't known."""
    try:
        return str(importlib.import_module("ebmvk._built").VULKAN_LEFT_OUT)
    except ImportError:
        return ""


def _installed() -> Path | None:
    """The folder of the installed package, which may differ from the imported one."""
    try:
        return Path(str(importlib.metadata.distribution("ebmvk").locate_file("ebmvk"))).resolve()
    except importlib.metadata.PackageNotFoundError:
        return None
