"""Gives the functions of commands real signatures, so that editors and `help` list their settings.

`ebmvk.train(**settings)` takes every flag of `ebmvk train` as a keyword argument. Its signature is
made from the dataclass of the command's flags, but only when somebody asks for it, because that
takes milliseconds and importing the package must be fast.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import types
from collections.abc import Callable, Collection, Iterator
from functools import cache, reduce
from inspect import Parameter, Signature
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Function = TypeVar("Function", bound=Callable[..., Any])
_COMMANDS: dict[Callable[..., Any], tuple[type, Collection[str], Collection[str]]] = {}


class _Unsettled:
    """Stands in a signature for a default that depends on other settings."""

    def __repr__(self) -> str:
        return "..."


UNSETTLED = _Unsettled()


def takes(
    command: type, *, without: Collection[str] = (), unsettled: Collection[str] = ()
) -> Callable[[Function], Function]:
    """Declare that a function's `**settings` are the flags of a command.

    Args:
        command: a dataclass. Fields that are dataclasses themselves are sections of settings.
        without: flags that only the command line has.
        unsettled: settings whose default depends on others; the signature shows it as `...`.
    """

    def declare(function: Function) -> Function:
        _COMMANDS[function] = (command, without, unsettled)
        return function

    return declare


@cache
def signature_of(function: Callable[..., Any]) -> Signature:
    """The function's signature, with the settings of its command added before `**settings`.

    `**settings` stays, because other names of settings, such as `lr`, are accepted as well.
    """
    own = inspect.signature(function)
    if function not in _COMMANDS:
        return own
    command, without, unsettled = _COMMANDS[function]
    given: list[Parameter] = []
    rest: list[Parameter] = []
    for parameter in own.parameters.values():
        (rest if parameter.kind is Parameter.VAR_KEYWORD else given).append(parameter)
    left = {*own.parameters, *without}
    settings = [
        parameter.replace(default=UNSETTLED) if parameter.name in unsettled else parameter
        for parameter in _parameters(command)
        if parameter.name not in left
    ]
    return own.replace(parameters=[*given, *settings, *rest])


def help_of(function: Callable[..., Any]) -> str:
    """The text for `help`: the function's docstring, then its settings, one per line.

    The settings are a literal block of reStructuredText, because Sphinx also reads this text.
    """
    settings = [f"    {_line(parameter)}" for parameter in signature_of(function).parameters.values()]
    return "\n".join([inspect.getdoc(function) or "", "", "Arguments and their defaults::", "", *settings])


def _line(parameter: Parameter) -> str:
    text = str(parameter).replace("pathlib.", "")
    kind = parameter.annotation
    return text.replace(repr(kind), kind) if isinstance(kind, str) else text


def _parameters(command: type) -> Iterator[Parameter]:
    hints = get_type_hints(command)
    for entry in dataclasses.fields(command):
        kind = hints[entry.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _parameters(kind)
            continue
        default = Parameter.empty if entry.default is dataclasses.MISSING else entry.default
        yield Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=_plain(kind))


def _plain(kind: Any) -> Any:
    """`Path | None` instead of `Optional[Path]`, which reads better."""
    if get_origin(kind) in (Union, types.UnionType):
        return reduce(operator.or_, get_args(kind))
    return kind
