"""A run folder as the sections of its report read it."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmvk.runs.layout import SAMPLES_FILE
from ebmvk.runs.metrics import METRICS_FILE, History, Row, read_metrics

Config = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """samples: the text of samples.txt; config: the tables of config.toml."""

    folder: Path
    history: History
    samples: str
    config: Config

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises OSError if a file can't be read."""
        history, samples = read_metrics(folder / METRICS_FILE), folder / SAMPLES_FILE
        text = samples.read_text(encoding="utf-8", errors="replace") if samples.is_file() else ""
        return cls(folder, history, text, tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")))

    @property
    def path(self) -> str:
        """The folder for a shell; relative to the working directory if it lies there."""
        here = Path.cwd()
        return shlex.quote(str(self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder))

    @property
    def last_validation(self) -> Row | None:
        """The newest figures of validation. They cover the whole split if the run has ended."""
        if self.history.end:
            found: Row = self.history.end["validation"]
            return found
        return self.history.evals[-1]["validation"] if self.history.evals else None
