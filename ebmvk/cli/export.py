"""`ebmvk export`: writes a checkpoint as a folder in the layout that model hubs use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ebmvk.cli import calling, parsing
from ebmvk.cli.signatures import takes
from ebmvk.config import flags
from ebmvk.runs.layout import NEWEST


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Flags of `ebmvk export`; the comments are their help texts."""

    to: Path  # The folder to write; it must be new or empty.
    checkpoint: Path = Path(NEWEST)  # A run (its newest usable checkpoint), RUN/best, or one checkpoint.


FLAGS = flags.flags_of(ExportCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(ExportCommand, _export, argv, command="export", known=FLAGS)


@takes(ExportCommand)
def export(checkpoint: str | Path, to: str | Path) -> list[Path]:
    """Export a checkpoint to a folder in the layout that model hubs use, as `ebmvk export` does.

    Returns the files of the folder.

    >>> files = ebmvk.export("runs/first", "exported")
    >>> [file.name for file in files]
    ['README.md', 'config.json', 'model.safetensors', 'tokenizer.json']

    Raises:
        ConfigError: the folder isn't empty. CheckpointError: the checkpoint doesn't exist.
            StorageError: the disk is full; the folder is removed again.
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
