"""What a run prints before its first step and after its last one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ebmvk.config.schema import Config, Source, concerns, flag, items
from ebmvk.config.schema import replace as replace_values
from ebmvk.config.sizes import derive
from ebmvk.host import terminal
from ebmvk.host.invocation import invocation
from ebmvk.host.resources import amount
from ebmvk.runs.layout import SAMPLES_FILE
from ebmvk.training import optim
from ebmvk.training.job import Job

TOLD = ("model", "size", "device", "dataset")  # printed on lines of their own
SAYS: dict[Source, str] = {
    "flag": "by flags",
    "file": "by a file",
    "preset": "by preset",
    "stage": "by stage",
    "derived": "derived",  # from the text, the processor, or another value
}
LEFT = terminal.LABEL + len("1  …")  # columns of a sample's line that aren't its text
JUMP = 1.25  # a learning rate that changes by this factor or more is reported
SAMPLES, SHOWN = 3, 100  # samples at the end of a run, and characters of each, if the terminal has the room


def opening(config: Config, facts: Mapping[str, Any]) -> Iterator[str]:
    """Lines on the model and the run. facts: the row that starts a run."""
    model, training = config.model, config.training
    yield (
        f"model       {model.model}, size {config.run.size}: {facts['parameters']:,} parameters, "
        f"{model.n_layers} layers of width {model.latent_dim}"
    )
    yield (
        f"training    {training.steps:,} steps of {training.windows_per_step} × {config.data.seq_length} tokens, "
        f"{training.steps / facts['steps_per_epoch']:.2g} epochs of {facts['text']['train']['tokens']:,}"
    )
    yield from unknown(facts["text"])


def details(job: Job, facts: Mapping[str, Any]) -> Iterator[str]:
    """Lines for --verbose: sizes of the text, and the settings that differ from the defaults of the
    size, by where they came from.
    """
    train, validation = facts["text"]["train"], facts["text"]["validation"]
    yield (
        f"tokens      {train['tokens']:,} to train on ({amount(train['bytes'])}), "
        f"{validation['tokens']:,} to validate, vocabulary {facts['vocabulary']:,}"
    )
    config, shown = job.config, dict[str, list[str]]()
    usual = replace_values(Config(), derive(config.run.size, None))
    for (section, name, value), (_, _, common) in zip(items(config), items(usual), strict=True):
        source = job.sources.get(name, "default")
        # In a run that an earlier version resumed, all values are marked as coming from a file.
        said = source in SAYS and not (source == "file" and value == common)
        if said and value is not None and name not in TOLD and concerns(config, section, name):
            shown.setdefault(source, []).append(f"{name} {value}")
    yield f"settings    --model {config.model.model} --size {config.run.size}"
    for kind, words in SAYS.items():
        if kind in shown:
            yield f"  {words:<10}{', '.join(shown[kind])}"


def jump(before: Config, now: Config, step: int) -> str | None:
    """A line if changed settings make the learning rate jump at the next step; None if it continues
    smoothly.
    """
    names = ("learning_rate", "steps", "warmup_steps")
    old, new = (optim.lr_at(step, config.training) for config in (before, now))
    if max(old, new) < JUMP * min(old, new):
        return None
    changed = [
        f"{flag(name)} {getattr(before.training, name):g}, now {getattr(now.training, name):g}"
        for name in names
        if getattr(before.training, name) != getattr(now.training, name)
    ]
    return f"rate        the learning rate jumps from {old:.2g} to {new:.2g} at step {step + 1}: {'; '.join(changed)}"


def unknown(text: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A line for each split that has characters the tokenizer doesn't know."""
    for split, size in text.items():
        if size["unknown"]:
            yield (
                f"unknown     {size['unknown']:,} characters of the {split} text are unknown tokens: "
                "the likelihood does not cover which ones they are"
            )


def samples(folder: Path) -> Iterator[str]:
    """Lines with the start of a run's newest samples, without characters that control a
    terminal."""
    try:
        text = (folder / SAMPLES_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    _, *parts = re.split(r"(?m)^--- step (\d+), sample \d+\b.*$", text)
    steps, texts = parts[::2], parts[1::2]
    newest = [own for step, own in zip(steps, texts, strict=True) if step == steps[-1]]
    room = min(SHOWN, (terminal.width() or SHOWN + LEFT) - LEFT)
    for number, own in enumerate(newest[:SAMPLES], start=1):
        line = " ".join(own.split())
        line = terminal.printable(line)
        yield f"{'samples' if number == 1 else '':<12}{number}  {line[:room]}{'…' if len(line) > room else ''}"


def next_steps(folder: Path, *, tested: bool) -> Iterator[str]:
    """Commands to run next. tested: the corpus has a test split."""
    at = f"--checkpoint {shlex.quote(str(folder))}"
    yield f"next        {invocation('generate')} {at}"
    yield f"            {invocation('evaluate')} {at}{' --split test' if tested else ''}"
    yield f"            {invocation('diagnose')} {at} --report"
