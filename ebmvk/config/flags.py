"""Flags as lists of words, before and after the full parse."""

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
"""Other names of flags, as the systems that this project implements spell them."""


PATHS = (
    *(
        "--checkpoint",
        "--run-dir",
        "--resume",
        "--config",
        "--dataset",
        "--data-dir",
        "--tokenizer",
        "--init",
        "--folder",
    ),
    *(
        "--against",
        "--judge",
        "--test-file",
        "--prompt-file",
        "--file",
        "--files",
        "--input",
        "--output",
        "--out",
        "--to",
    ),
    *("--json", "--plots", "--npy"),
)
"""Flags whose values are or may be paths: `~` at the start means the home folder, as in shells."""


def at_home(args: Sequence[str]) -> list[str]:
    """The arguments, with `~` expanded in the values of `PATHS`: shells don't, in quotes and in `--run-dir=~/x`."""
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


def _spelled(args: Sequence[str]) -> list[str]:
    """The arguments with every flag under its own name."""
    pairs = [arg.partition("=") for arg in args]
    return [ALIASES.get(name.replace("_", "-"), name) + equals + value for name, equals, value in pairs]


def _spread(args: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """`--prompt a b` as `--prompt=a --prompt=b`, of these flags."""
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
    """{field: what the command has} of the fields of a dataclass that are among the flags given."""
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
    """The value given for one flag, before the full parse; None when absent."""
    for i, arg in enumerate(args):
        if flags_in([arg]) == [name]:
            return arg.split("=", 1)[1] if "=" in arg else next(iter(args[i + 1 :]), None)
    return None


def values_of(args: Sequence[str], name: str) -> tuple[str, ...]:
    """The values given for a flag that may have several, before the full parse."""
    return tuple(arg.partition("=")[2] for arg in _spread(args, [name]) if "=" in arg and flags_in([arg]) == [name])


def fill_optional(args: Sequence[str], name: str, value: str) -> list[str]:
    """Give `name` the value `value` where it stands alone: at the end, or before another flag."""
    out = list(args)
    for i, arg in enumerate(args):
        if arg == name and (i + 1 == len(args) or args[i + 1].startswith("--")):
            out[i] = f"{name}={value}"
    return out


def joined(args: Sequence[str], name: str) -> list[str]:
    """`name value` as one argument: the value may look like a flag itself."""
    out, rest = [], iter(args)
    for arg in rest:
        value = next(rest, None) if arg == name else None
        out.append(arg if value is None else f"{arg}={value}")
    return out


def known_flags(fields: dict[str, Any]) -> list[str]:
    """Every spelling of the flags of {field: default value}; booleans have a --no- form."""
    names = ["--" + name.replace("_", "-") for name in fields]
    negations = ["--no-" + name.replace("_", "-") for name, value in fields.items() if isinstance(value, bool)]
    return names + negations + [short for short, long in ALIASES.items() if long in names]
