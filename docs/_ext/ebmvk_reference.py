"""Write the reference of commands, settings, errors and rooms from the code.

It replaces lines such as `% ebmvk: commands`.

Each command is asked for its help, and the entries behind the page are taken instead of the page.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from unittest import mock

import ebmvk  # this and the imports below are all that is taken from the code
from ebmvk import errors
from ebmvk.cli import app as program
from ebmvk.cli import help_page
from ebmvk.cli.commands import COMMANDS
from ebmvk.cli.help_page import Entry
from ebmvk.compute import primitives
from ebmvk.compute.supported import DECOMPOSED
from ebmvk.config import schema
from ebmvk.config.models import MODELS
from ebmvk.config.sizes import derive
from ebmvk.config.where import why_on_host
from ebmvk.engine.operations import TABLES

KINDS = {"INT": "a whole number", "TOKENS": "a whole number", "FLOAT": "a number", "TEXT": "a text", "PATH": "a path"}


def setup(app: Any) -> dict[str, Any]:
    """Fill pages in as they are read, and read them at every build: the code may have changed."""
    app.connect("source-read", _filled)
    app.connect("env-get-outdated", lambda _, env, *__: getattr(env, "ebmvk_pages", set()))
    return {"parallel_read_safe": False}


def _filled(app: Any, page: str, source: list[str]) -> None:
    for name, part in PARTS.items():
        if (line := f"% ebmvk: {name}") in source[0]:
            source[0] = source[0].replace(line, "\n".join(part()))
            app.env.ebmvk_pages = getattr(app.env, "ebmvk_pages", set()) | {page}


@cache
def _entries(name: str) -> list[Entry]:
    """The flags of a command, as its help shows them."""
    with mock.patch.object(help_page, "page", return_value="") as page, contextlib.suppress(SystemExit):
        program.main([name, "--help-all"])
    if not page.called:
        raise RuntimeError(f"ebmvk {name} --help-all does not use help_page.page")
    return list(page.call_args.args[1])


def commands() -> Iterator[str]:
    """A section for each command. One with the flags of another lists only the defaults that
    differ."""
    known: dict[tuple[str, ...], str] = {}
    for name, what in COMMANDS.items():
        yield f"## ebmvk {name}\n\n{_prose(what[0].upper() + what[1:] + '.')}\n"
        entries = _entries(name)
        flags = tuple(entry.usage for entry in entries)
        if same := known.get(flags):
            before = {entry.usage: entry.default for entry in _entries(same)}
            entries = [entry for entry in entries if entry.default != before[entry.usage]]
            yield f"Its flags are those of [`ebmvk {same}`](#ebmvk-{same}). These defaults differ:\n"
        group = ""
        for entry in entries:
            if entry.group != group:
                group = entry.group
                yield f"**{group}**\n"
            yield f"`{entry.usage}`\n: {_prose(entry.text)}{_told(entry)}\n"
        known[flags] = name


def _told(entry: Entry) -> str:
    """The default of a flag, as a sentence."""
    if "--[no-]" in entry.usage:
        return " On by default." if entry.default else " Off by default."
    words = " " in entry.default and entry.default[0] != "-"  # in place of a value
    return f" Default: {entry.default if words else f'`{entry.default}`'}." if entry.default else ""


def _prose(text: str) -> str:
    """Help as Markdown: flags become code."""
    pieces = re.split(r"(`[^`]*`|--[a-z][a-z0-9-]*|EBMVK_[A-Z_]+)", text)
    return "".join(
        re.sub(r"([\\*_<>\[\]$|])", r"\\\1", piece) if i % 2 == 0 else piece if piece[0] == "`" else f"`{piece}`"
        for i, piece in enumerate(pieces)
    )


def settings() -> Iterator[str]:
    """A section for each table of config.toml. Defaults are those for a long text, as short ones
    change some."""
    base = schema.Config()
    sizes = {
        size: schema.replace(base, {**derive(size, None, ask_processor=False), "size": size}) for size in schema.SIZES
    }
    flags = {re.sub(r"\[no-\]", "", entry.usage.split()[0]): entry for entry in _entries("train")}
    for section in dataclasses.fields(schema.Config):
        yield f"## {section.name}\n"
        for field in dataclasses.fields(getattr(base, section.name)):
            entry, bounds = flags[schema.flag(field.name)], field.metadata
            by_size = {size: getattr(getattr(config, section.name), field.name) for size, config in sizes.items()}
            users = [model for model in MODELS if _uses(model, section.name, field.name)]
            low, high = (f"`{x:g}`" if isinstance(x, float) else f"`{x}`" for x in map(bounds.get, ("low", "high")))
            facts = [_kind(entry)]
            if "`None`" not in low:
                facts.append(f"from {low} to {high}" if "`None`" not in high else f"at least {low}")
            facts.append(f"default: {entry.default}" if " " in entry.default else _default(by_size))
            facts += [f"only for {', '.join(users)}"] if len(users) < len(MODELS) else []
            facts += ["`--resume` may change it"] if bounds.get("resume") else []
            fact = "; ".join(facts)
            told = "<br>".join(filter(None, (_prose(entry.text), f"{fact[0].upper()}{fact[1:]}.")))
            yield f"`{field.name}`\n: {told}\n"


def _kind(entry: Entry) -> str:
    value = entry.usage.partition(" ")[2]
    if value.startswith("{") or not value:
        return " or ".join(f"`{choice}`" for choice in (value.strip("{}").split(",") if value else ("true", "false")))
    name = value.strip("[]").split()[0]
    return KINDS.get(name, f"a {name.lower()}")


def _default(by_size: dict[str, Any]) -> str:
    """One value, or one for each size."""
    text = {bool: lambda value: str(value).lower(), float: lambda value: f"{value:g}"}
    shown = ["none" if x in (None, ()) else f"`{text.get(type(x), str)(x)}`" for x in by_size.values()]
    each = [f"{value} ({size})" for size, value in zip(by_size, shown, strict=True)]
    if shown == [f"`{size}`" for size in by_size]:  # the size itself
        return f"default `{schema.Config().run.size}`"
    return f"default {', '.join(each) if len(set(shown)) > 1 else shown[0]}"


def _uses(model: str, section: str, name: str) -> bool:
    """True if the setting means anything for the model, with experts or without."""
    return any(
        schema.concerns(schema.replace(schema.Config(), {"model": model, "use_moe": experts}), section, name)
        for experts in (False, True)
    )


def error_classes() -> Iterator[str]:
    """A row for every typed error, the most general one first."""
    yield "| error | also a | exit status | when |\n|---|---|---|---|"
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EbmvkError)]
    for kind in sorted(kinds, key=lambda kind: (len(kind.__mro__), kind.__name__)):
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        when = _prose(" ".join((inspect.getdoc(kind) or "").split("\n\n", maxsplit=1)[0].split()))
        yield f"| `{kind.__name__}` | {bases} | {kind.exit_status} | {when} |"


def rooms() -> Iterator[str]:
    """The table of rooms in the docstring of the package."""
    yield from (line for line in (ebmvk.__doc__ or "").splitlines() if line.startswith("|"))


def operations() -> Iterator[str]:
    """A row for every operation of the engine's table."""
    yield "| operation | what it computes | shapes | what to rely on |\n|---|---|---|---|"
    for operation in TABLES.values():
        does = re.split(r"(?<=\.)\s", operation.does)[0]
        shapes = dict[str, list[str]]()  # arguments by shape
        for argument in operation.arguments:
            if argument.of:
                shapes.setdefault(argument.shape, []).append(f"`{argument.name}`")
        listed = "; ".join(f"{', '.join(names)} {shape}" for shape, names in shapes.items())
        yield f"| `{operation.name}` | {_prose(' '.join(does.split()))} | {listed} | {_prose(operation.exact)} |"


def layers() -> Iterator[str]:
    """Where `--device vulkan` trains the layers of each model, and what keeps them on the CPU."""
    asked = schema.replace(schema.Config(), {"device": "vulkan", "precision": "float32"})
    rows: list[tuple[str, dict[str, Any], int]] = [(f"`--model {name}`", {"model": name}, 1) for name in MODELS]
    first = next(name for name in MODELS if why_on_host(schema.replace(asked, {"model": name})) is None)
    rows += [
        ("`--precision bfloat16`", {"model": first, "precision": "bfloat16"}, 1),
        ("several processes", {"model": first}, 2),
        ("`--device auto`, if it takes Vulkan and measures it to be faster", {"model": first, "device": "auto"}, 1),
        ("`--device auto --deterministic`", {"model": first, "device": "auto", "deterministic": True}, 1),
        ("`--device auto` and several processes", {"model": first, "device": "auto"}, 2),
    ]
    yield "| | layers | why |\n|---|---|---|"
    for said, values, ranks in rows:
        why = why_on_host(schema.replace(asked, values), ranks)
        yield f"| {said} | {'CPU' if why else 'Vulkan device'} | {_prose(why or '')} |"


def torch_operations() -> Iterator[str]:
    """A table for each kind of operation that a compiled training step may use."""
    kinds: dict[str, dict[tuple[tuple[str, ...], str], list[str]]] = {}
    for name, entry in primitives.load().items():
        told = sys.modules[entry.lowering.__module__].__doc__ or ""
        kind = re.split(r"\.| \(", told, maxsplit=1)[0]  # its first sentence
        kinds.setdefault(kind, {}).setdefault((entry.dtypes, entry.limits), []).append(name)
    for kind, rows in kinds.items():
        yield f"**{_prose(kind)}**\n"
        yield "| operation | types | limits |\n|---|---|---|"
        for (dtypes, limits), names in rows.items():
            yield f"| {_packets(names)} | {', '.join(dtypes)} | {_prose(limits)} |"
        yield ""
    yield "**Operations that are taken apart into those above**\n"
    yield _packets(name for name in DECOMPOSED if "backward" not in name) + "\n"


def _packets(names: Iterable[str]) -> str:
    """Operations of torch without their overloads."""
    return ", ".join(f"`{name}`" for name in sorted({name.rpartition(".")[0] for name in names}))


PARTS = {
    "commands": commands,
    "settings": settings,
    "errors": error_classes,
    "rooms": rooms,
    "operations": operations,
    "torch-operations": torch_operations,
    "layers": layers,
}
