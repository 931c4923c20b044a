"""A trained model as a folder of its own, laid out as model hubs have them: what it holds, and reading it back.

model.safetensors, tokenizer.json, config.json (settings, progress of the run, size and SHA-256 of the weights),
README.md (a card with exact figures) and the memory, if the checkpoint has one; `ebmvk.report.export` writes it.
There is no optimiser: such a model is read, evaluated, and begun from with `--init`, but not resumed. Files may be
links, as in a hub's cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from ebmvk.config.checks import check
from ebmvk.config.schema import Config
from ebmvk.config.toml import from_tables
from ebmvk.errors import CheckpointError
from ebmvk.runs.checkpoint import MANIFEST, MODEL, Checkpoint, read_json, read_tensors

FORMAT = 1
SETTINGS, CARD = "config.json", "README.md"
KIND = "ebmvk"  # what config.json says the model is


def is_laid_out(path: Path) -> bool:
    """Whether a folder is laid out as models on a hub are, of whatever library."""
    try:
        return (path / SETTINGS).is_file() and (path / MODEL).is_file() and not (path / MANIFEST).exists()
    except (OSError, ValueError):  # the name is too long, for one; whoever opens the folder says so
        return False


def is_exported(path: Path) -> bool:
    """Whether a folder is a model of this library, by its own word. Raises CheckpointError where that is no JSON."""
    return is_laid_out(path) and read_json(path / SETTINGS).get("model_type") == KIND


def read(folder: Path) -> tuple[Config, Checkpoint]:
    """Settings and weights of an exported model, verified.

    Raises:
        CheckpointError: naming the file or the tensor that is missing or changed. ConfigError: a setting is bad.
    """
    file = folder / SETTINGS
    settings = read_json(file)
    wanted = {"format": int, "step": int, "weights": dict, "state": dict, "config": dict}
    if settings.get("model_type") != KIND or any(type(settings.get(k)) is not t for k, t in wanted.items()):
        raise _foreign(file, f"no model of ebmvk: it needs model_type {KIND!r}, {', '.join(wanted)}")
    if settings["format"] != FORMAT:
        raise _foreign(file, f"format {settings['format']}, this version reads {FORMAT}")
    config = check(from_tables(settings["config"], file))
    weights = read_tensors(folder / MODEL, settings["weights"])
    return config, Checkpoint(folder, settings["step"], weights, None, settings["state"], {}, SETTINGS)


def _foreign(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: {what}", hint="give a folder that `ebmvk export` wrote, or a run folder")


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(init: str) -> bool:
    """Whether it is OWNER/NAME, and no file or folder of this machine."""
    path = Path(init)
    return bool(_HUB_NAME.fullmatch(init)) and not path.suffix and not path.parent.exists()
