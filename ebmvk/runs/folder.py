"""Opens trained runs, and checks that checkpoint, settings, tokenizer and text belong together.

`open_run` reads and verifies a run folder, one checkpoint or an exported model, and returns an
`OpenRun`. The checks here raise CheckpointError with the first thing that doesn't fit.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ebmvk.config.checks import check
from ebmvk.config.schema import Config, ModelConfig, Source
from ebmvk.config.toml import from_toml, write_toml
from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer import TOKENIZER_FILE, Tokenizer
from ebmvk.data.tokenizer_kinds import foreign_tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.engine.seeds import step_seed
from ebmvk.errors import CheckpointError, ConfigError
from ebmvk.model.build import build_model
from ebmvk.model.language import LanguageModel
from ebmvk.runs import checkpoint, hub
from ebmvk.runs.atomic import write_atomic
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.layout import CONFIG_FILE
from ebmvk.runs.manifest import MANIFEST, MODEL
from ebmvk.runs.steps import locate, step_folders
from ebmvk.runs.verified import damaged

_MOST_THREADS = 1 << 12  # more than any machine has processors; libraries crash when they are asked for 2^40


@dataclass(frozen=True)
class OpenRun:
    """A trained model, ready to evaluate and to generate with.

    folder: the run folder, or the exported model.
    """

    folder: Path
    config: Config
    tokenizer: Tokenizer
    model: LanguageModel
    checkpoint: Checkpoint


def new_model(config: Config, tokenizer: Tokenizer, train: TokenStream) -> LanguageModel:
    """An untrained model: seeded weights, and the unigram frequencies of the training split."""
    torch.manual_seed(step_seed(config.run.seed, -1))
    model = build_model(config.model, tokenizer.vocab_size)
    model.start_from_counts(torch.bincount(torch.from_numpy(train.tokens).long(), minlength=tokenizer.vocab_size))
    return model


def digest(stream: TokenStream) -> str:
    """SHA-256 of a stream's token ids. It is equal for the same text through the same tokenizer."""
    return hashlib.sha256(stream.tokens.tobytes()).hexdigest()


def check_same_text(found: Checkpoint, train: TokenStream, config: Config) -> None:
    """Raises CheckpointError if `train` is not the text that a checkpoint was trained on."""
    if found.state.get("train") != digest(train):
        raise CheckpointError(
            f"{found.path}: --dataset {config.data.dataset} is not the text this run was trained on",
            why="the files changed, or a different copy of them was found"
            + (
                ""
                if found.state.get("text")
                else ", or the older ebmvk that saved this checkpoint read other files of the folder"
            ),
            hint="restore the old text, or start a new run with another --run-dir",
        )


def ended_early(folder: Path) -> bool:
    """True if a run ended before its first checkpoint, so it can only begin again."""
    try:
        return (folder / CONFIG_FILE).is_file() and not step_folders(folder)
    except OSError:  # for example, the name is too long; the caller that opens the folder reports it
        return False


def save_config(folder: Path, config: Config, sources: Mapping[str, Source]) -> None:
    """Write the resolved configuration, and for each value its source. Raises StorageError."""
    write_atomic(folder / CONFIG_FILE, write_toml(config, sources).encode())


def read_config(folder: Path) -> Config:
    """The configuration of a run folder.

    Raises CheckpointError if it is missing, ConfigError if it is invalid.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is missing",
            hint="give a run folder that `ebmvk train` wrote, with its config.toml",
        )
    return check(from_toml(folder / CONFIG_FILE))


def read_tokenizer(folder: Path, config: Config) -> Tokenizer:
    """The tokenizer of a run folder. Raises DataError if it is missing or damaged."""
    return Tokenizer.load(folder / TOKENIZER_FILE, config.data.end_token)


def find(path: Path, flag: str, say: Callable[[str], None]) -> tuple[Path, Checkpoint]:
    """(run folder, verified checkpoint) that a checkpoint argument means; for a run folder, its
    newest usable one.
    """
    found = _find(path, flag, say)
    return found.folder, found.checkpoint


@dataclass(frozen=True)
class _Found:
    folder: Path
    config: Config
    tokenizer: Tokenizer
    checkpoint: Checkpoint


def _find(path: Path, flag: str, say: Callable[[str], None]) -> _Found:
    """A checkpoint that is complete and fits the configuration of its run."""
    if hub.is_laid_out(path):
        folder = path.resolve()
        config, found = hub.read(folder)
        tokenizer = read_tokenizer(folder, config)
        check_fits(found, config, tokenizer)
        return _Found(folder, config, tokenizer, found)
    folder, at = locate(path, flag)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    if path.resolve() == folder:
        found = checkpoint.newest_complete(folder, flag, say, lambda one: check_fits(one, config, tokenizer))
    else:
        found = checkpoint.load(at)
        check_fits(found, config, tokenizer)
    return _Found(folder, config, tokenizer, found)


def check_fits(found: Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """Check that a checkpoint holds a model of this configuration.

    Raises:
        CheckpointError: a key or a tensor doesn't fit; the message names the first one.
    """
    check_same_model(found, config, tokenizer)
    _check_threads(found)
    with torch.device("meta"):  # names, shapes and dtypes only; takes no memory
        model = build_model(config.model, tokenizer.vocab_size)
    checkpoint.check_tensors(model, found)
    if fault := model.fault_in(found.model):
        why = "training went wrong before it was saved, or the file was written by something else"
        raise damaged(found.path / MODEL, fault, why)


def _check_threads(found: Checkpoint) -> None:
    threads = found.state.get("threads", 1)  # older checkpoints don't record it
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise damaged(
            found.path / MANIFEST, f"`threads` is {threads!r}; expected a whole number from 1 to {_MOST_THREADS}"
        )


def open_run(path: Path, flag: str, say: Callable[[str], None]) -> OpenRun:
    """Read and verify a trained model.

    Raises:
        CheckpointError: the model is missing or corrupt, or doesn't fit the configuration in the
            run's config.toml.
    """
    found = _find(path, flag, say)
    model = build_model(found.config.model, found.tokenizer.vocab_size)
    checkpoint.restore(model, found.checkpoint)
    return OpenRun(found.folder, found.config, found.tokenizer, model.eval(), found.checkpoint)


def check_tokenizer(given: Path | None, run: OpenRun) -> None:
    """Raises ConfigError if --tokenizer names a tokenizer other than the run's own."""
    if given is None:
        return
    end = run.config.data.end_token
    # Either the run's own file, or the foreign file that it was made from.
    digests = Tokenizer.load(given, end).digest(), foreign_tokenizer(given, Corpus("", "", {}), end).digest()
    if run.tokenizer.digest() not in digests:
        raise ConfigError(
            f"--tokenizer {given} is not the one that {run.folder} was trained with",
            why="the model knows only the tokens of its own tokenizer",
            hint="remove --tokenizer: a run keeps its own",
        )


def model_record(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint records about its model: all that resuming must not change, as JSON
    values.
    """
    kept = {entry.name for entry in dataclasses.fields(ModelConfig) if not entry.metadata.get("resume")}
    model = {name: value for name, value in dataclasses.asdict(config.model).items() if name in kept}
    return model | {"tokens": tokenizer.vocab_size, "tokenizer": tokenizer.digest()}


def check_same_model(found: Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError if checkpoint and settings disagree, with the first key and both
    values.
    """
    saved, now = found.state.get("model"), model_record(config, tokenizer)
    # If a checkpoint lacks a key, an older version saved it, which did what the key's default does
    # now.
    old = dataclasses.asdict(ModelConfig()) | saved if isinstance(saved, dict) else {}
    for key, value in now.items():
        if old.get(key) != value:
            was = old.get(key)
            file = TOKENIZER_FILE if key in ("tokens", "tokenizer") else found.settings
            raise CheckpointError(
                f"{found.path}: model.{key} was {was!r} when it was saved, {file} says {value!r}",
                why="the checkpoint belongs to another configuration",
                hint=f"put back the {found.settings} and {TOKENIZER_FILE} that this checkpoint was saved with",
            )
