"""The report of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebmvk.report.page import Page, render
from ebmvk.report.run import curves, likelihood, model, record, summary
from ebmvk.report.run.source import Run
from ebmvk.report.section import Absent, Part, Section

SECTIONS: tuple[Section[Run, Any], ...] = (
    *summary.SECTIONS,
    *likelihood.SECTIONS,
    *curves.SECTIONS,
    *model.SECTIONS,
    *record.SECTIONS,
)
"""In the order of the page."""


def write_report(run: Path, target: Path) -> Path:
    """Write the report of a run folder (metrics.jsonl, config.toml, samples.txt) to `target`.

    Raises:
        OSError: a file can't be read or written.
    """
    target.write_text(page(Run.read(run)), encoding="utf-8")
    return target


def page(run: Run) -> str:
    """The HTML of the report."""
    version = run.history.facts.get("ebmvk", "")
    return render(Page(run.folder.name, "run", summary.lead(run), list(parts(run)), version))


def parts(run: Run) -> Iterator[Part]:
    """The sections that have something to show."""
    for section in SECTIONS:
        found = section.measure(run)
        if found is not None and not isinstance(found, Absent):
            yield Part(section.title, section.show(found))
