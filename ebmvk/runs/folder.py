"""Everything a run works on, built from its configuration or read back from its folder."""

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
from ebmvk.runs import layout as runs
from ebmvk.runs.checkpoint import Checkpoint

CONFIG_FILE = runs.CONFIG_FILE
_MOST_THREADS = 1 << 12  # more than any machine has processors; a library that is asked for 2^40 crashes


@dataclass(frozen=True)
class OpenRun:
    """A trained model, ready to use: what `evaluate` and `generate` need."""

    folder: Path
    config: Config
    tokenizer: Tokenizer
    model: LanguageModel
    checkpoint: Checkpoint


def new_model(config: Config, tokenizer: Tokenizer, train: TokenStream) -> LanguageModel:
    """A model with seeded weights and the training split's unigram frequencies."""
    torch.manual_seed(step_seed(config.run.seed, -1))
    model = build_model(config.model, tokenizer.vocab_size)
    model.start_from_counts(torch.bincount(torch.from_numpy(train.tokens).long(), minlength=tokenizer.vocab_size))
    return model


def digest(stream: TokenStream) -> str:
    """SHA-256 of a stream's ids: the same text through the same tokenizer."""
    return hashlib.sha256(stream.tokens.tobytes()).hexdigest()


def check_same_text(found: Checkpoint, train: TokenStream, config: Config) -> None:
    """Raises CheckpointError where `train` is not the text that a checkpoint was trained on."""
    if found.state.get("train") != digest(train):
        raise CheckpointError(
            f"{found.path}: --dataset {config.data.dataset} is not the text this run was trained on",
            why="the files changed, or another version of them was found"
            + ("" if found.state.get("text") else ", or the version that saved it read other files as its text"),
            hint="bring the old text back, or start a new run with another --run-dir",
        )


def ended_early(folder: Path) -> bool:
    """Whether a run began in the folder and ended before its first checkpoint: it can only begin again."""
    try:
        return (folder / CONFIG_FILE).is_file() and not checkpoint.step_folders(folder)
    except OSError:  # the name is too long, for one; whoever opens the folder says so
        return False


def save_config(folder: Path, config: Config, sources: Mapping[str, Source]) -> None:
    """Write the resolved configuration, each value with where it came from."""
    checkpoint.write_atomic(folder / CONFIG_FILE, write_toml(config, sources).encode())


def read_config(folder: Path) -> Config:
    """The configuration of a run folder. Raises CheckpointError where there is none, ConfigError where it is bad."""
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
    """(run folder, verified checkpoint) of a checkpoint argument; of a run folder, its newest usable checkpoint."""
    found = _find(path, flag, say)
    return found.folder, found.checkpoint


@dataclass(frozen=True)
class _Found:
    folder: Path
    config: Config
    tokenizer: Tokenizer
    checkpoint: Checkpoint


def _find(path: Path, flag: str, say: Callable[[str], None]) -> _Found:
    """A checkpoint that is whole and of its run's configuration."""
    if hub.is_laid_out(path):
        folder = path.resolve()
        config, found = hub.read(folder)
        tokenizer = read_tokenizer(folder, config)
        check_fits(found, config, tokenizer)
        return _Found(folder, config, tokenizer, found)
    folder, at = checkpoint.locate(path, flag)
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    if path.resolve() == folder:
        found = checkpoint.newest_complete(folder, flag, say, lambda one: check_fits(one, config, tokenizer))
    else:
        found = checkpoint.load(at)
        check_fits(found, config, tokenizer)
    return _Found(folder, config, tokenizer, found)


def check_fits(found: Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError naming the first key, or the first tensor, in which a checkpoint is not of a model of this
    configuration."""
    check_same_model(found, config, tokenizer)
    _check_threads(found)
    with torch.device("meta"):  # names, shapes and dtypes, without memory
        model = build_model(config.model, tokenizer.vocab_size)
    checkpoint.check_tensors(model, found)
    if fault := model.fault_in(found.model):
        why = "training went wrong before it was saved, or the file was written by something else"
        raise checkpoint.damaged(found.path / checkpoint.MODEL, fault, why)


def _check_threads(found: Checkpoint) -> None:
    threads = found.state.get("threads", 1)  # older checkpoints have none
    if type(threads) is not int or not 1 <= threads <= _MOST_THREADS:
        raise checkpoint.damaged(
            found.path / checkpoint.MANIFEST, f"says threads {threads!r}, which is no number of them"
        )


def open_run(path: Path, flag: str, say: Callable[[str], None]) -> OpenRun:
    """Read a trained model back, verified.

    Raises:
        CheckpointError: missing, corrupt, or not of the configuration in the run's config.toml.
    """
    found = _find(path, flag, say)
    model = build_model(found.config.model, found.tokenizer.vocab_size)
    checkpoint.restore(model, found.checkpoint)
    return OpenRun(found.folder, found.config, found.tokenizer, model.eval(), found.checkpoint)


def check_tokenizer(given: Path | None, run: OpenRun) -> None:
    """Raises ConfigError where the file that --tokenizer names is not the tokenizer that a run was trained with."""
    if given is None:
        return
    end = run.config.data.end_token
    # A run's own file, or the file from elsewhere that it was made from.
    digests = Tokenizer.load(given, end).digest(), foreign_tokenizer(given, Corpus("", "", {}), end).digest()
    if run.tokenizer.digest() not in digests:
        raise ConfigError(
            f"--tokenizer {given} is not the one that {run.folder} was trained with",
            why="its tokens would be others",
            hint="leave --tokenizer away: a run has its own",
        )


def model_record(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint says about its model, JSON-able: all that a resumed run may not change."""
    kept = {entry.name for entry in dataclasses.fields(ModelConfig) if not entry.metadata.get("resume")}
    model = {name: value for name, value in dataclasses.asdict(config.model).items() if name in kept}
    return model | {"tokens": tokenizer.vocab_size, "tokenizer": tokenizer.digest()}


def check_same_model(found: Checkpoint, config: Config, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError naming the first key on which checkpoint and settings disagree, and both values."""
    saved, now = found.state.get("model"), model_record(config, tokenizer)
    # A checkpoint older than a key was saved by a program that did what the key's default does now.
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
