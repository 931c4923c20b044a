"""`ebmvk export`, `python -m ebmvk.export`: a checkpoint as a folder laid out as model hubs have them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ebmvk import cli
from ebmvk.runs import NEWEST


@dataclass(frozen=True)
class ExportCommand:
    to: Path  # The folder to write, empty or not there yet.
    checkpoint: Path = Path(NEWEST)  # A run (its latest complete checkpoint), RUN/best, or one checkpoint.


FLAGS = cli.known_flags({f.name: f.default for f in dataclasses.fields(ExportCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda: _export(cli.parse(ExportCommand, args, command="export", known=FLAGS)))


def _export(command: ExportCommand) -> int:
    from ebmvk.training.export import write
    from ebmvk.training.workspace import open_run

    run = open_run(command.checkpoint, "--checkpoint", lambda text: print(text, file=sys.stderr))
    for file in write(run, command.to):
        print(f"{file}  {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
