"""Where the values of a run come from: size < model < stage < preset < file < flags."""

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

CUSTOM = "custom"  # No preset: what flags say, over the defaults of size and model.


Level = tuple[Source, Mapping[str, Any]]
"""{field: value} that something says, and what does."""


FULL: Mapping[str, Any] = MappingProxyType({})


def _file(args: Sequence[str]) -> dict[str, Any]:
    path = flags.value_of(args, "--config")
    if not path or _names_preset(args, path):
        return {}
    named = [name for name, model in MODELS.items() if model.config_is_preset]
    if path in (CUSTOM, *(preset for name in named for preset in recipe_names(name))) and not Path(path).exists():
        raise ConfigError(
            f"--config {path}: no such file",
            why=f"it names a preset only with --model {' or '.join(named)}",
            hint=f"take --model {named[0]} --config {path}, or --preset {path} for another --model",
        )
    values = read_toml(Path(path))
    return values | {name: type(values[name])(flags.expanded(str(values[name]))) for name in values if _is_path(name)}


def _is_path(name: str) -> bool:
    """Whether a setting is a path, or may be."""
    return flag(name) in flags.PATHS


def _names_preset(args: Sequence[str], config: str) -> bool:
    """True if `--config small` means the preset: the model allows it, and no file has that name."""
    model = MODELS.get(flags.value_of(args, "--model") or "")
    return model is not None and model.config_is_preset and "." not in config and not Path(config).exists()


def _recipe(args: Sequence[str], model: str) -> dict[str, Any]:
    """{field: value} of the preset that the arguments name.

    Raises:
        ConfigError: the model has no such preset.
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
            hint=f"take {by} {', '.join(known)}"
            if known
            else f"take --size {', '.join(SIZES)}; presets belong to --model {others}",
        )
    return recipe(model, name)


def _sized(size: str, train_bytes: int | None) -> dict[str, Any]:
    """{field: value} that --size stands for, with a training text of so many bytes (None: not known yet)."""
    if size not in SIZES:
        close = nearest(size, SIZES)
        hint = f"did you mean {close}?" if close else f"take one of {', '.join(SIZES)}"
        raise ConfigError(f"--size {size}: no such size", hint=hint)
    known: Size = next(name for name in SIZES if name == size)
    return {**derive(known, train_bytes), "size": known}


def _given(args: Sequence[str], settings: Config) -> dict[str, Any]:
    """{field: value} of the settings that flags gave."""
    names = {re.sub(r"^--(no-)?", "", flag).replace("-", "_").lower() for flag in flags.flags_in(args)}
    return {name: value for _, name, value in items(settings) if name.lower() in names}


def _overrides(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """Later ones over earlier ones, flags last; whoever says steps takes back the epochs said before."""
    if {"steps", "epochs"} <= set(levels[-1]):
        raise ConfigError("--steps and --epochs are both given", hint="give one of them: each says how long to train")
    found: dict[str, Any] = {}
    for said in levels:
        found |= ({"epochs": None} if "steps" in said else {}) | dict(said)
    return found


def _widened(levels: Sequence[Mapping[str, Any]]) -> bool:
    """Whether latent_dim is said and no ffn_dim with it or after it: that of a size or a preset goes with its width."""
    last: Mapping[str, Any] = next((said for said in reversed(levels) if {"latent_dim", "ffn_dim"} & set(said)), {})
    return "ffn_dim" not in last and "latent_dim" in last


def _over(base: Mapping[str, Any], over: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of a size, overridden by those of presets and flags."""
    values = {**base, **_overrides(*over)}
    return values | ({"ffn_dim": FFN_RATIO * values["latent_dim"]} if _widened(over) else {})
