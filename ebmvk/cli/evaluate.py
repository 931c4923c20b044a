"""`ebmvk evaluate`: the exact likelihood of a text under a trained model.

`ebmvk.evaluation.measurement` computes the figures; this module asks for them and prints them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ebmvk.cli import calling, parsing, running
from ebmvk.cli.parsing import Include
from ebmvk.cli.signatures import takes
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST

if TYPE_CHECKING:
    from ebmvk.api import Evaluated
    from ebmvk.evaluation.measurement import Text
    from ebmvk.ranks import Handler, Ranks
    from ebmvk.runs.folder import OpenRun


Tokens = Annotated[int | None, tyro.conf.arg(metavar="TOKENS")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
Tiers = Literal["none", "static", "episodic", "both"]


@dataclass(frozen=True)
class EvaluateCommand:
    """Flags of `ebmvk evaluate`; the comments are their help texts."""

    checkpoint: Path = Path(NEWEST)  # A run (its newest usable checkpoint), RUN/best, or one checkpoint.
    dataset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None  # The text to score; by default the run's own.
    data_dir: Folder = None  # Folder of local data sets; by default EBMVK_DATA_DIR.
    include: Include = ()  # Also read files with these names in the folder --dataset, for example '*.py'.
    raw: bool = False  # Read JSON, CSV, HTML and similar files as plain text, markup included.
    test_file: File = None  # Score all of this text file instead of --dataset.
    tokenizer: Folder = None  # Check that this is the run's own tokenizer; another one is refused.
    split: Literal["train", "validation", "test"] = "validation"  # Which part of the text to score.
    limit: Tokens = None  # Score only the first TOKENS.
    context: Tokens = None  # Length of a window; by default seq_length.
    stride: Tokens = None  # Distance between two windows; by default half the context.
    memory: Tiers = "none"  # Tiers of `ebmvk memory` to use; prints figures for each.
    # The most splats that the episodic memory may have; by default 10,000.
    memory_capacity: Annotated[int | None, tyro.conf.arg(metavar="SPLATS")] = None
    scramble_memory: bool = False  # A control: exchange the tokens of the memory's contexts.
    against: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None  # Another run, compared on the same tokens.
    against_memory: Tiers = "none"  # Tiers of its own memory that the run --against uses.
    score_matching: bool = False  # Also print denoising losses, beside those of a denoiser that knows frequencies only.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    json: bool = False  # Print one JSON object instead of lines.


FLAGS = flags.flags_of(EvaluateCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0, or 2 for an EbmvkError."""
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(lambda: running.lead(lambda ranks: _evaluate(_parsed(args), ranks), _followed))


def _parsed(args: Sequence[str]) -> EvaluateCommand:
    return parsing.parse(EvaluateCommand, args, command="evaluate", known=FLAGS, repeatable=("--include",))


@takes(EvaluateCommand, without=("json",))
def evaluate(checkpoint: str | Path, **settings: Any) -> Evaluated:
    """The exact likelihood of a text under a checkpoint, as `ebmvk evaluate` computes it.

    settings: the flags of the command as keyword arguments, such as `split="test"`, `limit=10_000`,
    `test_file="my.txt"`, `memory="both"`, `against="runs/other"` or `device="cpu"`.

    >>> found = ebmvk.evaluate("runs/first", limit=100)
    >>> found.tokens
    100
    >>> found.ppl_token > 1
    True

    Raises:
        ConfigError: a setting is unknown or has a bad value. EbmvkError: any other error that the
            command would print.
    """
    known = [flag for flag in FLAGS if flag not in ("--json", "--no-json")]
    args = calling.arguments("evaluate", {"checkpoint": checkpoint, **settings}, known)
    from ebmvk.api import Evaluated

    record, _, _ = _record(_parsed(args), None)
    figures = ("nats_per_token", "ppl_token", "ppl_word", "bits_per_byte", "tokens", "words", "bytes")
    return Evaluated(record=record, **{name: record[name] for name in figures})


def _followed(ranks: Ranks) -> Mapping[str, Handler]:
    from ebmvk.engine.sharded import Shards

    return Shards(ranks).handlers()


def _check(command: EvaluateCommand) -> None:
    """Check the flags, without the run or torch. Raises ConfigError."""
    if command.test_file and command.dataset:
        raise ConfigError(
            f"--test-file {command.test_file} doesn't work with --dataset {command.dataset}",
            hint="remove one of the two",
        )
    if command.limit is not None and command.limit < 1:
        raise ConfigError(f"--limit {command.limit} is below 1", hint="give a number of tokens")
    if command.memory == "none":
        bounded = command.memory_capacity is not None and command.against_memory == "none"
        if command.scramble_memory or bounded:
            flag = "--scramble-memory" if command.scramble_memory else "--memory-capacity"
            raise ConfigError(f"{flag} needs a memory", hint="add --memory static, episodic or both")
    if command.against_memory != "none" and command.against is None:
        raise ConfigError(f"--against-memory {command.against_memory} needs another run", hint="add --against RUN")
    for flag, mode in (("--memory", command.memory), ("--against-memory", command.against_memory)):
        if command.split == "train" and mode in ("static", "both"):
            raise ConfigError(
                f"{flag} {mode} doesn't work with --split train",
                why="the static splats come from this very text, so each context would find itself",
                hint="use --split validation",
            )


def _evaluate(command: EvaluateCommand, ranks: Ranks | None) -> int:
    record, corpus, device = _record(command, ranks)
    if command.json:
        print(json.dumps(record))
    else:
        _print(record, corpus, device)
    return 0


def _record(command: EvaluateCommand, ranks: Ranks | None) -> tuple[dict[str, Any], str, str]:
    """Returns the figures as JSON values, a line about the text's source, and a line about the
    device.

    ranks: the processes that share the memory, if there are several.
    """
    _check(command)
    from ebmvk.decoding.layers import text_layers
    from ebmvk.engine.device import open_device
    from ebmvk.engine.sharded import sharded
    from ebmvk.evaluation.likelihood import window
    from ebmvk.evaluation.measurement import Subject, measure, score_levels
    from ebmvk.runs.folder import check_tokenizer, open_run
    from ebmvk.runs.known_faults import known_faults

    run = open_run(command.checkpoint, "--checkpoint", _warn)
    for fault in known_faults(run):
        _warn(f"warning: {run.folder} was made by an earlier version. {fault}")
    check_tokenizer(command.tokenizer, run)
    context, stride = window(command.context, command.stride, run.config)
    other = _other(command, run)
    device = open_device(command.device)
    backend = device.backend if ranks is None else sharded(device.backend, ranks, command.device)
    capacity = command.memory_capacity
    layers, why = text_layers(run.model, run.config, device, command.device)
    subject = Subject.open(run, command.memory, backend, capacity, scramble=command.scramble_memory, layers=layers)
    against = None
    if other:
        layers, why_other = text_layers(other.model, other.config, device, command.device)
        why = why or (why_other and f"{why_other} (for {command.against})")
        against = Subject.open(other, command.against_memory, backend, capacity, layers=layers)
    text = _text(command, run)
    record = measure(
        *(subject, text, device),
        context=context,
        stride=stride,
        limit=command.limit,
        against=against,
        scrambled=command.scramble_memory,
    )
    if command.score_matching:
        record["score_matching"] = score_levels(run, text, device, command.limit, command.data_dir)
    there = "the layers run there, too" + (", except for score matching" if command.score_matching else "")
    return record, text.corpus.reason, device.told(why, there)


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _text(command: EvaluateCommand, run: OpenRun) -> Text:
    """The text to score. Warns if it should be the run's own text but isn't."""
    from ebmvk.data.datasets import read_whole, resolve
    from ebmvk.data.files import Reading
    from ebmvk.evaluation.measurement import Text
    from ebmvk.runs.text import NOT_ASKED, compared_by_text, own_text, say_if_other

    reading = Reading(tuple(command.include), command.raw)
    if command.include and not command.dataset:
        raise ConfigError(f"--include {command.include[0]} needs --dataset", hint="add --dataset FOLDER")
    if command.test_file:
        return Text(read_whole(command.test_file, "--test-file", reading), "test", NOT_ASKED)
    data_dir, split = command.data_dir or run.config.data.data_dir, command.split
    if command.dataset:
        corpus = resolve(command.dataset, data_dir, reading)
        return Text(corpus, split, compared_by_text(run, corpus, split))
    corpus = own_text(run.config, data_dir=data_dir)
    return Text(corpus, split, say_if_other(run, corpus, split, _warn))


def _other(command: EvaluateCommand, run: OpenRun) -> OpenRun | None:
    """The run to compare with; None without --against.

    Raises:
        ConfigError: it has another tokenizer, so tokens can't be paired.
    """
    if command.against is None:
        return None
    from ebmvk.runs.folder import open_run

    other = open_run(command.against, "--against", _warn)
    if other.tokenizer.digest() != run.tokenizer.digest():
        raise ConfigError(
            f"--against {command.against}: it has another tokenizer than {run.checkpoint.path}",
            why="it was trained on other text, or with another --vocab-size",
            hint="compare runs with the same text and vocabulary",
        )
    return other


def _print(record: dict[str, Any], corpus: str, device: str) -> None:
    """Print the figures of a record. corpus: where the text comes from; device: what computed
    them."""
    from ebmvk.report.tables import number, per_word, why_no_word

    part = "the whole" if record["whole_split"] else "the beginning of the"
    word = f"{number(per_word(record), ',.3f')}   ({record['words']:,} words)"
    word = why_no_word(record) if per_word(record) is None else word
    print(f"checkpoint            {record['checkpoint']} (step {record['step']:,})")
    print(f"text                  {corpus}")
    print(f"scored                {part} {record['split']} split")
    if record["own_text"] is False and record["own_text_by"]:
        print("                      this isn't the text that the run was trained on")
    print(f"device                {device}")
    print(f"nats per token        {number(record['nats_per_token'], '.5f')}   ({record['tokens']:,} tokens, exact)")
    print(f"perplexity per token  {number(record['ppl_token'], ',.3f')}")
    print(f"perplexity per word   {word}")
    print(f"bits per byte         {number(record['bits_per_byte'], '.5f')}   ({record['bytes']:,} bytes)")
    if record["unknown_characters"]:
        print(f"unknown characters    {record['unknown_characters']:,}   (the nats don't include telling them apart)")
    print(f"context, stride       {record['context']}, {record['stride']}   ({record['seconds']:.1f} s)")
    if record["tiers"]:
        _print_tiers(record)
    if "against" in record:
        base = record["against"]
        nats = number(base["nats_per_token"], ".5f")
        print(f"against               {base['checkpoint']} {_memory_of(base)}: {nats} nats per token")
        if base["memory"] != "none":
            print(f"its memory fitted on  {_fitted_on({**base, 'tokens': record['tokens']})}")
        for mode, difference in base["modes"].items():
            print(f"  {NAMES.get(mode, f'with memory {mode}'):<22}{_gain(difference)}")
    if record.get("score_matching"):
        _print_levels(record["score_matching"])


NAMES = {"none": "no memory", "calibrated": "calibrated, no memory"}  # rows without memory


def _print_tiers(record: dict[str, Any]) -> None:
    """Print a row for each law, with its gain over the laws without memory."""
    from ebmvk.report.tables import number, per_word

    for law, tier in record["tiers"].items():
        word = "" if per_word(tier) is None else f", {number(per_word(tier), ',.3f')} per word"
        print(f"{NAMES.get(law, f'memory {law}'):<22}{number(tier['ppl_token'], ',.3f')} per token{word}")
        if "gain" in tier:
            print(f"  against no memory   {_gain(tier['gain'])}")
        if "gain_over_calibrated" in tier:
            print(f"  against calibrated  {_gain(tier['gain_over_calibrated'])}")
    print(f"memory fitted on      {_fitted_on(record)}")
    if record["calibration"] is None:
        print("calibrated            missing: an earlier version wrote this memory's file. Part of the gain above")
        print("                      may come from flattening the model's law. To compare, run `ebmvk memory`")
    else:
        power = record["calibration"]["power"]
        print(f"calibrated            a gate mixes p_lex with p_lex to the power {power:g}, fitted on the same tokens.")
        print("                      It uses no memory, so a memory should do better")
    if record["scrambled"]:
        print(f"scrambled             {_scrambled(fitted=record['control_fitted'])}")


def _memory_of(base: dict[str, Any]) -> str:
    return "without memory" if base["memory"] == "none" else f"with its own memory {base['memory']}"


def _scrambled(*, fitted: bool) -> str:
    if fitted:
        return "share and gate were fitted to the scrambled memory, on the same tokens as for the true one"
    return "read with the true memory's gate, so it loses more than necessary: an earlier version wrote the file"


def _fitted_on(record: dict[str, Any]) -> str:
    fitted_on, here = record["fitted_on"], record["in_sample_tokens"]
    if fitted_on is None:
        return "a text that an earlier version did not record; figures for that text are in sample, so too good"
    text = f"{fitted_on['tokens']:,} tokens of {fitted_on['text']}"
    if not here:
        return f"{text}; this text has none of them"
    return f"{text}: {here:,} of the {record['tokens']:,} here. Figures with memory are in sample, so too good"


def _print_levels(levels: list[dict[str, Any]]) -> None:
    """Print a line for each noise level. 1 - L_kappa is 0 for a score of zero; a model should beat
    the denoiser that knows frequencies only.
    """
    from ebmvk.report.tables import DASH, below, number

    print(f"score matching        L_kappa over {levels[0]['tokens']:,} tokens, kappa_c = sqrt(2 d ln V)")
    for level in levels:
        kappa, angle = (number(level[name], ".1f") for name in ("kappa", "angle"))
        noise = f"kappa {kappa}, {angle} degrees, sigma {number(level['sigma'], '.3g')}"
        ratio = (
            f", below it by {below(level)}"
            if below(level) != DASH
            else "; the unigram denoiser makes no errors, so there is no ratio"
        )
        print(
            f"  {level['name'] or 'level':<20}{noise}: 1 - L {number(level['explained'])}, "
            f"unigram Bayes {number(1 - level['unigram_loss'])}{ratio}"
        )


def _gain(gain: dict[str, Any]) -> str:
    from ebmvk.evaluation.intervals import basis
    from ebmvk.report.tables import number

    low, high = number(gain["low"], "+.4f"), number(gain["high"], "+.4f")
    interval = "no interval: " if gain["low"] is None else f"95 % {low} to {high}, "
    return f"{number(gain['nats_per_token'], '+.4f')} nats per token ({interval}{basis(gain)})"


if __name__ == "__main__":
    sys.exit(main())
