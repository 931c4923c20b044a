"""`ebmvk generate`, `python -m ebmvk.generate`: text from a trained model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST

if TYPE_CHECKING:
    from ebmvk.decoding.generate import Decoding, Generator
    from ebmvk.decoding.strategies import Strategy


@dataclass(frozen=True)
class GenerateCommand:
    checkpoint: Path = Path(NEWEST)  # A run (its latest complete checkpoint), RUN/best, or one checkpoint.
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # Text to continue, one or several; none: from scratch.
    prompt_file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # A file that is the prompt.
    batch_generate: bool = False  # Take each line of --prompt-file as a prompt; lines end at \n or \r\n.
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Must be the run's own, which it has.
    max_tokens: int = 100  # Most tokens to write.
    strategy: str = "sampling"  # A name of `ebmvk compare-decoding`; the flags below change it.
    greedy: bool = False  # Always the most probable token.
    temperature: float = 1.0  # Of the token law; 1 is the law whose perplexity is reported.
    top_k: int = 0  # Only the k most probable tokens; 0: all.
    top_p: float = 1.0  # Only the fewest most probable tokens that hold this mass.
    min_p: float = 0.0  # Only tokens with this share of the largest probability.
    typical_p: float = 1.0  # Only tokens of this mass whose information is nearest to the entropy.
    repetition_penalty: float = 1.0  # log p times this for tokens that the text has already.
    no_repeat_ngram: int = 0  # No run of so many tokens twice; 0: any.
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # Strings that end a text.
    sampler: Literal["langevin", "exact", "gibbs", "tempering", "coarse"] | None = None  # A state to decode; or p(v|c).
    memory: Literal["none", "static", "episodic", "both"] = "none"  # The tiers of `ebmvk memory` in the token law.
    seed: int = 42  # The same seed gives the same text.
    batch_size: int = 16  # Prompts continued at once.
    stream: bool = False  # Write a text while it is made.
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Prompts and texts there too, as JSONL.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    quiet: bool = False  # Print only the texts, with an empty line between them.


FLAGS = flags.known_flags({f.name: f.default for f in dataclasses.fields(GenerateCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
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
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below 1", hint="give a number from 1 on")
    if not 0 <= command.seed < 2**63:
        raise ConfigError(f"--seed {command.seed} is not within 0 to 2^63 - 1", hint="take --seed 42")
    if "" in command.stop:
        raise ConfigError("--stop has an empty string", why="every text has that", hint="give the text to stop at")


def _strategy(command: GenerateCommand, given: Sequence[str]) -> Strategy:
    """The one named, with what flags change."""
    from ebmvk.decoding.strategies import GREEDY, Strategy, named

    own = flags.settings_of(command, Strategy, given)
    strategy = dataclasses.replace(named(command.strategy), **own)
    if not command.greedy:
        return strategy
    chosen = own.keys() & {"temperature", "top_k", "top_p", "min_p", "typical_p"}
    if other := min(chosen, default="strategy" if "--strategy" in given else None):
        raise ConfigError(
            f"--greedy with --{other.replace('_', '-')} {getattr(command, other)}",
            why="the most probable token is the same whatever is left out below it",
            hint="leave one of the two away",
        )
    return dataclasses.replace(strategy, top_k=GREEDY.top_k)


def _prompts(command: GenerateCommand) -> list[str]:
    """Raises ConfigError if the file cannot be read or holds no prompt, or if no flag says what the file is for."""
    path = command.prompt_file
    if path is None:
        if command.batch_generate:
            raise ConfigError("--batch-generate without --prompt-file", hint="name the file whose lines are prompts")
        return list(command.prompt) or [""]
    if command.prompt:
        raise ConfigError(f"--prompt and --prompt-file {path} are both given", hint="leave one of them away")
    from ebmvk.data.files import ANYTHING, NoText, lines_of, read_text

    try:
        text = read_text(path, ANYTHING)
    except NoText as error:
        raise ConfigError(f"--prompt-file: {error.what}", why=error.why, hint=error.hint) from None
    return [line for line in lines_of(text) if line.strip()] if command.batch_generate else [_without_end(text)]


def _without_end(text: str) -> str:
    """The text without newlines at its end: editors add them."""
    return text.rstrip("\r\n") if text.endswith("\n") else text


def _headline(command: GenerateCommand, prompts: Sequence[str], number: int) -> str:
    """The line between two texts on the same stream: it shows the next prompt; it is empty with --quiet."""
    if len(prompts) == 1:
        return ""
    gap = "\n" if number else ""
    return gap if command.quiet else f"{gap}--- {number + 1}: {prompts[number]!r}\n"


def _streamed(command: GenerateCommand, generator: Generator, prompts: Sequence[str], how: Decoding) -> list[str]:
    """The texts, each printed while it is written."""
    found = []
    for number, prompt in enumerate(prompts):
        print(_headline(command, prompts, number) + prompt, end="", flush=True)
        pieces = []
        for piece in generator.stream(prompt, how, number):
            print(piece, end="", flush=True)
            pieces.append(piece)
        print()
        found.append("".join(pieces))
    return found


def _whole(command: GenerateCommand, generator: Generator, prompts: Sequence[str], how: Decoding) -> list[str]:
    """The texts, each printed after its prompt."""
    found = generator.generate(prompts, how, command.batch_size)
    for number, (prompt, text) in enumerate(zip(prompts, found, strict=True)):
        print(_headline(command, prompts, number) + (prompt + text.text).strip("\n"))
    return [text.text for text in found]


def _write(path: Path, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """A JSON object a line. Raises StorageError."""
    pairs = zip(prompts, texts, strict=True)
    lines = [json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n" for prompt, text in pairs]
    running.write_output(path, "".join(lines), "--output")


def _generate(command: GenerateCommand, given: Sequence[str]) -> int:
    _check(command)
    prompts, strategy = _prompts(command), _strategy(command, given)
    from ebmvk.decoding.generate import Decoding, Generator
    from ebmvk.engine.device import open_device
    from ebmvk.memory.files import load
    from ebmvk.memory.law import Reader
    from ebmvk.runs.folder import check_tokenizer, open_run

    def note(text: str) -> None:
        if not command.quiet:
            print(text, file=sys.stderr)

    run = open_run(command.checkpoint, "--checkpoint", lambda text: print(text, file=sys.stderr))
    check_tokenizer(command.tokenizer, run)
    device = open_device(command.device)
    sampler = command.sampler or run.model.default_sampler
    note(f"{run.checkpoint.path}, step {run.checkpoint.step:,}; {device.reason}; {sampler}, seed {command.seed}")
    how = Decoding(command.max_tokens, strategy, sampler, command.seed, command.stop)
    memory = None
    if command.memory != "none":
        memory = Reader(load(run.checkpoint.path, run.model, command.memory), command.memory, device.backend)
    generator = Generator(run.model.to(device.torch), run.tokenizer, device.backend, run.config.langevin, memory)
    found = (_streamed if command.stream else _whole)(command, generator, prompts, how)
    if command.output:
        _write(command.output, prompts, found)
    health, rates = generator.health.record(), generator.health.mixing()
    if rates:
        what = "changes of the component" if command.sampler == "gibbs" else "accepted exchanges, by pair of rungs"
        note(f"{what}: {', '.join(f'{rate:.2f}' for rate in rates)}")
    if health:
        note(
            f"{health['chains']:.0f} chains: kinetic temperature {health['kinetic_temperature']:.3f} "
            f"(of {run.config.langevin.langevin_T:g}), energy error {health['energy_error']:.3f} per step, "
            f"tangency {health['tangency']:.1e}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
