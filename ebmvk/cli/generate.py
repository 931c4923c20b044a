"""`ebmvk generate`, `python -m ebmvk.generate`: text from a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.decoding.strategies import GREEDY, KEEPS_BEST, UNCHANGED, Strategy, named
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST
from ebmvk.sampling import registry
from ebmvk.sampling.registry import SAMPLERS, SamplerName

if TYPE_CHECKING:
    from ebmvk.decoding.generate import Decoding, Generator
    from ebmvk.runs.folder import OpenRun


@dataclass(frozen=True)
class GenerateCommand:
    # The model: a run folder (its latest complete checkpoint), RUN/best, or a checkpoint folder.
    checkpoint: Path = Path(NEWEST)
    # Text to continue, one or several. Without one, the command asks for it on a terminal.
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    # A file whose whole text is the prompt.
    prompt_file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    batch_generate: bool = False  # Take every line of --prompt-file as a prompt of its own.
    # Check that this is the run's own tokenizer; another one is refused.
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    max_tokens: int = 100  # Number of tokens to write, at most.
    strategy: str = "sampling"  # Named settings, such as nucleus or greedy; `ebmvk compare-decoding` compares them.
    greedy: bool = False  # Always take the most probable token.
    # Flags that change the named strategy.
    token_law: Strategy = field(default=UNCHANGED, metadata={"group": "Changes to the strategy"})
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # Strings that end a text; it is cut before them.
    # How tokens are drawn; the documentation compares the samplers.
    sampler: Annotated[
        SamplerName | None,
        tyro.conf.arg(
            help=f"{registry.HELP} By default {registry.USUAL}; {registry.WITHOUT_STATES} for models without points "
            "on the sphere."
        ),
    ] = None
    # Memory to use: static (of the training text), episodic (of this text so far), or both.
    memory: Literal["none", "static", "episodic", "both"] = "none"
    seed: int = 42  # The same seed gives the same text.
    batch_size: int = 16  # Number of prompts that are continued at once.
    stream: bool = False  # Print the text while it is written.
    # Also write prompts and texts to this file, one JSON object per line.
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference. With vulkan, the layers run there, too.
    quiet: bool = False  # Print only the texts, with an empty line between them.


FLAGS = flags.flags_of(GenerateCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    args = sys.argv[1:] if argv is None else list(argv)
    several = ("--prompt", "--stop")
    return running.run(
        lambda: _generate(
            parsing.parse(GenerateCommand, args, command="generate", known=FLAGS, repeatable=several),
            flags.flags_in(args),
        )
    )


def _check(command: GenerateCommand) -> None:
    for name in ("max_tokens", "batch_size"):
        if (value := getattr(command, name)) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below 1", hint="give 1 or more")
    if not 0 <= command.seed < 2**63:
        raise ConfigError(f"--seed {command.seed} is not between 0 and 2^63 - 1", hint="use --seed 42")
    if "" in command.stop:
        raise ConfigError("--stop has an empty string", why="every text contains it", hint="give the text to stop at")


def _strategy(command: GenerateCommand, given: Sequence[str]) -> Strategy:
    """The named strategy, changed by the flags that are given."""
    own = flags.settings_of(command.token_law, Strategy, given)
    strategy = dataclasses.replace(named(command.strategy), **own)
    if not command.greedy:
        return strategy
    chosen = own.keys() & set(KEEPS_BEST)
    if other := min(chosen, default="strategy" if "--strategy" in given else None):
        value = command.strategy if other == "strategy" else own[other]
        raise ConfigError(
            f"--greedy doesn't work with --{other.replace('_', '-')} {value}",
            why="the most probable token stays the same, so the other flag would do nothing",
            hint="remove one of the two",
        )
    return dataclasses.replace(strategy, top_k=GREEDY.top_k)


def _prompts(command: GenerateCommand) -> list[str] | None:
    """The prompts; None if they are asked for on the terminal.

    Raises:
        ConfigError: the file cannot be read or has no text, or flags contradict each other.
    """
    path = command.prompt_file
    if path is None:
        if command.batch_generate:
            raise ConfigError("--batch-generate needs --prompt-file", hint="name the file whose lines are prompts")
        if not command.prompt and _on_terminal():
            return None
        return list(command.prompt) or [""]
    if command.prompt:
        raise ConfigError(f"--prompt and --prompt-file {path} are both given", hint="remove one of them")
    from ebmvk.data.files import ANYTHING, NoText, lines_of, read_text

    try:
        text = read_text(path, ANYTHING)
    except NoText as error:
        raise ConfigError(f"--prompt-file: {error.what}", why=error.why, hint=error.hint) from None
    return [line for line in lines_of(text) if line.strip()] if command.batch_generate else [_without_end(text)]


def _on_terminal() -> bool:
    """True if a person can be asked and sees the answer."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _without_end(text: str) -> str:
    """The text without newlines at its end, which editors add."""
    return text.rstrip("\r\n") if text.endswith("\n") else text


def _asked() -> Iterator[str]:
    """Prompts that a person types, until the end of input (Ctrl-D)."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, input() then edits lines and recalls earlier ones
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            yield input("Prompt: ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            raise


def _headline(command: GenerateCommand, several: bool, number: int, prompt: str) -> str:
    """The heading above one of several texts: its prompt; with --quiet only a blank line."""
    if not several:
        return ""
    gap = "\n" if number else ""
    return gap if command.quiet else f"{gap}--- {number + 1}: {prompt!r}\n"


def _stream(generator: Generator, prompt: str, how: Decoding, number: int) -> str:
    """The text of prompt `number`, printed while it is written."""
    pieces = []
    for piece in generator.stream(prompt, how, number):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)


def _streamed(command: GenerateCommand, generator: Generator, prompts: Sequence[str], how: Decoding) -> list[str]:
    """The texts, each printed while it is written."""
    found = []
    for number, prompt in enumerate(prompts):
        print(_headline(command, len(prompts) > 1, number, prompt) + prompt, end="", flush=True)
        found.append(_stream(generator, prompt, how, number))
    return found


def _whole(command: GenerateCommand, generator: Generator, prompts: Sequence[str], how: Decoding) -> list[str]:
    """The texts, each printed after its prompt."""
    found = generator.generate(prompts, how, command.batch_size)
    for number, (prompt, text) in enumerate(zip(prompts, found, strict=True)):
        print(_headline(command, len(prompts) > 1, number, prompt) + (prompt + text.text).strip("\n"))
    return [text.text for text in found]


def _conversation(generator: Generator, how: Decoding) -> tuple[list[str], list[str]]:
    """The prompts that a person types, and their texts, each printed while it is written.

    Every prompt starts a new document. It is drawn as if it were the only one, so asking again for
    the same prompt gives the same text.
    """
    prompts, texts = [], []
    for prompt in _asked():
        print(prompt, end="", flush=True)
        texts.append(_stream(generator, prompt, how, 0))
        prompts.append(prompt)
    return prompts, texts


def _write(path: Path, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """Write one JSON object per line. Raises StorageError."""
    pairs = zip(prompts, texts, strict=True)
    lines = [json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n" for prompt, text in pairs]
    running.write_output(path, "".join(lines), "--output")


def _generate(command: GenerateCommand, given: Sequence[str]) -> int:
    _check(command)
    prompts, strategy = _prompts(command), _strategy(command, given)
    from ebmvk.decoding.generate import Decoding, Generator
    from ebmvk.decoding.layers import token_layers
    from ebmvk.engine.device import open_device
    from ebmvk.memory.files import load
    from ebmvk.memory.law import Reader
    from ebmvk.runs.folder import check_tokenizer, open_run

    run = open_run(command.checkpoint, "--checkpoint", lambda text: print(text, file=sys.stderr))
    check_tokenizer(command.tokenizer, run)
    device = open_device(command.device)
    sampler = command.sampler or run.model.default_sampler
    say = (lambda _: None) if command.quiet else _say
    layers, why = token_layers(run.model, run.config, device, command.device, say)
    where = device.told(why)
    say(f"{run.checkpoint.path}, step {run.checkpoint.step:,}; {where}; {sampler}, seed {command.seed}")
    how = Decoding(command.max_tokens, strategy, sampler, command.seed, command.stop)
    memory = None
    if command.memory != "none":
        memory = Reader(load(run.checkpoint.path, run.model, command.memory), command.memory, device.backend)
    model = run.model.to(device.torch)
    generator = Generator(model, run.tokenizer, device.backend, run.config.langevin, memory, layers)
    if prompts is None:
        say("Type a text to continue; an empty line starts from nothing. Ctrl-D ends.")
        prompts, found = _conversation(generator, how)
    else:
        found = (_streamed if command.stream else _whole)(command, generator, prompts, how)
    if command.output:
        _write(command.output, prompts, found)
    if not command.quiet:
        _say_health(generator, sampler, run)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _say_health(generator: Generator, sampler: SamplerName, run: OpenRun) -> None:
    """Print diagnostics of the sampler's chains, if it has any."""
    health, rates = generator.health.record(), generator.health.mixing()
    if rates:
        _say(f"{SAMPLERS[sampler].rates}: {', '.join(f'{rate:.2f}' for rate in rates)}")
    if health:
        accepted = f", accepted {health['acceptance']:.0%}" if health["acceptance"] < 1 else ""
        _say(
            f"{health['chains']:.0f} chains: kinetic temperature {health['kinetic_temperature']:.3f} "
            f"(of {run.config.langevin.langevin_T:g}), energy error {health['energy_error']:.3f} per step, "
            f"tangency {health['tangency']:.1e}{accepted}"
        )


if __name__ == "__main__":
    sys.exit(main())
