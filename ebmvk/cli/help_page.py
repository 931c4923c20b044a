"""`--help` of a command: its flags in groups, common ones first; `--help-all` shows the rest.

The text of a flag is the comment beside its field. A field's `metadata` may have `group`, the title
under which its flag is listed, and `common`: if a command has common flags, `--help` shows these
only.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ebmvk.config.schema import flag

INDENT = 26  # columns before the text of a flag
WIDEST = 100
GLUE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Entry:
    """A flag: how to write it, what it does, its default (empty if there is nothing to show), and
    the group that it is listed in.
    """

    usage: str
    text: str
    default: str
    group: str
    common: bool


def page(title: str, entries: Sequence[Entry], *, everything: bool, notes: Sequence[str] = ()) -> str:
    """The help of the command `title`.

    everything: also show flags that aren't common. notes: paragraphs at the top.
    """
    several = any(entry.common for entry in entries) and not everything
    shown = [_plain(entry) for entry in entries if entry.common] if several else entries
    groups: dict[str, list[Entry]] = {}
    for entry in shown:
        groups.setdefault(entry.group, []).append(entry)
    width = min(WIDEST, shutil.get_terminal_size().columns)
    blocks = [f"usage: {title} [OPTIONS]", *(textwrap.fill(note, width) for note in notes)]
    for name, members in groups.items():
        blocks.append("\n".join([name, *(_lines(entry, width) for entry in members)]))
    if len(shown) < len(entries):
        blocks.append(f"`{title} --help-all` shows {len(entries) - len(shown)} more options.")
    return "\n\n".join(blocks)


def _plain(entry: Entry) -> Entry:
    """The entry. For a switch that is off by default, it leaves out the spelling with `--no-`."""
    return entry if entry.default else dataclasses.replace(entry, usage=entry.usage.replace("[no-]", ""))


def _lines(entry: Entry, width: int) -> str:
    default = f" (default:{GLUE}{entry.default})" if entry.default else ""
    wrapped = textwrap.wrap(entry.text + default, max(20, width - INDENT), break_on_hyphens=False)
    body = [line.replace(GLUE, " ") for line in wrapped] or [""]
    if len(entry.usage) <= INDENT - 4:
        body[0] = f"  {entry.usage:<{INDENT - 2}}{body[0]}"
    else:
        body = [f"  {entry.usage}", " " * INDENT + body[0], *body[1:]]
    return "\n".join([body[0], *(line if line.startswith(" ") else " " * INDENT + line for line in body[1:])]).rstrip()


def entries(kind: type[Any], default: Any, titles: dict[str, str]) -> Iterator[Entry]:
    """The flags of a dataclass and of the dataclasses in it, in their order.

    default: an instance with the values to show, or None for those of the class. titles: {field:
    title of its group}; the key "" is for all fields that aren't named.
    """
    hints, texts = get_type_hints(kind, include_extras=True), comments(kind)
    for field in dataclasses.fields(kind):
        value = _value(field, default)
        hint, extras = _unwrapped(hints[field.name])
        title = field.metadata.get("group") or titles.get(field.name, titles.get("", "Options"))
        if dataclasses.is_dataclass(hint):
            yield from entries(hint, value, titles | {"": title})  # type: ignore[arg-type]
        else:
            usage, shown = _usage(field.name, hint, extras), _default(value, extras)
            told = next((extra.help for extra in extras if getattr(extra, "help", None)), texts.get(field.name, ""))
            yield Entry(usage, told, shown, title, bool(field.metadata.get("common")))


def _value(field: dataclasses.Field[Any], default: Any) -> Any:
    """The value to show; None if the flag must be given."""
    if default is not None:
        return getattr(default, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """A type without its annotations, and the annotations."""
    extras = list[Any]()
    while hasattr(hint, "__metadata__"):
        extras += hint.__metadata__
        hint = hint.__origin__
    return hint, extras


def _usage(name: str, hint: Any, extras: Sequence[Any]) -> str:
    if hint is bool:
        return f"--[no-]{flag(name)[2:]}"
    given = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), None)
    several = " …" if get_origin(hint) is tuple else ""
    return f"{flag(name)} {given or _metavar(hint)}{several}"


def _metavar(hint: Any) -> str:
    own = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, own)) + "}"
    if own:
        return _metavar(own[0])
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(hint, "TEXT")


def _default(value: Any, extras: Sequence[Any]) -> str:
    hints = [extra.help_behavior_hint for extra in extras if getattr(extra, "help_behavior_hint", None)]
    if hints:
        return str(hints[0]).removeprefix("(default: ").removesuffix(")")
    if value is None or value is False or value in {"", ()}:
        return ""
    return "on" if value is True else str(value)


def comments(kind: type[Any]) -> dict[str, str]:
    """{field: comment} for a dataclass and the classes that it extends. The comment is the one
    after the field's definition on its line, or else the one above.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _comments_in(textwrap.dedent(inspect.getsource(base)))
    return found


def _comments_in(source: str) -> dict[str, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    lines, found = source.splitlines(), dict[str, str]()
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        own = [said[line].string for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in said]
        line = node.lineno - 1
        while not own and line in said and lines[line - 1].lstrip().startswith("#"):
            line -= 1
        above = [said[number].string for number in range(line + 1, node.lineno)] if not own else []
        found[node.target.id] = " ".join(text.lstrip("# ") for text in own or above)
    return found
