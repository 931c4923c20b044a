"""Which value each setting has.

Stronger levels win: size < model < stage < preset < file < flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ebmvk.config import flags
from ebmvk.config.models import MODELS
from ebmvk.config.schema import (
    SIZES,
    Config,
    Size,
    Source,
    flag,
    items,
    nearest,
)
from ebmvk.config.sizes import FFN_RATIO, derive, recipe, recipe_names
from ebmvk.config.toml import read_toml
from ebmvk.errors import ConfigError

CUSTOM = "custom"  # no preset: flags, and the defaults of size and model

Level = tuple[Source, Mapping[str, Any]]
"""Where values come from, and {setting: value}."""
FULL: Mapping[str, Any] = MappingProxyType({})
"""The stage of a full training run, which sets nothing."""


def file_values(args: Sequence[str]) -> dict[str, Any]:
    """{setting: value} of the file that `--config` names; empty without one."""
    path = flags.value_of(args, "--config")
    if not path or _names_preset(args, path):
        return {}
    named = [name for name, model in MODELS.items() if model.config_is_preset]
    if path in (CUSTOM, *(preset for name in named for preset in recipe_names(name))) and not Path(path).exists():
        raise ConfigError(
            f"--config {path}: no such file",
            why=f"it names a preset only with --model {' or '.join(named)}",
            hint=f"use --model {named[0]} --config {path}, or --preset {path} for another --model",
        )
    values = read_toml(Path(path))
    return values | {name: type(values[name])(flags.expanded(str(values[name]))) for name in values if _is_path(name)}


def _is_path(name: str) -> bool:
    """True if the value of a setting is or may be a path."""
    return flag(name) in flags.PATHS


def _names_preset(args: Sequence[str], config: str) -> bool:
    """True if `--config small` means the preset: the model allows it, and no file has that name."""
    model = MODELS.get(flags.value_of(args, "--model") or "")
    return model is not None and model.config_is_preset and "." not in config and not Path(config).exists()


def recipe_values(args: Sequence[str], model: str) -> dict[str, Any]:
    """{setting: value} of the preset that the arguments name; empty if they name none.

    Raises:
        ConfigError: the model has no preset of that name.
    """
    by, name = "--preset", flags.value_of(args, "--preset")
    config = flags.value_of(args, "--config")
    if config and _names_preset(args, config):
        by, name = "--config", config
    if name is None or name == CUSTOM:
        return {}
    if name not in (known := recipe_names(model)):
        others = ", ".join(name for name in MODELS if recipe_names(name))
        raise ConfigError(
            f"{by} {name} with --model {model}: no such preset",
            hint=f"use {by} {', '.join(known)}"
            if known
            else f"use --size {', '.join(SIZES)}; presets belong to --model {others}",
        )
    return recipe(model, name)


def size_values(size: str, train_bytes: int | None) -> dict[str, Any]:
    """{setting: value} of a size.

    train_bytes: length of the training text; None if not known yet.
    """
    if size not in SIZES:
        close = nearest(size, SIZES)
        hint = f"did you mean {close}?" if close else f"use one of {', '.join(SIZES)}"
        raise ConfigError(f"--size {size}: no such size", hint=hint)
    known: Size = next(name for name in SIZES if name == size)
    return {**derive(known, train_bytes), "size": known}


def given_values(args: Sequence[str], settings: Config) -> dict[str, Any]:
    """{setting: value} of the settings that were given as flags."""
    names = {re.sub(r"^--(no-)?", "", flag).replace("-", "_").lower() for flag in flags.flags_in(args)}
    return {name: value for _, name, value in items(settings) if name.lower() in names}


def merged(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """The levels merged, later ones over earlier ones, flags last.

    A level that sets `steps` removes the `epochs` of earlier levels.
    """
    if {"steps", "epochs"} <= set(levels[-1]):
        raise ConfigError("--steps and --epochs are both given", hint="give one of them: both say how long to train")
    found: dict[str, Any] = {}
    for level in levels:
        found |= ({"epochs": None} if "steps" in level else {}) | dict(level)
    return found


def is_widened(levels: Sequence[Mapping[str, Any]]) -> bool:
    """True if some level sets `latent_dim` and neither it nor a stronger level sets `ffn_dim`.

    The `ffn_dim` of a size or preset fits the `latent_dim` of that size or preset only.
    """
    last: Mapping[str, Any] = next((level for level in reversed(levels) if {"latent_dim", "ffn_dim"} & set(level)), {})
    return "ffn_dim" not in last and "latent_dim" in last


def overridden(base: Mapping[str, Any], over: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of a size with those of stronger levels over them; `ffn_dim` follows a changed
    width."""
    values = {**base, **merged(*over)}
    return values | ({"ffn_dim": FFN_RATIO * values["latent_dim"]} if is_widened(over) else {})
