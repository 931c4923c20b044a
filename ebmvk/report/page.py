"""Pages from templates: one file each, without network, script or other files."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from ebmvk.report.tables import below, number, per_word, percent


def render(template: str, **values: Any) -> str:
    """The page of a template beside this module; values are escaped, and each that it names must be there.

    Figures are written by `tables.number` and those beside it, which templates have as filters.
    """
    environment = Environment(
        loader=PackageLoader("ebmvk.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "below": below, "per_word": per_word}
    return environment.get_template(template).render(**values)
