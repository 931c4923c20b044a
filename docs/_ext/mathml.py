"""Write formulas as MathML, which browsers draw without a script and without a network.

docutils brings the converter, so the docs need no package for it. conf.py chooses it by
`html_math_renderer = "mathml"`.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
STATIC = Path(__file__).with_name("static")
# An accented letter with an index would get the index below it: something beside the letter
# prevents that.
ACCENTED = re.compile(r"\{(\\(?:hat|bar|tilde) ?\\?\w+)\}(?=[_^])")
# Few fonts leave a space between log and its argument, or draw U+02C9 as a bar.
SPACE = re.compile(r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>\()")


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer `mathml` and the style of its blocks."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    app.connect("builder-inited", lambda app: app.config.html_static_path.append(str(STATIC)))
    app.add_css_file("mathml.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    """The element <math>. A formula that can't be converted gives a warning and is shown as
    code.
    """
    formula = node.astext()
    try:
        found = str(latex2mathml.tex2mathml(ACCENTED.sub(r"{\1{}}", formula), as_block=as_block))
    except MathError as error:
        LOGGER.warning("formula %r: %s", formula, error, location=node)
        return f"<code>{escape(formula)}</code>"
    return SPACE.sub('<mspace width="0.17em"></mspace>', found).replace("ˉ", "¯")
