"""The models that `--model` offers, one entry for each.

To add a model, write its class in `ebmvk/model/` and add its entry to `MODELS`. The entry says
where the class is, which settings the model has, and what it needs by default. Everything else
reads it from here: `--help`, the checks, the defaults, the run's summary, and the tests that every
model passes.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any

Settings = tuple[str, ...]

ENERGY_TERMS: Settings = ("use_splat", "use_geometric", "use_compositional")
WINDOWS: Settings = ("context_local", "context_medium", "context_global")
_EXPERTS: Settings = ("moe_experts", "moe_active", "moe_balance", "moe_z")
_NOISE: Settings = ("lambda_denoise", "noise_levels", "noise_unit", "denoise_form")
_CHAINS: Settings = (
    "knn_k", "langevin_steps", "langevin_levels", "langevin_scheme", "langevin_dt", "langevin_gamma", "langevin_T",
    "kappa",
)  # fmt: skip


@dataclass(frozen=True)
class Only:
    """Settings that a model reads only if other settings have certain values."""

    settings: Settings
    when: Mapping[str, tuple[object, ...]]


@dataclass(frozen=True)
class Architecture:
    """What the configuration knows about a model.

    title: a few words for `--help`.
    path: "module:Class" of its `LanguageModel`, which is imported when a model is built.
    settings: the model's settings, except those that every model has; a setting in no model's list
        belongs to all of them.
    only: which of its settings depend on which others.
    defaults: {setting: value} that replace those of every `--size`; recipes, files and flags win.
    whole_sequence: attention sees the whole training window, so the windows of the three scales are
        all `--seq-length`.
    config_is_preset: `--config NAME` names a preset if there is no such file, as in the original
    system.
    """

    title: str
    path: str
    settings: Settings = ()
    only: tuple[Only, ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict)
    whole_sequence: bool = False
    config_is_preset: bool = False

    def load(self) -> Any:
        """The class of the model. Imports torch."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)

    def reads(self, name: str, value_of: Mapping[str, object]) -> bool:
        """True if the model has the setting `name` and, with the other settings as they are, uses
        it.

        value_of: {setting: value} of the whole configuration.
        """
        needs = [need.when for need in self.only if name in need.settings]
        return self.has(name) and all(value_of[other] in values for when in needs for other, values in when.items())

    def has(self, name: str) -> bool:
        """True if the model has the setting `name`."""
        return name in self.settings or not owners(name)


_EXPERT_BLOCKS = Only(_EXPERTS, {"use_moe": (True,)})

MODELS: Mapping[str, Architecture] = MappingProxyType(
    {
        "ebm": Architecture(
            "the energy-based model",
            "ebmvk.model.ebm:EnergyModel",
            settings=(*ENERGY_TERMS, *WINDOWS, *_EXPERTS, *_NOISE, *_CHAINS, "lambda_spread", "decoder", "hidden_dim"),
            only=(
                Only(("decoder",), {"use_splat": (True,)}),
                Only(("moe_experts", "moe_balance", "moe_z"), {"use_splat": (True,), "decoder": ("moe",)}),
                # A transformer as decoder is as large as the active experts would be.
                Only(("moe_active", "hidden_dim"), {"use_splat": (True,), "decoder": ("moe", "transformer")}),
            ),
        ),
        "plain": Architecture(
            "a transformer with the layers of ebm", "ebmvk.model.transformer:PlainModel", settings=WINDOWS
        ),
        "tinygpt": Architecture(
            "a GPT",
            "ebmvk.model.transformer:GPT",
            settings=("use_moe", *_EXPERTS),
            only=(_EXPERT_BLOCKS,),
            defaults={"enable_soc": False},
            whole_sequence=True,
        ),
        "minillm": Architecture(
            "a GPT that reads each document on its own",
            "ebmvk.model.transformer:GPT",
            settings=("use_moe", *_EXPERTS),
            only=(_EXPERT_BLOCKS,),
            defaults={"windows": "document", "patience": 5, "enable_soc": False},
            whole_sequence=True,
            config_is_preset=True,
        ),
        "infinito": Architecture(
            "a GPT with an external memory",
            "ebmvk.model.infinito:Infinito",
            settings=("use_memory", "memory_slots", "lambda_phi"),
            only=(Only(("memory_slots",), {"use_memory": (True,)}),),
            defaults={"enable_soc": False},
            whole_sequence=True,
        ),
    }
)
HELP = f"Kind of model. {'; '.join(f'{name}: {model.title}' for name, model in MODELS.items())}."


def owners(name: str) -> tuple[str, ...]:
    """The models that have the setting `name`; empty if it belongs to every model."""
    return tuple(model for model, architecture in MODELS.items() if name in architecture.settings)
