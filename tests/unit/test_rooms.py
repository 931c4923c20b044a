"""The table of rooms in the package's docstring, which the docs show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ebmvk

PACKAGE = Path(ebmvk.__file__).parent


def test_the_package_lists_every_room_once() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", ebmvk.__doc__ or "", flags=re.MULTILINE)
    assert sorted(listed) == sorted(["errors", *(path.parent.name for path in PACKAGE.glob("*/__init__.py"))])


def test_every_room_says_what_it_is_for() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
