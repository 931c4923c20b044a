"""One parser for the flags of all commands. Nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from ebmvk.cli.commands import COMMANDS, TOGETHER
from ebmvk.cli.running import processes
from ebmvk.config.flags import ALIASES, _spelled, _spread, at_home, flags_in
from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError
from ebmvk.runs import layout as runs

T = TypeVar("T")
Include = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")]
"""The type of `--include`, which may be repeated."""


def parse(
    kind: type[T],
    args: Sequence[str],
    *,
    command: str,
    known: Sequence[str],
    default: T | None = None,
    repeatable: Sequence[str] = (),
) -> T:
    """Parse flat flags into the dataclass `kind` with tyro.

    Args:
        known: every flag of the command, to suggest the nearest one to a misspelt flag.
        default: values of the flags that are not given; they are what --help shows.
        repeatable: flags of any number of values, `UseAppendAction` fields: each value behind a flag of its own, or
            several behind one.

    Raises:
        ConfigError: for an unknown flag, a missing or a bad value.
        SystemExit: status 0, after --help.
    """
    args = at_home(args)
    check_flags(args, known, command, repeatable)
    if bad := next((arg for arg in args if not _is_text(arg)), None):
        raise ConfigError(
            f"{os.fsencode(bad).decode('utf-8', 'backslashreplace')} is not UTF-8",
            why="a run writes the names it was given into its files, and these are UTF-8",
            hint="rename the file or folder; its name may be of an older encoding such as Latin-1",
        )
    if processes() > 1 and command not in TOGETHER:
        raise ConfigError(
            f"`ebmvk {command}` in {os.environ['WORLD_SIZE']} processes of torchrun",
            why=f"only {', '.join(TOGETHER)} share their work; each would do and write all of this",
            hint="start it without torchrun",
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(
                kind,
                args=_spelled(list(_spread(args, repeatable))),
                prog=f"ebmvk {command}",
                description=f"{COMMANDS[command].capitalize()}.{_other_names(known)}",
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_first_line(said.getvalue()), hint=f"see `ebmvk {command} --help`") from None
    return _with_newest(found)


def _with_newest(command: T) -> T:
    """Replace `--checkpoint newest`, the default, by the newest run, and print its name. Raises ConfigError."""
    given = getattr(command, "checkpoint", None)
    if given != Path(runs.NEWEST) or given.exists():
        return command
    run = runs.newest("--checkpoint", trained=True)
    print(f"--checkpoint {run}: the newest run", file=sys.stderr)
    return dataclasses.replace(command, checkpoint=run)  # type: ignore[type-var]


def _is_text(arg: str) -> bool:
    """True if it came from UTF-8: Python turns other bytes into halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in arg)


def _other_names(known: Sequence[str]) -> str:
    names = [f"{short} is {long}" for short, long in ALIASES.items() if long in known]
    return f" Other names: {', '.join(names)}." if names else ""


def _first_line(boxed: str) -> str:
    """The message of tyro's framed error text, up to its rule, in one line."""
    lines = [line.strip("│ ") for line in boxed.splitlines() if line.startswith("│")]
    message = lines[: next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))]
    return " ".join(" ".join(message).split()) or boxed.strip()


def check_flags(args: Sequence[str], known: Sequence[str], command: str, repeatable: Sequence[str] = ()) -> None:
    """Reject the first unknown or repeated flag, with the nearest known one."""
    seen: set[str] = set()
    before = ""
    for arg in args:
        flags = flags_in([arg])
        for name in flags:
            if name not in known and name not in ("-h", "--help"):
                raise ConfigError(
                    f"unknown flag {name}",
                    why=f"`ebmvk {command}` has no such flag",
                    hint=_instead(arg, before, known) or f"see `ebmvk {command} --help`",
                )
            key = name.replace("--no-", "--", 1) if name.replace("--no-", "--", 1) in known else name
            if key in seen and key not in repeatable:
                raise ConfigError(f"{name} is given twice", hint="give it once")
            seen.add(key)
        if flags:
            before = arg
        elif set(flags_in([before])).isdisjoint(repeatable):
            before = ""  # it has its value


def _instead(arg: str, before: str, known: Sequence[str]) -> str | None:
    """What may be meant by an argument that looks like a flag, and is none. before: the flag whose value may come
    there."""
    # Without the hyphens, which all have in common: they would make any two short names alike.
    names = {flag.lstrip("-"): flag for flag in known}
    close = nearest(arg.partition("=")[0].lstrip("-"), names, cutoff=0.65)
    flag = next(iter(flags_in([before])), "")
    switch = not {f"--no-{flag[2:]}", flag.replace("--no-", "--", 1)}.isdisjoint(set(known) - {flag})
    if flag in known and "=" not in before and not switch and not (close and arg.startswith("--")):
        return f"write {flag}={shlex.quote(arg)} if it is a value: what begins with a hyphen looks like a flag"
    return f"did you mean {names[close]}?" if close else None
