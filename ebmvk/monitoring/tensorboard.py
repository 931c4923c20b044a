"""Writes the numbers of metrics.jsonl for TensorBoard (an extra), each under its path in a row."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ebmvk.errors import ConfigError
from ebmvk.runs.atomic import storage_error

FOLDER = "tensorboard"  # in the run folder
APART = ("event", "step", "time", "counts", "looks")  # keys that have no curve


def check_installed() -> None:
    """Raises ConfigError if TensorBoard isn't installed."""
    _writer_class()


def _writer_class() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard: {error}",
            why="TensorBoard isn't installed with ebmvk",
            hint="./run setup --extra tensorboard, or pip install 'tensorboard>=2.16', or remove --tensorboard: "
            "metrics.jsonl has the same numbers",
        ) from error


class Board:
    """Writes rows of metrics.jsonl to a run's folder `tensorboard`.

    done: the step from which the run continues; TensorBoard hides what was written about later
    steps.

    Raises:
        ConfigError: TensorBoard isn't installed. StorageError: from any method, if the disk is
            full.
    """

    def __init__(self, run: Path, done: int = 0) -> None:
        self._folder = run / FOLDER
        make = _writer_class()
        self._writer = self._do(lambda: make(log_dir=str(self._folder), purge_step=done + 1))

    def add(self, row: Mapping[str, Any]) -> None:
        """Write all numbers of a row with its step and time, or the text of an alert."""
        event, step, time = row["event"], row["step"], datetime.fromisoformat(row["time"]).timestamp()
        if event == "alert":
            text = "{sign}: {reason}; {advice}".format(**row)
            self._do(lambda: self._writer.add_text("alert", text, step, walltime=time))
        for name, value in scalars({key: value for key, value in row.items() if key not in APART}, event):
            self._do(lambda name=name, value=value: self._writer.add_scalar(name, value, step, walltime=time))

    def close(self) -> None:
        """Write everything that is still buffered."""
        self._do(self._writer.close)

    def _do(self, what: Any) -> Any:
        try:
            return what()
        except OSError as error:
            raise storage_error(self._folder, error, "writing for TensorBoard") from error


def scalars(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """(path, number) of every number in a tree; members of a list are named by their position."""
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, Mapping | list):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from scalars(part, f"{path}/{key}")
