"""`ebmvk compare-decoding`: a table that compares decoding strategies with human text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.decoding.metrics import GRAM
from ebmvk.decoding.strategies import NAMED, UNCHANGED, Strategy, named
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST
from ebmvk.sampling import registry
from ebmvk.sampling.registry import SamplerName


@dataclass(frozen=True)
class CompareCommand:
    # The model: a run folder (its latest complete checkpoint), RUN/best, or a checkpoint folder.
    checkpoint: Path = Path(NEWEST)
    # Another run that scores the texts too; it may have another tokenizer.
    judge: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    # Named strategies to compare, such as nucleus or greedy; by default all.
    strategy: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    # Settings of your own: any of these adds a row, "custom".
    token_law: Strategy = field(default=UNCHANGED, metadata={"group": 'Settings of the row "custom"'})
    prompts: int = 100  # Number of passages of the validation text to continue.
    prompt_tokens: int = 32  # Number of tokens of each passage that are given to the model.
    max_tokens: int = 128  # Number of tokens that the model writes.
    # How tokens are drawn; the documentation compares the samplers.
    sampler: Annotated[SamplerName, tyro.conf.arg(help=registry.HELP)] = registry.WITHOUT_STATES
    seed: int = 42  # The same seed gives the same texts.
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None  # Where the run's text is, if it has moved.
    # Folder of local data sets; by default that of EBMVK_DATA_DIR.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    json: bool = False  # Print one JSON object instead of a table.


CUSTOM = "custom"  # the row of the settings that flags give
COLUMNS = {
    "repetition": ("repetition_rate", ".1%"),
    **{f"distinct-{n}": (f"distinct_{n}", ".3f") for n in (1, 2, 3)},
    "nats/token": ("nats_per_token", ".3f"),
    "PPL/token": ("perplexity", ".1f"),
}
"""{head: (figure, format)}."""
REPEATS = 0.02  # advise against repetition if the share of repeated tokens exceeds that of human text by this
FLAGS = flags.flags_of(CompareCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(
        lambda: _compare(
            parsing.parse(CompareCommand, args, command="compare-decoding", known=FLAGS, repeatable=("--strategy",)),
            flags.flags_in(args),
        )
    )


def _compare(command: CompareCommand, given: Sequence[str]) -> int:
    from ebmvk.data.windows import encode_split
    from ebmvk.decoding.generate import Generator
    from ebmvk.decoding.layers import text_layers, token_layers
    from ebmvk.engine.device import open_device
    from ebmvk.evaluation.comparison import Judge, Passages, compare
    from ebmvk.runs.folder import OpenRun, open_run
    from ebmvk.runs.text import own_text, say_if_other

    for name in ("prompts", "prompt_tokens", "max_tokens"):
        if (value := getattr(command, name)) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below 1", hint="give 1 or more")
    strategies = {name: named(name) for name in command.strategy or NAMED}
    if own_settings := flags.settings_of(command.token_law, Strategy, given):
        strategies[CUSTOM] = Strategy(**own_settings)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    device = open_device(command.device)

    def judge(run: OpenRun) -> Judge:
        layers, _ = text_layers(run.model, run.config, device, command.device)
        return Judge(run.model.to(device.torch), run.tokenizer, run.config.data.seq_length, layers)

    run = open_run(command.checkpoint, "--checkpoint", say)
    other = open_run(command.judge, "--judge", say) if command.judge else None
    corpus = own_text(run.config, command.dataset, command.data_dir)
    compared = say_if_other(run, corpus, "validation", say)
    validation = encode_split(corpus, "validation", run.tokenizer)
    sizes = (command.prompts, command.prompt_tokens, command.max_tokens)
    passages = Passages.of(validation, run.tokenizer, *sizes)
    own = judge(run)
    layers, why = token_layers(run.model, run.config, device, command.device, say)
    if device.backend.name == "vulkan":
        say(f"device      {device.told(why)}")
    found = compare(
        Generator(own.model, run.tokenizer, device.backend, run.config.langevin, layers=layers),
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
        said = {"checkpoint": str(run.checkpoint.path), "seed": command.seed, **compared.record(), "rows": rows}
        print(json.dumps(said))
    else:
        print("\n".join([*_lines(rows), *_advice(rows)]))
    return 0


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The table; a dash stands for what doesn't apply.

    A line below it explains a perplexity per byte.
    """
    unit = rows[0]["judge_unit"]
    judged = {
        f"judge PPL/{unit}": ("judge_perplexity", ".1f" if unit == "token" else ".3f"),
        "judge b/B": ("judge_bits_per_byte", ".3f"),
    }
    columns = COLUMNS | (judged if unit else {}) | {"tokens/s": ("tokens_per_second", ",.0f")}
    head = ("strategy", *columns)
    body = [(row["strategy"], *(_figure(row[name], form) for name, form in columns.values())) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    for row in (head, *body):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if unit == "byte":
        yield "The judge and the model have different tokens, so the perplexity is per byte: 2^(bits per byte)."


def _advice(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line of advice for each strategy that repeats itself more than human text.

    Short texts give no advice: with fewer than `ENOUGH` tokens, chance alone can make a difference
    of `REPEATS`.
    """
    from ebmvk.evaluation.intervals import ENOUGH

    if rows[0]["tokens"] < ENOUGH:
        return
    usual = rows[0]["repetition_rate"]
    for row in rows[1:]:
        if row["repetition_rate"] > usual + REPEATS:
            yield f"{row['strategy']} repeats itself more than human text: add {_against_repetition(row['settings'])}"


def _against_repetition(settings: Mapping[str, float]) -> str:
    """A flag against repetition, with a value that the strategy doesn't have yet."""
    penalty, ngram = settings.get("repetition_penalty", 1.0), settings.get("no_repeat_ngram", 0)
    if penalty <= 1:
        return "--repetition-penalty 1.2"
    return f"--repetition-penalty {penalty + 0.1:.3g}" if 0 < ngram <= GRAM else f"--no-repeat-ngram {GRAM}"


def _figure(value: float | None, form: str) -> str:
    from ebmvk.report.tables import number

    return number(value, form)


if __name__ == "__main__":
    sys.exit(main())
