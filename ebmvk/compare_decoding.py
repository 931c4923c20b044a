"""`ebmvk compare-decoding`, `python -m ebmvk.compare_decoding`: decoding strategies by their figures."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ebmvk import cli
from ebmvk.errors import ConfigError


@dataclass(frozen=True)
class CompareCommand:
    checkpoint: Path  # A run folder (its latest complete checkpoint), or one checkpoint folder.
    judge: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None  # Another run that scores the texts too.
    strategy: tuple[str, ...] = ()  # Which of the named strategies; by default all of them.
    prompts: int = 100  # Passages of the validation text that are continued.
    prompt_tokens: int = 32  # Tokens of a passage that are given.
    max_tokens: int = 128  # Tokens that are written.
    sampler: Literal["langevin", "exact", "gibbs", "tempering", "coarse"] = "exact"  # A state to decode; or p(v|c).
    seed: int = 42  # The same seed gives the same texts.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Local data sets; EBMVK_DATA_DIR.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    json: bool = False  # Print one JSON object instead of a table.


REPEATS = 0.02  # of the tokens, beyond human text, from which repetition is worth a word
FLAGS = cli.known_flags({f.name: f.default for f in dataclasses.fields(CompareCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda: _compare(cli.parse(CompareCommand, args, command="compare-decoding", known=FLAGS)))


def _compare(command: CompareCommand) -> int:
    from ebmvk.data.datasets import resolve
    from ebmvk.data.windows import encode_split
    from ebmvk.decoding.comparison import Judge, Passages, compare
    from ebmvk.decoding.generate import Generator
    from ebmvk.decoding.strategies import NAMED, named
    from ebmvk.training.workspace import OpenRun, open_device, open_run

    for name in ("prompts", "prompt_tokens", "max_tokens"):
        if (value := getattr(command, name)) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below 1", hint="give a number from 1 on")
    strategies = {name: named(name) for name in command.strategy or NAMED}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    device = open_device(command.device)

    def judge(run: OpenRun) -> Judge:
        return Judge(run.model.to(device.torch), run.tokenizer, run.config.data.seq_length)

    run = open_run(command.checkpoint, "--checkpoint", say)
    other = open_run(command.judge, "--judge", say) if command.judge else None
    corpus = resolve(run.config.data.dataset, command.data_dir or run.config.data.data_dir)
    validation = encode_split(corpus, "validation", run.tokenizer)
    sizes = (command.prompts, command.prompt_tokens, command.max_tokens)
    passages = Passages.of(validation, run.tokenizer, *sizes)
    own = judge(run)
    found = compare(
        Generator(own.model, run.tokenizer, device.backend, run.config.langevin),
        own,
        judge(other) if other else None,
        passages,
        strategies,
        sampler=command.sampler,
        length=command.max_tokens,
        seed=command.seed,
        say=say,
    )
    rows = list(found)
    if command.json:
        print(json.dumps({"checkpoint": str(run.checkpoint.path), "seed": command.seed, "rows": rows}))
    else:
        print("\n".join([*_lines(rows), *_advice(rows)]))
    return 0


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table; what does not apply is a dash."""
    head = ("strategy", "repetition", "distinct-1", "-2", "-3", "nats/token", "perplexity", "judge b/B", "tokens/s")
    body = [
        (
            row["strategy"],
            f"{row['repetition_rate']:.1%}",
            *(f"{row[f'distinct_{n}']:.3f}" for n in (1, 2, 3)),
            _figure(row["nats_per_token"], ".3f"),
            "-" if row["nats_per_token"] is None else _figure(math.exp(row["nats_per_token"]), ".1f"),
            _figure(row["judge_bits_per_byte"], ".3f"),
            _figure(row["tokens_per_second"], ",.0f"),
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *body)
    ]


def _advice(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each strategy that repeats itself more than people do."""
    usual = rows[0]["repetition_rate"]
    for row in rows[1:]:
        if row["repetition_rate"] > usual + REPEATS:
            settings = row["settings"]
            more = "--no-repeat-ngram 4" if settings.get("repetition_penalty", 1) > 1 else "--repetition-penalty 1.2"
            yield f"{row['strategy']} repeats itself more than human text: add {more}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


if __name__ == "__main__":
    sys.exit(main())
