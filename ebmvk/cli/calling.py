"""Commands as Python functions: turns keyword arguments into flags, and makes modules callable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ebmvk.cli.signatures import help_of, signature_of
from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError


def arguments(command: str, settings: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The flags for keyword arguments.

    `batch_size=4` is `--batch-size 4`, `enable_soc=False` is `--no-enable-soc`, a list gives a flag
    several values, and None omits the flag.

    Raises:
        ConfigError: a setting doesn't exist, or its value has a type that no flag takes.
    """
    args: list[str] = []
    for name, value in settings.items():
        own = "--" + name.replace("_", "-")
        if own not in known or name.startswith("no_"):
            names = [flag[2:].replace("-", "_") for flag in known if not flag.startswith("--no-")]
            close = nearest(name.removeprefix("no_"), names)
            hint = f"did you mean {close}?" if close else f"see help(ebmvk.{command}), or `ebmvk {command} --help`"
            raise ConfigError(f"ebmvk.{command}() has no setting {name!r}", hint=hint)
        args += _argument(f"ebmvk.{command}({name}={value!r})", own, value)
    return args


def _argument(what: str, own: str, value: Any) -> list[str]:
    """The flags for one keyword argument. what: the call, for the message."""
    if value is None or (isinstance(value, list | tuple) and not value):
        return []
    if isinstance(value, bool):
        return [own if value else own.replace("--", "--no-", 1)]
    if isinstance(value, str | int | float | Path):
        return [f"{own}={value}"]
    if isinstance(value, list | tuple) and all(isinstance(part, str | int | float | Path) for part in value):
        return [own, *map(str, value)]
    raise ConfigError(
        f"{what}: a {type(value).__name__} isn't a value for a setting", hint="give a text, a number, a path or a list"
    )


def callable_module(name: str, function: Callable[..., Any]) -> None:
    """Make the module `name` callable like its function of the same name.

    Importing `ebmvk.train` makes the package's `train` a module, so a function could not keep that
    name.
    """

    class Called(ModuleType):
        __call__ = staticmethod(function)
        __signature__ = property(lambda _: signature_of(function))
        __doc__ = property(lambda _: help_of(function))

    module = sys.modules[name]
    module.__class__ = Called
