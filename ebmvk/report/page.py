"""Pages from templates: one file each, without network, script or other files."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from ebmvk.report.tables import below, number, per_word, percent


def render(template: str, **values: Any) -> str:
    """The page from a template beside this module; values are escaped, and every value that it names must be given.

    Templates write figures with `tables.number` and similar functions, which they have as filters.
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
