"""The `ebmvk` program."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ebmvk import __version__
from ebmvk.cli.commands import COMMANDS
from ebmvk.cli.running import run
from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """The `ebmvk` program: dispatches to a command and returns its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0].replace("_", "-") in COMMANDS:
        command = importlib.import_module(f"ebmvk.cli.{args[0].replace('-', '_')}")
        status: int = command.main(args[1:])
        return status
    return run(lambda: _top_level(args))


def _top_level(args: list[str]) -> int:
    if args[:1] == ["--version"]:
        print(f"ebmvk {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help"):
        print("usage: ebmvk COMMAND [--help] [OPTIONS]\n\ncommands:")
        print("\n".join(f"  {name:<18}{what}" for name, what in COMMANDS.items()))
        print("\nEach is also `python -m ebmvk.COMMAND`. `ebmvk --version` says the version.")
        return 0
    close = nearest(args[0], COMMANDS)
    raise ConfigError(
        f"ebmvk {args[0]}: no such command",
        hint=f"did you mean 'ebmvk {close}'?" if close else f"take one of {', '.join(COMMANDS)}",
    )
