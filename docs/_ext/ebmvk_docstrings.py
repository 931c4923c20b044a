"""Let autodoc read the docstrings of the code: callable modules, and errors that share a line."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.util.docstrings import prepare_docstring

NEXT_ERROR = re.compile(r"(?<=\.) (?=[A-Z][A-Za-z]+: )")
BEFORE_NAPOLEON = 100


def setup(app: Any) -> dict[str, Any]:
    """Change docstrings before napoleon reads their sections; one pair of backticks is code."""
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.napoleon"):
        app.setup_extension(extension)
    app.connect("autodoc-process-docstring", _changed, priority=BEFORE_NAPOLEON)
    app.connect("config-inited", _configure)
    return {"parallel_read_safe": True}


def _configure(_app: Any, config: Any) -> None:
    config.default_role = "code"
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:.*", ".*")]  # types of other libraries


def _changed(_app: Any, _what: str, _name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    if inspect.ismodule(thing) and callable(thing):  # `ebmvk.train` is a module, and a function
        lines[:] = prepare_docstring(inspect.getdoc(thing.__call__) or "")
    if "Raises:" in lines:
        at = lines.index("Raises:") + 1
        end = next((i for i in range(at, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
        text = " ".join(" ".join(lines[at:end]).split())
        lines[at:end] = [f"    {one}" for one in NEXT_ERROR.split(text)] + [""]
