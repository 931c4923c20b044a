"""Checks of a whole configuration: ranges, and values that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ebmvk.config.schema import (
    ENERGY_TERMS,
    OF_TEXT,
    WHOLE_SEQUENCE,
    WINDOWS,
    Config,
    ModelConfig,
    SplatConfig,
    _entry,
    flag,
    items,
    replace,
)
from ebmvk.errors import ConfigError


def check(config: Config) -> Config:
    """The configuration itself when every value is in range and no two contradict each other.

    Raises:
        ConfigError: naming the flag, its value and the bound or the other flag.
    """
    for _, name, value in items(config):
        _check_range(name, value)
    check_model(config.model)
    data, langevin = config.data, config.langevin
    _require(
        config.model.model != "ebm" or langevin.knn_k < data.vocab_size,
        f"--knn-k {langevin.knn_k} is not below --vocab-size {data.vocab_size}",
        f"take --knn-k {data.vocab_size - 1} or less",
    )
    _require(
        data.stride is None or data.windows == "document",
        f"--stride {data.stride} with --windows {data.windows}",
        "take --windows document: windows of the whole text follow one another",
    )
    _require(
        data.stride is None or data.stride <= data.seq_length,
        f"--stride {data.stride} exceeds --seq-length {data.seq_length}",
        f"take --stride {data.seq_length} or less: what lies between windows would never be read",
    )
    _require(
        langevin.langevin_levels <= langevin.langevin_steps,
        f"--langevin-levels {langevin.langevin_levels} exceeds --langevin-steps {langevin.langevin_steps}",
        f"take --langevin-levels {langevin.langevin_steps} or less: a level needs a step",
    )
    _check_splats(config.splats)
    return config


def with_windows(config: Config, given: Iterable[str]) -> Config:
    """The configuration whose windows are those of its model. given: names of fields that a person set.

    Raises:
        ConfigError: a window was set of a model that looks at all of its sequence.
    """
    if config.model.model not in WHOLE_SEQUENCE:
        return config
    for name in sorted(set(WINDOWS) & set(given)):
        if getattr(config.model, name) != config.data.seq_length:
            raise ConfigError(
                f"{flag(name)} {getattr(config.model, name)} with --model {config.model.model}",
                why="it looks at all of its training window",
                hint=f"leave {flag(name)} away; --seq-length says how long the window is",
            )
    return replace(config, dict.fromkeys(WINDOWS, config.data.seq_length))


def _check_splats(splats: SplatConfig) -> None:
    for name in ("n_splats_init", "curriculum_target_splats"):
        _require(
            getattr(splats, name) <= splats.max_splats,
            f"{flag(name)} {getattr(splats, name)} exceeds --max-splats {splats.max_splats}",
            f"take {flag(name)} {splats.max_splats} or less",
        )
    _require(
        splats.min_kappa <= splats.max_kappa,
        f"--min-kappa {splats.min_kappa} exceeds --max-kappa {splats.max_kappa}",
        f"take --min-kappa {splats.max_kappa} or less",
    )
    _require(
        splats.soc_history >= splats.soc_check_interval,
        f"--soc-history {splats.soc_history} is below --soc-check-interval {splats.soc_check_interval}",
        f"take --soc-history {splats.soc_check_interval} or more: a step adds a state",
    )


def check_model(model: ModelConfig) -> None:
    """Raises ConfigError for sizes of a model that contradict each other."""
    _require(
        model.latent_dim % (2 * model.n_heads) == 0,
        f"--latent-dim {model.latent_dim} is not a multiple of 2 x --n-heads {model.n_heads}",
        f"take --latent-dim {2 * model.n_heads * max(1, round(model.latent_dim / (2 * model.n_heads)))}",
    )
    _require(
        model.moe_active <= model.moe_experts,
        f"--moe-active {model.moe_active} exceeds --moe-experts {model.moe_experts}",
        f"take --moe-active {model.moe_experts} or less",
    )
    if model.model != "ebm":
        _check_transformer(model)
    _require(
        not (model.use_moe and model.model not in ("tinygpt", "minillm")),
        f"--use-moe with --model {model.model}",
        "take --model tinygpt or minillm; the energy model has --decoder moe",
    )
    _require(
        any(getattr(model, name) for name in ENERGY_TERMS),
        "--no-use-splat, --no-use-geometric and --no-use-compositional leave no energy term",
        "leave one of them away: the energy needs a term",
    )
    _require(
        model.context_local <= model.context_medium <= model.context_global,
        f"--context-local {model.context_local}, --context-medium {model.context_medium}, "
        f"--context-global {model.context_global} do not widen",
        "order them local <= medium <= global",
    )


def _check_transformer(model: ModelConfig) -> None:
    """A switch that would do nothing must not look as if it had."""
    switches = {f"--no-{name.replace('_', '-')}": not getattr(model, name) for name in ENERGY_TERMS}
    switches[f"--decoder {model.decoder}"] = model.decoder != ModelConfig.decoder
    for switch, given in switches.items():
        _require(
            not given,
            f"{switch} with --model {model.model}, which has neither energy terms nor a decoder",
            f"leave {switch} away, or take --model ebm",
        )


def _check_range(name: str, value: Any) -> None:
    bounds = _entry(name).metadata
    low, high = bounds.get("low"), bounds.get("high")
    if value is None or (low is None and high is None):
        return
    for number in value if isinstance(value, tuple) else (value,):
        _require(math.isfinite(number), f"{flag(name)} {number} is not finite", "give a finite number")
        _require(low is None or number >= low, f"{flag(name)} {number} is below {low}", f"take {low} or more")
        _require(high is None or number <= high, f"{flag(name)} {number} is above {high}", f"take {high} or less")


def _require(condition: bool, what: str, hint: str) -> None:
    if not condition:
        raise ConfigError(what, hint=hint)


def check_resume(old: Config, new: Config) -> None:
    """Only learning rate, batch size, length, device, sampling, logging and the place of the text may change when a run
    is resumed.

    Raises:
        ConfigError: naming the first key that may not, and both values.
    """
    before = {name: value for _, name, value in items(old)}
    for section, name, value in items(new):
        if value != before[name] and not _entry(name).metadata.get("resume") and name not in OF_TEXT:
            raise ConfigError(
                f"--resume: {section}.{name} is {value!r} now but was {before[name]!r}",
                why="a run can't change its model, data or objective half way",
                hint=f"leave {flag(name)} away, or start a new run with another --run-dir",
            )
