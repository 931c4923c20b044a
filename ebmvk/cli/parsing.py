"""The commands: one parser for all of them, typed errors, exit status 2, no traceback.

Nothing heavy is imported here, so that --help answers at once; each command imports torch when it runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from ebmvk import __version__
from ebmvk.config.schema import flag, nearest
from ebmvk.errors import INTERRUPTED, ConfigError, EbmvkError, StorageError
from ebmvk.host import terminal
from ebmvk.runs import layout as runs

if TYPE_CHECKING:
    from ebmvk.ranks import Handler, Ranks

COMMANDS = {
    "train": "train a model on text; writes a run folder with checkpoints, metrics and a report",
    "pretrain": "train embeddings and trunk alone; `ebmvk train --init RUN` goes on with the whole model",
    "evaluate": "exact likelihood of a text: perplexity per token and word, bits per byte",
    "memory": "give a checkpoint its memory: static splats of the training text, and the gates of both tiers",
    "prepare-corpus": "text files repaired, normalised, without repeats, put together for training",
    "analyze-corpus": "what a corpus is like: tokens, documents, and what to train on it",
    "init-tokenizer": "a tokenizer of one's own, for --tokenizer FILE",
    "sweep": "a table of training runs with verdicts, resumable and parallel, and a search beyond it",
    "doctor": "devices and drivers of this machine, and every operation compared with a float64 oracle",
    "certify": "are the samplers right? twelve tests with p-values, and broken samplers that they must catch",
    "diagnose": "what is well with a checkpoint, what is not, and what to do about it; several side by side",
    "generate": "write text by annealed Langevin sampling, or by exact sampling",
    "export": "a checkpoint as a folder laid out as model hubs have them, with a card of exact figures",
    "harness": "tasks of lm-evaluation-harness, an extra; flags that are not listed are lm_eval's: --tasks, --limit …",
    "compare-decoding": "decoding strategies by repetition, diversity, perplexity and speed, beside human text",
    "attention": "what each head looks at, and what experts specialise in, as pictures and figures",
    "embed": "texts as points on the sphere, and their exact energies",
    "compose": "the point that the model composes of two texts",
    "neighbors": "the tokens, and splats of the memory, nearest to a text",
}
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
TOGETHER = ("train", "pretrain", "evaluate")
"""Commands that several processes of torchrun do together."""
T = TypeVar("T")
Include = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")]
"""The type of `--include`, which may be repeated."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `ebmvk` program: dispatches to a command and returns its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0].replace("_", "-") in COMMANDS:
        command = importlib.import_module(f"ebmvk.{args[0].replace('-', '_')}")
        status: int = command.main(args[1:])
        return status
    return run(lambda: _top_level(args))


def _top_level(args: list[str]) -> int:
    if args[:1] == ["--version"]:
        print(f"ebmvk {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help"):
        print("usage: ebmvk COMMAND [--help] [OPTIONS]\n\ncommands:")
        print("\n".join(f"  {name:<18}{what}" for name, what in COMMANDS.items()))
        print("\nEach is also `python -m ebmvk.COMMAND`. `ebmvk --version` says the version.")
        return 0
    close = nearest(args[0], COMMANDS)
    raise ConfigError(
        f"ebmvk {args[0]}: no such command",
        hint=f"did you mean 'ebmvk {close}'?" if close else f"take one of {', '.join(COMMANDS)}",
    )


def run(body: Callable[[], int]) -> int:
    """The exit status of `body`; a typed error is printed in three lines and becomes its exit status."""
    terminal.prepare()
    try:
        return _written(body)
    except EbmvkError as error:
        if not error.told:
            _complain(f"error: {_rank()}{error}")
        return error.exit_status
    except KeyboardInterrupt:
        _complain("interrupted; what was saved is intact")
        return INTERRUPTED
    except OSError as error:
        if not terminal.is_of_output(error):
            raise
        return _output_lost(error)


def _written(body: Callable[[], int]) -> int:
    """Run `body` and flush its output; returns its exit status."""
    try:
        status = body()
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _complain(text: str) -> None:
    """Print to standard error, if it is open."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    if terminal.is_broken():  # otherwise the interpreter would fail at exit
        terminal.let_go()


def _output_lost(error: OSError) -> int:
    """The exit status if standard output could not be written: 1, without a message if its reader has gone."""
    if isinstance(error, BrokenPipeError):
        terminal.let_go()
        return 1
    lost = StorageError(
        f"standard output could not be written: {error.strerror or error}",
        hint="free some space, or write to another file",
    )
    terminal.let_go()
    _complain(f"error: {_rank()}{lost}")
    return lost.exit_status


def _rank() -> str:
    """Which of several processes this is, for messages, where it is not the first."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" or os.environ.get("WORLD_SIZE", "1") == "1" else f"rank {rank}: "


def processes() -> int:
    """How many of them torchrun has started to do this together. Raises ConfigError."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or not int(given):
        raise ConfigError(f"WORLD_SIZE={given} is no number of processes", hint="unset it, or start with torchrun")
    return int(given)


def lead(body: Callable[[Ranks | None], int], followers: Callable[[Ranks], Mapping[str, Handler]]) -> int:
    """The exit status of `body`, which runs in the first of the processes that torchrun has started; the others do
    what it tells them. With one process it is called with None, and nothing is imported.

    followers: what they can be told to do, by name.
    """
    if processes() == 1:
        return body(None)
    from ebmvk.ranks import Ranks

    ranks = Ranks.join()
    with ranks.together():
        if ranks.rank:
            return ranks.follow(followers(ranks))
        try:
            status = body(ranks)
        except SystemExit as stop:  # --help
            status = int(stop.code or 0)
        ranks.tell("end", status=status)
        return status


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


def arguments(command: str, settings: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The flags for keyword arguments: `batch_size=4` is `--batch-size 4`, `enable_soc=False` is `--no-enable-soc`, a
    list gives a flag several values, and None omits the flag.

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

    Importing `ebmvk.train` makes the package's `train` a module, so a function could not keep that name.
    """

    class Called(ModuleType):
        __call__ = staticmethod(function)

    module = sys.modules[name]
    module.__class__ = Called
    vars(module)["__signature__"] = inspect.signature(function)


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


def write_output(path: Path, text: str, flag: str) -> None:
    """Write the file that a flag names, whole or not at all, with its folder. Raises StorageError."""
    from ebmvk.data.files import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise StorageError(
            f"{flag} {path} could not be written: {error.strerror or error}", hint=f"give {flag} a writable place"
        ) from error


def known_flags(fields: dict[str, Any]) -> list[str]:
    """Every spelling of the flags of {field: default value}; booleans have a --no- form."""
    names = ["--" + name.replace("_", "-") for name in fields]
    negations = ["--no-" + name.replace("_", "-") for name, value in fields.items() if isinstance(value, bool)]
    return names + negations + [short for short, long in ALIASES.items() if long in names]


if __name__ == "__main__":
    sys.exit(main())
