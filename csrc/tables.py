"""Loads a module of ebmvk/engine that reads a table, for the build.

By path, because importing the package needs torch.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ENGINE = Path(__file__).resolve().parents[1] / "ebmvk" / "engine"


def load(name: str) -> ModuleType:
    """The module ebmvk/engine/NAME.py. Raises SystemExit if its table isn't valid."""
    spec = importlib.util.spec_from_file_location(f"ebmvk_{name}", ENGINE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"can't load {ENGINE / name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return module
