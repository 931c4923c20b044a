"""`ebmvk export`, `python -m ebmvk.export`: a checkpoint as a folder laid out as model hubs have them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ebmvk.cli import calling, parsing, running
from ebmvk.config import flags
from ebmvk.runs.layout import NEWEST


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    to: Path  # The folder to write, empty or not there yet.
    checkpoint: Path = Path(NEWEST)  # A run (its latest complete checkpoint), RUN/best, or one checkpoint.


FLAGS = flags.known_flags({f.name: f.default for f in dataclasses.fields(ExportCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(lambda: _export(parsing.parse(ExportCommand, args, command="export", known=FLAGS)))


def export(checkpoint: str | Path, to: str | Path) -> list[Path]:
    """Export a checkpoint to a folder in the layout of model hubs, as `ebmvk export` does; returns its files.

    Raises:
        ConfigError: the folder isn't empty. CheckpointError: the checkpoint doesn't exist. StorageError: the disk is
            full; the folder is removed again.
    """
    args = calling.arguments("export", {"checkpoint": checkpoint, "to": to}, FLAGS)
    return _written(parsing.parse(ExportCommand, args, command="export", known=FLAGS))


calling.callable_module(__name__, export)


def _written(command: ExportCommand) -> list[Path]:
    from ebmvk.report.model_card import model_card
    from ebmvk.runs.export import write
    from ebmvk.runs.folder import open_run

    run = open_run(command.checkpoint, "--checkpoint", lambda text: print(text, file=sys.stderr))
    return write(run, command.to, model_card(run))


def _export(command: ExportCommand) -> int:
    for file in _written(command):
        print(f"{file}  {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
