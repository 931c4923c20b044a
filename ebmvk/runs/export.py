"""Writes a checkpoint as a folder in the layout that model hubs use (`ebmvk.runs.hub` reads it)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ebmvk
from ebmvk.config.schema import Config, replace
from ebmvk.config.toml import to_tables
from ebmvk.data.tokenizer import TOKENIZER_FILE
from ebmvk.errors import CheckpointError, ConfigError
from ebmvk.runs.atomic import storage_error, write_file
from ebmvk.runs.folder import OpenRun
from ebmvk.runs.hub import CARD, FORMAT, KIND, SETTINGS, is_hub_name
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.runs.manifest import MODEL
from ebmvk.runs.progress import Progress
from ebmvk.runs.verified import describe


def write(run: OpenRun, target: Path, card: str) -> list[Path]:
    """Write an open checkpoint into a new or empty folder, and return the files.

    card: the text of the README.md; `ebmvk.report.model_card` writes it.

    Raises:
        ConfigError: the folder isn't empty. CheckpointError: a file of the checkpoint has vanished
            since it was opened.
        StorageError: writing failed; what was written is removed again.
    """
    Progress.of(run.checkpoint)  # whoever reads the folder needs it: fail before anything is written
    target = _empty(target)
    contents, unfinished = _contents(run), target.with_name(f".{target.name}.unfinished")
    settings = _settings(public(run.config), run, contents[MODEL])
    contents |= {SETTINGS: (json.dumps(settings, indent=1) + "\n").encode(), CARD: card.encode()}
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, content in contents.items():
            write_file(unfinished / name, content)
        unfinished.rename(target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise storage_error(target, error, "exporting the model", "export again") from error
    return sorted(target.iterdir())


def _empty(target: Path) -> Path:
    """The folder, resolved. Raises ConfigError unless it is empty or doesn't exist."""
    try:
        target = target.resolve()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"--to {target} is not an empty folder", hint="use another folder, or delete this one")
    except (OSError, RuntimeError) as error:  # the name is too long, links form a circle
        raise ConfigError(f"--to {target}: {error}", hint="use another folder") from None
    return target


def _contents(run: OpenRun) -> dict[str, bytes]:
    """{name: content} of the files that are copied, including the memory if there is one."""
    files, memory = (run.checkpoint.path / MODEL, run.folder / TOKENIZER_FILE), run.checkpoint.path / MEMORY_FILE
    try:
        return {file.name: file.read_bytes() for file in (*files, *([memory] if memory.exists() else []))}
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: {error.strerror or error}",
            why="the run has gone on and deleted this checkpoint, or the disk failed",
            hint="export the run's latest checkpoint, or one that `best` names",
        ) from error


def public(config: Config) -> Config:
    """The configuration with only the last part of each path, to hide this machine's folders."""
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
    """The content of config.json."""
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
