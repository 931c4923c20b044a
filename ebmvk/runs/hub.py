"""Reads exported models: folders in the layout that model hubs use.

Such a folder holds model.safetensors, tokenizer.json, config.json (settings, the run's progress,
size and SHA-256 of the weights), README.md (a card with exact figures) and, if the checkpoint has
one, the memory. `ebmvk.runs.export` writes it. It has no optimiser state, so it can be evaluated
and started from with `--init`, but not resumed. Files may be links, as in a hub's cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from ebmvk.config.checks import check
from ebmvk.config.schema import Config
from ebmvk.config.toml import from_tables
from ebmvk.errors import CheckpointError
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.manifest import MANIFEST, MODEL
from ebmvk.runs.verified import read_json, read_tensors

FORMAT = 1
SETTINGS, CARD = "config.json", "README.md"
KIND = "ebmvk"  # model_type in config.json


def is_laid_out(path: Path) -> bool:
    """True if a folder has the layout of a hub's model, of any library."""
    try:
        return (path / SETTINGS).is_file() and (path / MODEL).is_file() and not (path / MANIFEST).exists()
    except (OSError, ValueError):  # for example, the name is too long; the caller that opens the folder reports it
        return False


def is_exported(path: Path) -> bool:
    """True if a folder says that it is a model of this library. Raises CheckpointError if
    config.json isn't JSON.
    """
    return is_laid_out(path) and read_json(path / SETTINGS).get("model_type") == KIND


def read(folder: Path) -> tuple[Config, Checkpoint]:
    """Settings and weights of an exported model, verified.

    Raises:
        CheckpointError: a file or a tensor is missing or changed; the message names it.
            ConfigError: a setting is invalid.
    """
    file = folder / SETTINGS
    settings = read_json(file)
    wanted = {"format": int, "step": int, "weights": dict, "state": dict, "config": dict}
    if settings.get("model_type") != KIND or any(type(settings.get(k)) is not t for k, t in wanted.items()):
        raise _foreign(file, f"not a model of ebmvk: it needs model_type {KIND!r}, {', '.join(wanted)}")
    if settings["format"] != FORMAT:
        raise _foreign(file, f"it has format {settings['format']}; this version reads format {FORMAT}")
    config = check(from_tables(settings["config"], file))
    weights = read_tensors(folder / MODEL, settings["weights"])
    return config, Checkpoint(folder, settings["step"], weights, None, settings["state"], {}, SETTINGS)


def _foreign(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: {what}", hint="give a folder that `ebmvk export` wrote, or a run folder")


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(init: str) -> bool:
    """True for OWNER/NAME, unless it is a file or folder on this machine."""
    path = Path(init)
    return bool(_HUB_NAME.fullmatch(init)) and not path.suffix and not path.parent.exists()
