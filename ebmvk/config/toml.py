"""Reading and writing configuration files (TOML)."""

from __future__ import annotations

import math
import re
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from ebmvk.config.schema import SECTION_OF, Config, Source, hints, items, nearest, replace
from ebmvk.errors import ConfigError


def read_toml(path: Path, flag: str = "--config ") -> dict[str, Any]:
    """{setting: value} of a configuration file, without sections.

    Args:
        flag: the flag that named the file, with a space after it, for messages.

    Raises:
        ConfigError: a section or a key is unknown, or a value has the wrong type. Names the file,
            the key and its value, and the nearest known name.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{flag}{path}: no such file", hint="check the path. The config.toml of a run is such a file"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{flag}{path}: cannot be read as TOML", why=str(error), hint="compare it with another run's config.toml"
        ) from None
    return _flat(tables, path)


def _flat(tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """{setting: value} of {section: {setting: value}}, checked as by `read_toml`."""
    values: dict[str, Any] = {}
    for section, table in tables.items():
        names = [n for n, s in SECTION_OF.items() if s == section]
        if not names and section in SECTION_OF:
            hint = f"put it below a line [{SECTION_OF[section]}]"
            raise ConfigError(f"{path}: '{section}' isn't in its section", hint=hint)
        if not names or not isinstance(table, dict):
            raise _unknown(path, section, set(SECTION_OF.values()))
        for name, value in table.items():
            if name not in names:
                raise _unknown(path, f"{section}.{name}", [f"{section}.{n}" for n in names])
            values[name] = _coerce(name, value, f"{path}: {section}.{name}")
    return values


def _unknown(path: Path, key: str, known: Iterable[str]) -> ConfigError:
    close = nearest(key, known)
    hint = f"write '{close}'" if close else f"known here: {', '.join(sorted(known))}"
    return ConfigError(f"{path}: unknown key '{key}'", why="there is no such setting", hint=hint)


def _coerce(name: str, value: Any, where: str) -> Any:
    """`value` in the type of the setting `name`.

    An integer may stand for a float; nothing else converts.
    """
    hint = hints()[name]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif get_origin(option) is tuple:
            words = get_args(option)[0] is str
            if isinstance(value, list) and all(type(v) in ((str,) if words else (int, float)) for v in value):
                return tuple(value if words else map(float, value))
        elif option is Path and isinstance(value, str):
            return Path(value)
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif type(value) is option:
            return value
    wanted = " or ".join(_words(option) for option in options if option is not type(None))
    raise ConfigError(f"{where} = {value!r}: not {wanted}", hint=f"give {wanted}, or remove the key")


def _words(option: Any) -> str:
    if get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, get_args(option)))
    if get_origin(option) is tuple:
        return "an array of strings" if get_args(option)[0] is str else "an array of numbers"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}[option]


_BEFORE = {"raw": True, "keep_bom": True}
"""What versions without these settings did: they read every file as plain text."""


def write_toml(config: Config, sources: Mapping[str, Source] | None = None) -> str:
    """The configuration as TOML.

    None values are left out; the source of a value is a comment beside it.
    """
    lines: list[str] = []
    current = ""
    for section, name, value in items(config):
        if section != current:
            lines += [*([""] if lines else []), f"[{section}]"]
            current = section
        if value is not None:
            comment = f"  # {sources[name]}" if sources and name in sources else ""
            lines.append(f"{name} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'


def sources_in(path: Path) -> dict[str, Source]:
    """{setting: where its value came from}, from the comments that `write_toml` wrote; without one,
    "default"."""
    known = "|".join(get_args(Source))
    found: dict[str, Source] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if entry := re.fullmatch(rf"(\w+) = .*?(?:  # ({known}))?", line):
            found[entry[1]] = next((source for source in get_args(Source) if source == entry[2]), "default")
    return found


def from_toml(path: Path) -> Config:
    """A complete configuration from a file written by `write_toml`.

    A missing setting gets the value that versions without this setting used.
    """
    return replace(Config(), _BEFORE | read_toml(path, flag=""))


def from_tables(tables: Mapping[str, Any], path: Path) -> Config:
    """A complete configuration from the result of `to_tables`.

    path: its file, for messages. Raises ConfigError.
    """
    return replace(Config(), _BEFORE | _flat(tables, path))


def to_tables(config: Config) -> dict[str, dict[str, Any]]:
    """{section: {setting: value}} for JSON. None values are left out."""
    tables: dict[str, dict[str, Any]] = {}
    for section, name, value in items(config):
        plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        tables.setdefault(section, {}).update({} if value is None else {name: plain})
    return tables
