"""Parses the flags of all commands. It imports nothing heavy, so that --help is fast."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypeVar

import tyro

from ebmvk.cli import help_page, running
from ebmvk.cli.commands import COMMANDS, TOGETHER
from ebmvk.config.flags import ALIASES, at_home, flags_in, spelled, spread
from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError
from ebmvk.runs import layout as runs

T = TypeVar("T")
HELP = ("-h", "--help", "--help-all")
Include = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")]
"""The type of `--include`, which may be given several times."""
# The help is help_page's, so tyro need not read source files for comments; its older versions do.
_MARKERS = (
    tyro.conf.OmitArgPrefixes,
    *(getattr(tyro.conf, name) for name in ("HelptextFromCommentsOff",) if hasattr(tyro.conf, name)),
)


def run(
    kind: type[T],
    body: Callable[[T], int],
    argv: Sequence[str] | None,
    *,
    command: str,
    known: Sequence[str],
    repeatable: Sequence[str] = (),
) -> int:
    """Parse the arguments, run `body` with the result, and return its exit status. It is the `main`
    of most commands.

    argv: the arguments; None for those of this process. The others: as for `parse`.
    """
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(lambda: body(parse(kind, args, command=command, known=known, repeatable=repeatable)))


def parse(
    kind: type[T],
    args: Sequence[str],
    *,
    command: str,
    known: Sequence[str],
    default: T | None = None,
    repeatable: Sequence[str] = (),
    titles: Mapping[str, str] = MappingProxyType({}),
) -> T:
    """Parse flat flags into the dataclass `kind`, or print its help.

    Args:
        known: all flags of the command; a misspelt flag is compared with them.
        default: values of flags that are not given.
        repeatable: flags that take any number of values, in one list or each after its own flag.
            Their fields have the type `UseAppendAction`.
        titles: titles of the groups of flags in the help; see `help_page.entries`.

    Raises:
        ConfigError: a flag is unknown, or its value is missing or bad.
        SystemExit: status 0, after --help.
    """
    args = at_home(args)
    check_flags(args, known, command, repeatable)
    if asked := set(HELP) & set(args):
        what = COMMANDS[command]
        notes = [f"{what[0].upper()}{what[1:]}.", *_other_names(known)]
        entries = list(help_page.entries(kind, default, dict(titles)))
        print(help_page.page(f"ebmvk {command}", entries, everything="--help-all" in asked, notes=notes))
        raise SystemExit(0)
    _check_text(args)
    if running.processes() > 1 and command not in TOGETHER:
        raise ConfigError(
            f"`ebmvk {command}` was started in {os.environ['WORLD_SIZE']} processes of torchrun",
            why=f"only {', '.join(TOGETHER)} divide their work among processes",
            hint="start it without torchrun",
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(
                kind,
                args=spelled(list(spread(args, repeatable))),
                prog=f"ebmvk {command}",
                default=tyro.MISSING_NONPROP if default is None else default,
                add_help=False,
                config=_MARKERS,
            )
    except SystemExit:
        raise ConfigError(_plain(_first_line(said.getvalue())), hint=f"see `ebmvk {command} --help`") from None
    return _with_newest(found)


def _check_text(args: Sequence[str]) -> None:
    """Raises ConfigError if an argument is not UTF-8: Python turns other bytes into halves of
    surrogate pairs.
    """
    for arg in args:
        if any("\ud800" <= character <= "\udfff" for character in arg):
            raise ConfigError(
                f"{os.fsencode(arg).decode('utf-8', 'backslashreplace')} is not UTF-8",
                why="a run writes the names of its files into other files, which are UTF-8",
                hint="rename the file or folder; an older encoding such as Latin-1 may have been used for its name",
            )


def _with_newest(command: T) -> T:
    """Replace `--checkpoint newest`, the default, with the newest run and print its name.

    Raises ConfigError.
    """
    given = getattr(command, "checkpoint", None)
    if given != Path(runs.NEWEST) or given.exists():
        return command
    run = runs.newest("--checkpoint", trained=True)
    print(f"--checkpoint {run}: the newest run", file=sys.stderr)
    return dataclasses.replace(command, checkpoint=run)  # type: ignore[type-var]


def _other_names(known: Sequence[str]) -> list[str]:
    names = [f"{short} is {long}" for short, long in ALIASES.items() if long in known]
    return [f"Other names: {', '.join(names)}."] if names else []


def _first_line(boxed: str) -> str:
    """The message in tyro's framed error text, as one line: the part above the first horizontal
    rule.
    """
    lines = [line.strip("│ ") for line in boxed.splitlines() if line.startswith("│")]
    message = lines[: next((i for i, line in enumerate(lines) if line.startswith("─")), len(lines))]
    return " ".join(" ".join(message).split()) or boxed.strip()


_PLAIN = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 \2 is not a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 \2 is not a number"),
    (r"Missing value for argument '(\S+)'\..*", r"\1 has no value"),
    (r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\) ?\.", r"\2 \1 is not one of \3"),
    (r"Unrecognized options: (.*)", r"\1 has no flag in front of it"),
)
"""Messages of tyro as patterns, and what people read instead."""


def _plain(message: str) -> str:
    for pattern, words in _PLAIN:
        if found := re.fullmatch(pattern, message):
            head, is_not_one_of, choices = found.expand(words).partition(" is not one of ")
            # tyro lists the choices in the order of a set, with None if the flag may be left out.
            return head + is_not_one_of + ", ".join(sorted(set(choices.split(", ")) - {"'None'"}))
    return message


def check_flags(args: Sequence[str], known: Sequence[str], command: str, repeatable: Sequence[str] = ()) -> None:
    """Raises ConfigError for the first flag that is unknown (naming the nearest known one) or
    repeated.
    """
    seen: set[str] = set()
    before = ""
    for arg in args:
        flags = flags_in([arg])
        for name in flags:
            if name not in known and name not in HELP:
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
            before = ""  # the flag has its value


def _instead(arg: str, before: str, known: Sequence[str]) -> str | None:
    """A hint for an argument that looks like a flag but isn't one.

    before: the flag in front of it, whose value it may be.
    """
    # Compared without hyphens: those would make any two short names similar.
    names = {flag.lstrip("-"): flag for flag in known}
    close = nearest(arg.partition("=")[0].lstrip("-"), names, cutoff=0.65)
    flag = next(iter(flags_in([before])), "")
    switch = not {f"--no-{flag[2:]}", flag.replace("--no-", "--", 1)}.isdisjoint(set(known) - {flag})
    if flag in known and "=" not in before and not switch and not (close and arg.startswith("--")):
        return f"if it is a value, write {flag}={shlex.quote(arg)}: a word that starts with a hyphen looks like a flag"
    return f"did you mean {names[close]}?" if close else None
