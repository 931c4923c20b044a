"""For the scripts that make files from tables: reads a table, writes a file."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ENGINE = Path(__file__).resolve().parents[1] / "ebmvk" / "engine"


@cache
def load(name: str) -> ModuleType:
    """The module ebmvk/engine/NAME.py, by its path, because importing the package needs torch.

    Raises SystemExit if its table isn't valid.
    """
    spec = importlib.util.spec_from_file_location(f"ebmvk_{name}", ENGINE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"can't load {ENGINE / name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return module


def write(path: Path, text: str) -> None:
    """Write a file if its text changes, so that nothing is built again without need."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
