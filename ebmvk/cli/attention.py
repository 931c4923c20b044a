"""`ebmvk attention`: what each head looks at, and what each expert is for."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST


@dataclass(frozen=True, kw_only=True)
class AttentionCommand:
    out: Path  # Folder for attention.json, attention.svg and, if the model has experts, experts.csv.
    checkpoint: Path = Path(NEWEST)  # A run folder (latest complete checkpoint), RUN/best, or a checkpoint.
    text: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None  # Text to read; default: start of validation.
    tokens: int = 48  # Read at most this many tokens of the text.
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None  # Path of the run's text, if it has moved.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Local data sets; default: EBMVK_DATA_DIR.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.


FLAGS = flags.flags_of(AttentionCommand)
EXPERT_TOKENS = 32_768  # validation tokens that show what experts are for


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(AttentionCommand, _attention, argv, command="attention", known=FLAGS)


def _attention(command: AttentionCommand) -> int:
    if command.tokens < 1:
        raise ConfigError(f"--tokens {command.tokens} is below 1", hint="give a number of tokens")
    from ebmvk.data.windows import encode_split
    from ebmvk.engine.device import open_device
    from ebmvk.model import inspection
    from ebmvk.runs.folder import open_run
    from ebmvk.runs.text import own_text, say_if_other

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    run = open_run(command.checkpoint, "--checkpoint", say)
    device = open_device(command.device)
    model = run.model.to(device.torch)
    corpus = own_text(run.config, command.dataset, command.data_dir)
    own = say_if_other(run, corpus, "validation", say)
    validation = encode_split(corpus, "validation", run.tokenizer).tokens
    text = validation if command.text is None else run.tokenizer.encode_prompt(command.text)
    experts = inspection.specialisation_in(model, validation[:EXPERT_TOKENS])
    found = inspection.record(model, run.tokenizer, text[: command.tokens], experts) | own.record()
    _write(command.out, found, [] if not experts else list(inspection.expert_table(run.tokenizer, experts)))
    _print(found)
    print(command.out)
    return 0


def _write(out: Path, found: dict[str, Any], experts: Sequence[Sequence[str | int | float]]) -> None:
    """Write the files. experts: rows of experts.csv, empty for a model without experts."""
    from ebmvk.report.drawing import draw
    from ebmvk.report.shared import heads
    from ebmvk.report.svg import alone

    picture = heads(found["attention"], found["tokens"])
    running.write_output(out / "attention.json", json.dumps(found, ensure_ascii=False), "--out")
    running.write_output(out / "attention.svg", alone(draw(picture.chart, picture.title)), "--out")
    if experts:
        table = io.StringIO()
        csv.writer(table).writerows(experts)
        running.write_output(out / "experts.csv", table.getvalue(), "--out")


def _print(found: dict[str, Any]) -> None:
    print(f"{'layer':<28}{'head':>5}{'entropy':>10}{'back':>8}    (entropy in nats; back: mean distance in tokens)")
    for own in found["attention"]:
        for head, (nats, back) in enumerate(zip(own["entropy"], own["distance"], strict=True), start=1):
            print(f"{own['layer']:<28}{head:>5}{nats:>10.3f}{back:>8.2f}")
    for own in found["experts"]:
        for expert, (load, top) in enumerate(zip(own["load"], own["top"], strict=True), start=1):
            tokens = ", ".join(f"{token!r} {share:.0%}" for token, share in top)
            print(f"{own['layer']}, expert {expert}: {load:.1%} of all tokens; {tokens}")


if __name__ == "__main__":
    sys.exit(main())
