"""Write the reference of commands, settings and errors from the code, in place of lines such as `% ebmvk: commands`.

Each command is asked for its help, and the parser behind it is read instead of printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import warnings
from argparse import Action
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args, get_type_hints
from unittest import mock

import tyro

from ebmvk import cli, config, errors  # all that is taken from the code

MODELS: tuple[str, ...] = get_args(get_type_hints(config.ModelConfig)["model"])
KINDS = {"INT": "a whole number", "TOKENS": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path"}


def setup(app: Any) -> dict[str, Any]:
    """Fill pages in as they are read, and read them at every build: the code may have changed."""
    app.connect("source-read", _filled)
    app.connect("env-get-outdated", lambda _, env, *__: getattr(env, "ebmvk_pages", set()))
    return {"parallel_read_safe": False}


def _filled(app: Any, page: str, source: list[str]) -> None:
    for name, part in {"commands": commands, "settings": settings, "errors": error_classes}.items():
        if (line := f"% ebmvk: {name}") in source[0]:
            source[0] = source[0].replace(line, "\n".join(part()))
            app.env.ebmvk_pages = getattr(app.env, "ebmvk_pages", set()) | {page}


def _asked(*args: str) -> tuple[Any, dict[str, Any]]:
    """The dataclass that a command parses its flags into, and what else it hands to `tyro.cli`."""
    with mock.patch.object(tyro, "cli", side_effect=SystemExit(0)) as asked, contextlib.suppress(SystemExit):
        cli.main([*args, "--help"])
    if not asked.called:
        raise RuntimeError(f"ebmvk {' '.join(args)} --help does not use tyro.cli")
    (kind,), how = asked.call_args
    return kind, {name: value for name, value in how.items() if name != "args"}


@cache
def _groups(name: str) -> dict[str, dict[str, Action]]:
    """{group: {flag: its action}} of a command."""
    kind, how = _asked(name)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        parser = tyro.extras.get_parser(kind, **how)
    groups = ((group.title or "options", group._group_actions) for group in parser._action_groups)
    return {title: {a.option_strings[0]: a for a in own if a.dest != "help"} for title, own in groups if own}


def commands() -> Iterator[str]:
    """A section for each command. One with the flags of another lists only the defaults that differ."""
    known: dict[tuple[str, ...], str] = {}
    for name in cli.COMMANDS:
        yield f"## ebmvk {name}\n\n{_prose(_asked(name)[1]['description'])}\n"
        groups = _groups(name)
        flags = tuple(flag for own in groups.values() for flag in own)
        if same := known.get(flags):
            before = {flag: action.help for own in _groups(same).values() for flag, action in own.items()}
            groups = {title: {f: a for f, a in own.items() if a.help != before[f]} for title, own in groups.items()}
            yield f"Its flags are those of [`ebmvk {same}`](#ebmvk-{same}). These defaults differ:\n"
        for title, own in groups.items():
            if own:
                yield f"**{title.capitalize()}**\n"
            for action in own.values():
                value = f" {action.metavar}" if isinstance(action.metavar, str) and action.nargs != 0 else ""
                yield f"`{', '.join(action.option_strings)}{value}`\n: {_prose(action.help or '')}\n"
        known[flags] = name


def _prose(text: str) -> str:
    """Help as Markdown: flags and defaults become code."""
    text = re.sub(r"\s*\(default: (.*)\)$", r" Default: `\1`.", text.replace("%%", "%"))
    text = re.sub(r" Default: `(None)?`\.", "", text)
    text = text.replace("Default: `False`", "Off by default").replace("Default: `True`", "On by default")
    text = text.replace(" (repeatable)", " May be repeated.")
    pieces = re.split(r"(`[^`]*`|--[a-z][a-z0-9-]*|EBMVK_[A-Z_]+)", text)
    return "".join(
        re.sub(r"([\\*_<>\[\]$|])", r"\\\1", piece) if i % 2 == 0 else piece if piece[0] == "`" else f"`{piece}`"
        for i, piece in enumerate(pieces)
    )


def settings() -> Iterator[str]:
    """A section for each table of config.toml. Defaults are those for a long text, as short ones change some."""
    asked = {size: _asked("train", "--size", size, "--dataset", "wikitext-2")[1] for size in config.SIZES}
    flags = {flag: action for own in _groups("train").values() for flag, action in own.items()}
    for section in dataclasses.fields(config.Config):
        yield f"## {section.name}\n"
        for entry in dataclasses.fields(getattr(config.Config(), section.name)):
            action, bounds = flags[config.flag(entry.name)], entry.metadata
            by_size = {size: getattr(getattr(how["default"], section.name), entry.name) for size, how in asked.items()}
            users = [model for model in MODELS if _uses(model, section.name, entry.name)]
            low, high = (f"`{x:g}`" if isinstance(x, float) else f"`{x}`" for x in map(bounds.get, ("low", "high")))
            facts = [_kind(action)]
            if "`None`" not in low:
                facts.append(f"from {low} to {high}" if "`None`" not in high else f"at least {low}")
            said = re.search(r"\(default: (\S+ .*)\)", action.help or "")  # words in place of a value
            facts.append(f"default: {said[1]}" if said else _default(by_size))
            facts += [f"only for {', '.join(users)}"] if len(users) < len(MODELS) else []
            facts += ["`--resume` may change it"] if bounds.get("resume") else []
            meaning, fact = re.sub(r"\s*\((default|repeatable).*\)$", "", action.help or ""), "; ".join(facts)
            told = "<br>".join(filter(None, (_prose(meaning), f"{fact[0].upper()}{fact[1:]}.")))
            yield f"`{entry.name}`\n: {told}\n"


def _kind(action: Action) -> str:
    if action.choices or action.nargs == 0:
        return " or ".join(f"`{choice}`" for choice in (action.choices or ("true", "false")))
    name = str(action.metavar).strip("[]").split()[0]
    return KINDS.get(name, f"a {name.lower()}")


def _default(by_size: dict[str, Any]) -> str:
    """One value, or one for each size."""
    text = {bool: lambda value: str(value).lower(), float: lambda value: f"{value:g}"}
    shown = ["none" if x in (None, ()) else f"`{text.get(type(x), str)(x)}`" for x in by_size.values()]
    each = [f"{value} ({size})" for size, value in zip(by_size, shown, strict=True)]
    if shown == [f"`{size}`" for size in by_size]:  # the size itself
        return f"default `{config.Config().run.size}`"
    return f"default {', '.join(each) if len(set(shown)) > 1 else shown[0]}"


def _uses(model: str, section: str, name: str) -> bool:
    """True if the setting means anything for the model, with experts or without."""
    for experts in (False, True):
        settings = config.replace(config.Config(), {"model": model, "use_moe": experts})
        with contextlib.suppress(errors.EbmvkError):
            config.check_model(settings.model)
            if config.concerns(settings, section, name):
                return True
    return False


def error_classes() -> Iterator[str]:
    """A row for every typed error, the most general one first."""
    yield "| error | also a | exit status | when |\n|---|---|---|---|"
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EbmvkError)]
    for kind in sorted(kinds, key=lambda kind: (len(kind.__mro__), kind.__name__)):
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        when = _prose(" ".join((inspect.getdoc(kind) or "").split("\n\n", maxsplit=1)[0].split()))
        yield f"| `{kind.__name__}` | {bases} | {kind.exit_status} | {when} |"
