"""Writes the card of an exported model: a README.md with exact figures, how to use it, and its
settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ebmvk
from ebmvk.config.toml import write_toml
from ebmvk.memory.files import fitted_nats
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.report.tables import number, per_word
from ebmvk.report.trigram import against_trigram
from ebmvk.runs.export import public
from ebmvk.runs.folder import OpenRun
from ebmvk.runs.known_faults import known_faults
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.runs.metrics import History, read_history
from ebmvk.runs.progress import Progress

HEAD = """---
library_name: ebmvk
pipeline_tag: text-generation
tags: [ebmvk, {model}]
---

# {model}, {corpus}, step {step:,}

A language model of ebmvk {version}: `--model {model}`, {parameters:,} parameters, {vocabulary:,} tokens.

- Data set: {corpus}; SHA-256 of the training text's tokens: {train}{text}.
- Trained for {step:,} steps on {tokens:,} tokens, seed {seed}, under torch {torch}."""
USE = """
## Use

```sh
python -m ebmvk.generate --checkpoint FOLDER --prompt "The"
python -m ebmvk.evaluate --checkpoint FOLDER --test-file FILE
```

```python
import ebmvk

model = ebmvk.Model.open("FOLDER")
```

## Training

`python -m ebmvk.train --config FILE.toml`, with these settings in the file:

```toml
{toml}```"""


def model_card(run: OpenRun) -> str:
    """The card of an open checkpoint, in Markdown."""
    return "\n".join(_lines(run)) + "\n"


def _lines(run: OpenRun) -> Iterator[str]:
    found, config, history = run.checkpoint, public(run.config), read_history(run.folder)
    yield HEAD.format(
        model=config.model.model,
        corpus=history.facts.get("corpus", {}).get("name", config.data.dataset),
        step=found.step,
        version=ebmvk.__version__,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        vocabulary=run.tokenizer.vocab_size,
        train=found.state.get("train", "unknown"),
        text="".join(f", of the {split} text: {sha256}" for split, sha256 in found.state.get("text", {}).items()),
        tokens=Progress.of(found).tokens,
        seed=config.run.seed,
        torch=history.facts.get("torch", "of an unknown version"),
    )
    yield from _figures(found.step, history)
    yield from (f"- Made by an earlier version. {fault}" for fault in known_faults(run))
    yield from _memory(found.path)
    yield USE.format(toml=write_toml(config))


def _memory(folder: Path) -> Iterator[str]:
    """A line about the memory, if there is one: its gain on the text that it was fitted on, beside
    a calibration.
    """
    if not (folder / MEMORY_FILE).exists():
        return
    nats, fitted_on = fitted_nats(folder), FittedOn.read(folder / MEMORY_FILE)
    if fitted_on is None or "calibrated" not in nats:
        yield "- Has a memory, built by an earlier version without a calibration to compare it with."
        return
    names = {"none": "no memory", "calibrated": "no memory, but the model calibrated on the same tokens"}
    figures = "; ".join(f"{names.get(law, law)}, {value:.4f}" for law, value in nats.items())
    yield (
        f"- Has a memory. Nats per token on the first {fitted_on.tokens:,} tokens of {fitted_on.text}, on which the "
        f"memory was fitted, so the figures flatter it: {figures}."
    )


def _figures(step: int, history: History) -> Iterator[str]:
    """The validation figures of this very step, if it was evaluated; another step is another
    model."""
    end = history.end if history.end and history.end["step"] == step else None
    row = end or next((row for row in history.evals if row["step"] == step), None)
    if row is None:
        yield "- Not evaluated at this step."
        return
    figures = row["validation"]
    word = "" if per_word(figures) is None else f", {number(per_word(figures), ',.3f')} per word"
    yield (
        f"- Validation ({'all' if end else 'the first part'} of it: {figures['tokens']:,} tokens, context "
        f"{figures['context']}, stride {figures['stride']}), exact: {number(figures['nats_per_token'])} nats per "
        "token, "
        f"perplexity {number(figures['ppl_token'], ',.3f')} per token{word}, {number(figures['bits_per_byte'])} bits "
        "per byte."
    )
    if end:
        said = against_trigram(figures, end["trigram"])
        yield f"- {said[0].upper()}{said[1:]}. The trigram is a Kneser-Ney one, counted on the same training text."
