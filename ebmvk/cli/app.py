"""The `ebmvk` program: finds the command and runs it."""

from __future__ import annotations

import importlib
import shutil
import sys
import textwrap
from collections.abc import Sequence

from ebmvk import __version__
from ebmvk.cli.commands import COMMANDS, GROUPS
from ebmvk.cli.help_page import WIDEST
from ebmvk.cli.running import run
from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns its exit status."""
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
    if args[:1] == ["--print-completion"]:
        from ebmvk.cli.completion import script

        print(script(next(iter(args[1:]), "")))
        return 0
    if not args or args[0] in ("help", "-h", "--help", "--help-all"):
        print("\n".join(_help()))
        return 0
    close = nearest(args[0], COMMANDS)
    raise ConfigError(
        f"ebmvk {args[0]}: unknown command",
        hint=f"did you mean 'ebmvk {close}'?" if close else "`ebmvk --help` lists the commands",
    )


def _help() -> list[str]:
    width = max(40, min(WIDEST, shutil.get_terminal_size().columns))
    lines = ["usage: ebmvk COMMAND [--help] [OPTIONS]"]
    for title, commands in GROUPS.items():
        lines += ["", title]
        for name, what in commands.items():
            lines += textwrap.wrap(f"  {name:<18}{what}", width, subsequent_indent=" " * 20, break_on_hyphens=False)
    notes = (
        "`python -m ebmvk COMMAND` does the same. `ebmvk --version` prints the version. "
        "`ebmvk --print-completion bash` (or zsh, fish) prints a script that completes commands and flags."
    )
    return [*lines, "", *textwrap.wrap(notes, width, break_on_hyphens=False)]
