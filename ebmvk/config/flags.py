"""Functions on flags as a list of words, used before the full parse."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ebmvk.config.schema import flag

ALIASES = {
    "--lr": "--learning-rate",
    "--n-embd": "--latent-dim",
    "--n-layer": "--n-layers",
    "--n-head": "--n-heads",
    "--block-size": "--seq-length",
    "--corpus": "--dataset",
    "--outdir": "--run-dir",
    "--ckpt": "--checkpoint",
}
"""Other names of flags, from the systems that this project implements."""


PATHS = (
    *("--checkpoint", "--run-dir", "--resume", "--config", "--dataset", "--data-dir", "--tokenizer", "--init"),
    *("--folder", "--against", "--judge", "--test-file", "--prompt-file", "--file", "--files", "--input"),
    *("--output", "--out", "--to", "--json", "--plots", "--npy", "--report"),
)
"""Flags whose value is or may be a path. A `~` at its start means the home folder, as in shells."""


def at_home(args: Sequence[str]) -> list[str]:
    """The arguments with `~` expanded in the values of `PATHS`.

    Shells don't expand `~` in quotes or in `--run-dir=~/x`.
    """
    found, name = [], ""
    for arg in args:
        if flags := flags_in([arg]):
            name, (own, equals, value) = flags[0], arg.partition("=")
            found.append(own + equals + expanded(value) if name in PATHS else arg)
        else:
            found.append(expanded(arg) if name in PATHS else arg)
    return found


def expanded(path: str) -> str:
    """A path with a leading `~` replaced by the home folder."""
    with contextlib.suppress(RuntimeError):  # no such user: an ordinary name
        return str(Path(path).expanduser()) if path.startswith("~") else path
    return path


def spelled(args: Sequence[str]) -> list[str]:
    """The arguments with the main name of each flag in place of its aliases."""
    pairs = [arg.partition("=") for arg in args]
    return [ALIASES.get(name.replace("_", "-"), name) + equals + value for name, equals, value in pairs]


def spread(args: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """The arguments with `--prompt a b` as `--prompt=a --prompt=b`, for the flags `names`."""
    groups: list[list[str]] = []
    for arg in args:
        if flags_in([arg]) or not groups:
            groups.append([arg])
        else:
            groups[-1].append(arg)
    for head, *values in groups:
        if values and "=" not in head and set(flags_in([head])) & set(names):
            yield from (f"{head}={value}" for value in values)
        else:
            yield from (head, *values)


def settings_of(command: Any, kind: Any, given: Sequence[str]) -> dict[str, Any]:
    """{field: value} for each field of the dataclass `kind` whose flag was given."""
    return {entry.name: getattr(command, entry.name) for entry in dataclasses.fields(kind) if flag(entry.name) in given}


def flags_in(args: Sequence[str]) -> list[str]:
    """The flags among the arguments, in their long spelling with hyphens, without '=value'."""
    names = [arg.split("=", 1)[0] for arg in args if arg.startswith("-") and not _is_number(arg)]
    names = ["--" + name[2:].replace("_", "-") if name.startswith("--") else name for name in names]
    return [ALIASES.get(name, name) for name in names]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def value_of(args: Sequence[str], name: str) -> str | None:
    """The value given for a flag; None if it was not given."""
    for i, arg in enumerate(args):
        if flags_in([arg]) == [name]:
            return arg.split("=", 1)[1] if "=" in arg else next(iter(args[i + 1 :]), None)
    return None


def values_of(args: Sequence[str], name: str) -> tuple[str, ...]:
    """All values given for a flag that may have several."""
    return tuple(arg.partition("=")[2] for arg in spread(args, [name]) if "=" in arg and flags_in([arg]) == [name])


def fill_optional(args: Sequence[str], name: str, value: str) -> list[str]:
    """Give the flag `name` the value `value` unless a value follows it already."""
    out = list(args)
    for i, arg in enumerate(args):
        if arg == name and (i + 1 == len(args) or args[i + 1].startswith("--")):
            out[i] = f"{name}={value}"
    return out


def joined(args: Sequence[str], name: str) -> list[str]:
    """The arguments with `name value` joined by "=", because the value may look like a flag."""
    out, rest = [], iter(args)
    for arg in rest:
        value = next(rest, None) if arg == name else None
        out.append(arg if value is None else f"{arg}={value}")
    return out


def flags_of(command: type[Any]) -> list[str]:
    """Every spelling of the flags of a command, a dataclass with a field for each. A field that is
    a dataclass itself stands for the flags of its fields. Booleans also have a --no- form."""
    fields = dict(_defaults(command))
    names = ["--" + name.replace("_", "-") for name in fields]
    negations = ["--no-" + name.replace("_", "-") for name, value in fields.items() if isinstance(value, bool)]
    return names + negations + [short for short, long in ALIASES.items() if long in names]


def _defaults(kind: Any) -> Iterator[tuple[str, Any]]:
    """(field, default) for a dataclass, or (field, value) for an instance of one, including the
    dataclasses in it."""
    for entry in dataclasses.fields(kind):
        if not isinstance(kind, type):
            default = getattr(kind, entry.name)
        elif entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        else:
            default = entry.default
        if dataclasses.is_dataclass(default):
            yield from _defaults(default)
        else:
            yield entry.name, default
