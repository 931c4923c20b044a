"""How Sphinx builds these pages: `./run docs`, or `python -m sphinx -W -n docs build/docs`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
OWN = HERE / "_ext"  # extensions of these pages alone
sys.path[:0] = [str(HERE.parent), str(OWN)]

project = "ebmvk"
version = release = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

own = sorted(module.stem for module in OWN.glob("*.py") if "def setup(" in module.read_text(encoding="utf-8"))
extensions = ["myst_parser", *own]
if "mathml" in own:
    html_math_renderer = "mathml"
exclude_patterns = ["_ext"]
nitpicky = True
python_maximum_signature_line_length = 90  # a longer signature has a line for each argument

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"ebmvk {release}"
html_static_path = ["_static"]
html_css_files = ["ebmvk.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {"footer_icons": []}  # furo's own would be a link to a host
