"""Checks of a whole configuration: ranges, and values that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ebmvk.config.integrators import LEAPFROGS, METROPOLIS
from ebmvk.config.models import ENERGY_TERMS, MODELS, WINDOWS, owners
from ebmvk.config.schema import (
    OF_TEXT,
    SECTION_OF,
    Config,
    ModelConfig,
    Source,
    SplatConfig,
    _entry,
    flag,
    items,
    replace,
)
from ebmvk.config.sizes import PRESETS
from ebmvk.errors import ConfigError


def check(config: Config) -> Config:
    """The configuration itself, if every value is in range and no two contradict each other.

    Raises:
        ConfigError: naming the flag, its value and the bound or the other flag.
    """
    for _, name, value in items(config):
        _check_range(name, value)
    check_model(config.model)
    data, langevin = config.data, config.langevin
    _require(
        not MODELS[config.model.model].has("knn_k") or langevin.knn_k < data.vocab_size,
        f"--knn-k {langevin.knn_k} is not below --vocab-size {data.vocab_size}",
        f"use --knn-k {data.vocab_size - 1} or less",
    )
    _require(
        data.stride is None or data.windows == "document",
        f"--stride {data.stride} with --windows {data.windows}",
        "use --windows document: windows of a whole text always follow one another",
    )
    _require(
        data.stride is None or data.stride <= data.seq_length,
        f"--stride {data.stride} exceeds --seq-length {data.seq_length}",
        f"use --stride {data.seq_length} or less: text between two windows would never be read",
    )
    _require(
        langevin.langevin_levels <= langevin.langevin_steps,
        f"--langevin-levels {langevin.langevin_levels} exceeds --langevin-steps {langevin.langevin_steps}",
        f"use --langevin-levels {langevin.langevin_steps} or less: each level needs a step",
    )
    _require(
        not METROPOLIS.get(langevin.langevin_scheme) or langevin.langevin_levels * LEAPFROGS <= langevin.langevin_steps,
        f"--langevin-scheme {langevin.langevin_scheme} with --langevin-levels {langevin.langevin_levels} and "
        f"--langevin-steps {langevin.langevin_steps}",
        f"use --langevin-steps {langevin.langevin_levels * LEAPFROGS} or more: each level needs a trajectory of "
        f"{LEAPFROGS} steps",
    )
    _check_splats(config.splats)
    return config


def with_windows(config: Config) -> Config:
    """The configuration, with its window settings set to `seq_length` if the model always sees the
    whole sequence."""
    if not MODELS[config.model.model].whole_sequence:
        return config
    return replace(config, dict.fromkeys(WINDOWS, config.data.seq_length))


_ASKED: tuple[Source, ...] = ("preset", "file", "flag")


def check_owned(config: Config, levels: Iterable[tuple[Source, Mapping[str, Any]]]) -> None:
    """Refuse a setting that the model doesn't have.

    levels: {setting: value} with its source. Only what a person gave is checked: flags, a file and
    a preset. A file may have settings of the model that it names itself, so that a flag can switch
    to another model for a comparison. A file may also have any setting at its default, as the file
    of a run does.

    Raises:
        ConfigError: names the setting, its value, and the models that have it.
    """
    model = config.model.model
    for source, given in levels:
        if source not in _ASKED:
            continue
        in_file = source == "file"
        own = given.get("model", model) if in_file else model
        lengths = (config.data.seq_length, given.get("seq_length"))  # the file of a run names its windows
        for name, value in given.items():
            fine = MODELS[model].has(name) or MODELS[own].has(name) or (name in WINDOWS and value in lengths)
            if not fine and not (in_file and _is_default(name, value)):
                raise _foreign(model, name, value, in_file=in_file)


def _is_default(name: str, value: Any) -> bool:
    """True if a setting has the default value, or that of a size."""
    defaults = {known: default for _, known, default in items(Config())}
    return value in (defaults[name], *(size[name] for size in PRESETS.values() if name in size))


def _foreign(model: str, name: str, value: Any, *, in_file: bool = False) -> ConfigError:
    """The error for a setting that `model` doesn't have. in_file: name it as a file does."""
    key = f"{SECTION_OF[name]}.{name}" if in_file else flag(name)
    said = f"{key} = {value}" if in_file else _as_flag(name, value)
    have = " or ".join(owners(name))
    why, remedy = f"it belongs to --model {have}", f"remove {key}, or use --model {have}"
    if name in WINDOWS:
        why, remedy = "this model sees its whole training window", f"remove {key}; --seq-length sets the window"
    return ConfigError(f"{said} doesn't work with --model {model}", why=why, hint=remedy)


def _as_flag(name: str, value: Any) -> str:
    """A setting as a person gives it: '--memory-slots 64', '--no-use-splat'."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _check_splats(splats: SplatConfig) -> None:
    for name in ("n_splats_init", "curriculum_target_splats"):
        _require(
            getattr(splats, name) <= splats.max_splats,
            f"{flag(name)} {getattr(splats, name)} exceeds --max-splats {splats.max_splats}",
            f"use {flag(name)} {splats.max_splats} or less",
        )
    _require(
        splats.min_kappa <= splats.max_kappa,
        f"--min-kappa {splats.min_kappa} exceeds --max-kappa {splats.max_kappa}",
        f"use --min-kappa {splats.max_kappa} or less",
    )
    _require(
        splats.soc_history >= splats.soc_check_interval,
        f"--soc-history {splats.soc_history} is below --soc-check-interval {splats.soc_check_interval}",
        f"use --soc-history {splats.soc_check_interval} or more: each step adds a state",
    )


def check_model(model: ModelConfig) -> None:
    """Raises ConfigError if settings of a model contradict each other."""
    _require(
        model.latent_dim % (2 * model.n_heads) == 0,
        f"--latent-dim {model.latent_dim} is not a multiple of 2 x --n-heads {model.n_heads}",
        f"use --latent-dim {2 * model.n_heads * max(1, round(model.latent_dim / (2 * model.n_heads)))}",
    )
    _require(
        model.moe_active <= model.moe_experts,
        f"--moe-active {model.moe_active} exceeds --moe-experts {model.moe_experts}",
        f"use --moe-active {model.moe_experts} or less",
    )
    for name in _SWITCHES:
        if getattr(model, name) != getattr(ModelConfig, name) and not MODELS[model.model].has(name):
            raise _foreign(model.model, name, getattr(model, name))
    _require(
        any(getattr(model, name) for name in ENERGY_TERMS),
        "--no-use-splat, --no-use-geometric and --no-use-compositional leave no energy term",
        "remove one of them: the energy needs a term",
    )
    _require(
        model.context_local <= model.context_medium <= model.context_global,
        f"--context-local {model.context_local}, --context-medium {model.context_medium}, "
        f"--context-global {model.context_global} do not widen",
        "order them local <= medium <= global",
    )


_SWITCHES = (*ENERGY_TERMS, "decoder", "use_moe")
"""Settings that every version refused for models that don't have them. The file of an old run may
have other settings of other models, and must still open."""


def _check_range(name: str, value: Any) -> None:
    bounds = _entry(name).metadata
    low, high = bounds.get("low"), bounds.get("high")
    if value is None or (low is None and high is None):
        return
    for number in value if isinstance(value, tuple) else (value,):
        _require(math.isfinite(number), f"{flag(name)} {number} is not finite", "give a finite number")
        _require(low is None or number >= low, f"{flag(name)} {number} is below {low}", f"use {low} or more")
        _require(high is None or number <= high, f"{flag(name)} {number} is above {high}", f"use {high} or less")


def _require(condition: bool, what: str, hint: str) -> None:
    if not condition:
        raise ConfigError(what, hint=hint)


def check_resume(old: Config, new: Config) -> None:
    """Refuse a change that a resumed run may not make.

    A resumed run may change what `knob(..., resume=True)` marks (such as the learning rate, the
    length of training, the device, logging) and where its text is.

    Raises:
        ConfigError: names the first setting that may not change, and both values.
    """
    before = {name: value for _, name, value in items(old)}
    for section, name, value in items(new):
        if value != before[name] and not _entry(name).metadata.get("resume") and name not in OF_TEXT:
            raise ConfigError(
                f"--resume: {section}.{name} is {value!r} now but was {before[name]!r}",
                why="a run can't change its model, its data or its loss after it has started",
                hint=f"remove {flag(name)}, or start a new run with another --run-dir",
            )
