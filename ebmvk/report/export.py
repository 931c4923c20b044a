"""Writing a trained model as a folder laid out as model hubs have them (`ebmvk.runs.hub` reads it)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ebmvk
from ebmvk.config.schema import Config, replace
from ebmvk.config.toml import to_tables, write_toml
from ebmvk.data.tokenizer import TOKENIZER_FILE
from ebmvk.errors import CheckpointError, ConfigError
from ebmvk.memory.files import fitted_nats
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.report.tables import against_trigram, number, per_word
from ebmvk.runs.checkpoint import MODEL, describe, storage_error, write_file
from ebmvk.runs.folder import OpenRun
from ebmvk.runs.hub import CARD, FORMAT, KIND, SETTINGS, is_hub_name
from ebmvk.runs.known_faults import known_faults
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.runs.metrics import History, read_history
from ebmvk.runs.progress import Progress


def write(run: OpenRun, target: Path) -> list[Path]:
    """Write an open checkpoint into a folder that is empty or not there yet; its files.

    Raises:
        ConfigError: the folder holds something. StorageError: nothing is left of it. CheckpointError: what is to be
        copied has vanished since it was opened.
    """
    progress, config = Progress.of(run.checkpoint), _public(run.config)
    try:
        target = target.resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"--to {target} is not an empty folder", hint="take another folder, or delete that one")
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise ConfigError(f"--to {target}: {error}", hint="take another folder") from None
    contents, unfinished = _contents(run), target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, content in contents.items():
            write_file(unfinished / name, content)
        settings = _settings(config, run, contents[MODEL])
        write_file(unfinished / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
        write_file(unfinished / CARD, ("\n".join(_card(config, run, progress.tokens)) + "\n").encode())
        unfinished.rename(target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise storage_error(target, error, "exporting the model", "export again") from error
    return sorted(target.iterdir())


def _contents(run: OpenRun) -> dict[str, bytes]:
    """The files that are copied; of a checkpoint, the memory only if it has one."""
    files, memory = (run.checkpoint.path / MODEL, run.folder / TOKENIZER_FILE), run.checkpoint.path / MEMORY_FILE
    try:
        return {file.name: file.read_bytes() for file in (*files, *([memory] if memory.exists() else []))}
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: {error.strerror or error}",
            why="the run went on meanwhile and deleted this checkpoint, or the disk failed",
            hint="export the run's latest checkpoint, or one that `best` names",
        ) from error


def _public(config: Config) -> Config:
    """Without this machine's folders."""
    init = config.training.init
    names = {
        "dataset": _last_part(config.data.dataset),
        "tokenizer": _last_part(config.data.tokenizer),
        "init": init if is_hub_name(init) else _last_part(init),
    }
    return replace(config, {"data_dir": None} | names)


def _last_part(path: str) -> str:
    return Path(path).name or path


def _settings(config: Config, run: OpenRun, weights: bytes) -> dict[str, Any]:
    state = run.checkpoint.state
    return {
        "model_type": KIND,
        "format": FORMAT,
        "ebmvk": ebmvk.__version__,
        "step": run.checkpoint.step,
        "weights": describe(weights),
        "state": {key: state[key] for key in ("progress", "model", "revision", "train", "text") if key in state},
        "config": to_tables(config),
    }


# ---- the card ------------------------------------------------------------------------------------------------------

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


def _card(config: Config, run: OpenRun, tokens: int) -> Iterator[str]:
    found, history = run.checkpoint, read_history(run.folder)
    yield HEAD.format(
        model=config.model.model,
        corpus=history.facts.get("corpus", {}).get("name", config.data.dataset),
        step=found.step,
        version=ebmvk.__version__,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        vocabulary=run.tokenizer.vocab_size,
        train=found.state.get("train", "unknown"),
        text="".join(f", of the {split} text: {sha256}" for split, sha256 in found.state.get("text", {}).items()),
        tokens=tokens,
        seed=config.run.seed,
        torch=history.facts.get("torch", "of an unknown version"),
    )
    yield from _figures(found.step, history)
    yield from (f"- Made by an earlier version. {fault}" for fault in known_faults(run))
    yield from _memory(found.path)
    yield USE.format(toml=write_toml(config))


def _memory(folder: Path) -> Iterator[str]:
    """Lines on the memory, if there is one: its worth on the text it was fitted on, beside a calibration without it."""
    if not (folder / MEMORY_FILE).exists():
        return
    nats, fitted_on = fitted_nats(folder), FittedOn.read(folder / MEMORY_FILE)
    if fitted_on is None or "calibrated" not in nats:
        yield "- With a memory that an earlier version built, without a calibration to compare it with."
        return
    names = {"none": "no memory", "calibrated": "no memory, but the model's law calibrated on the same tokens"}
    figures = "; ".join(f"{names.get(law, law)}, {value:.4f}" for law, value in nats.items())
    yield (
        f"- With a memory. Nats per token of {fitted_on.text} (its first {fitted_on.tokens:,} tokens, on which the "
        f"memory was fitted, so the figures flatter it): {figures}."
    )


def _figures(step: int, history: History) -> Iterator[str]:
    """Of this very step, or none: another step is another model."""
    end = history.end if history.end and history.end["step"] == step else None
    row = end or next((row for row in history.evals if row["step"] == step), None)
    if row is None:
        yield "- Not evaluated at this step."
        return
    figures = row["validation"]
    word = "" if per_word(figures) is None else f", {number(per_word(figures), ',.3f')} per word"
    yield (
        f"- Validation ({'all' if end else 'a first part'} of it: {figures['tokens']:,} tokens, context "
        f"{figures['context']}, stride {figures['stride']}), exact: {number(figures['nats_per_token'])} nats per "
        "token, "
        f"perplexity {number(figures['ppl_token'], ',.3f')} per token{word}, {number(figures['bits_per_byte'])} bits "
        "per byte."
    )
    if end:
        yield f"- Beside a Kneser-Ney trigram: {against_trigram(figures, end['trigram'])}."
