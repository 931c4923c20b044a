"""The values of `--size` (one table, and a few that depend on the length of the text) and of
`--preset` (the recipes).

`base` is the configuration of the system that this project implements, with its names and values.
Where that system left a value open (layers, heads, feed-forward width), one was chosen. The smaller
sizes are tuned on WikiText-2's validation split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebmvk.config.models import MODELS
from ebmvk.config.schema import SIZES, Config, Size, items
from ebmvk.config.toml import read_toml

_SHARED: dict[str, object] = {
    "moe_experts": 4,
    "moe_active": 2,
    "knn_k": 64,
    "langevin_steps": 200,
    "langevin_levels": 10,
    "langevin_T": 1.0,
    "weight_decay": 0.01,
    "grad_clip": 1.0,
    "enable_curriculum_learning": True,
    "curriculum_epochs": 5.0,
    "soc_threshold": 0.8,
    "splat_temperature": 0.1,
    "splat_weight_decay": 0.0,
    "splat_weight_decay_start": 1.0,
    "min_kappa": 1.0,
    "max_kappa": 50.0,
}

PRESETS: dict[Size, dict[str, object]] = {
    "nano": {
        **_SHARED,
        "vocab_size": 1024,
        "seq_length": 64,
        "latent_dim": 64,
        "n_layers": 3,
        "n_heads": 2,
        "ffn_dim": 256,
        "hidden_dim": 64,
        "context_local": 8,
        "context_medium": 24,
        "context_global": 64,
        "dropout": 0.0,
        "batch_size": 16,
        "steps": 300,
        "learning_rate": 4e-3,
        "warmup_steps": 20,
        "n_splats_init": 100,
        "max_splats": 1500,
        "curriculum_target_splats": 500,
        "soc_check_interval": 20,
    },
    "tiny": {
        **_SHARED,
        "vocab_size": 8192,
        "seq_length": 256,
        "latent_dim": 256,
        "n_layers": 4,
        "n_heads": 4,
        "ffn_dim": 1024,
        "hidden_dim": 256,
        "context_local": 12,
        "context_medium": 64,
        "context_global": 128,
        "dropout": 0.0,
        "batch_size": 16,
        "steps": 900,
        "learning_rate": 4e-3,
        "warmup_steps": 50,
        "n_splats_init": 1000,
        "max_splats": 15000,
        "curriculum_target_splats": 5000,
        "soc_check_interval": 50,
    },
    "small": {
        **_SHARED,
        "vocab_size": 8192,
        "seq_length": 256,
        "latent_dim": 384,
        "n_layers": 4,
        "n_heads": 6,
        "ffn_dim": 1536,
        "hidden_dim": 384,
        "context_local": 12,
        "context_medium": 64,
        "context_global": 256,
        "dropout": 0.1,
        "batch_size": 16,
        "steps": 1200,
        "learning_rate": 3e-3,
        "warmup_steps": 60,
        "n_splats_init": 4000,
        "max_splats": 60000,
        "curriculum_target_splats": 20000,
        "soc_check_interval": 100,
    },
    "base": {
        **_SHARED,
        "vocab_size": 50257,
        "seq_length": 32,
        "latent_dim": 640,
        "n_layers": 6,
        "n_heads": 10,
        "ffn_dim": 2560,
        "hidden_dim": 1024,
        "context_local": 12,
        "context_medium": 64,
        "context_global": 512,
        "dropout": 0.1,
        "batch_size": 32,
        "epochs": 10.0,
        "learning_rate": 1e-4,
        "warmup_steps": 100,
        "n_splats_init": 10000,
        "max_splats": 150000,
        "curriculum_target_splats": 50000,
        "soc_check_interval": 100,
    },
}

FFN_RATIO = 4
"""Width of the feed-forward part divided by latent_dim, in every size and recipe."""

DIMENSIONS = ("latent_dim", "n_layers", "ffn_dim")
"""The settings that decide how long a training step takes. Every size and recipe sets them."""

RECIPES = Path(__file__).with_name("recipes")

PLENTY_BYTES = 8_000_000  # a text this long leaves vocabulary, batch and steps as they are
FEWEST_TOKENS = 512
BYTES_PER_TOKEN = 3.0  # roughly, for English text and a small vocabulary
MOST_EPOCHS = 10.0  # for a text that is repeated, with the dropout below
REPEATED_DROPOUT = 0.3


def derive(size: Size, train_bytes: int | None, *, ask_processor: bool = True) -> dict[str, object]:
    """{setting: value} of a size.

    A shorter text gets a smaller vocabulary (proportional to its length to the power 2/3, so that
    each token is still seen often). If it would be repeated more than three times, it also gets
    smaller batches, at most `MOST_EPOCHS` passes and more dropout. `base` always keeps its values.

    train_bytes: length of the training text; None if it isn't known yet. ask_processor: ask torch
        for the fastest precision; `--help` doesn't, because torch takes seconds to import.
    """
    values = dict(PRESETS[size])
    if train_bytes is None:
        return values
    if ask_processor:
        values["precision"] = fast_precision()
    if train_bytes >= PLENTY_BYTES or size == "base":
        return values
    vocabulary, batch, length, steps = (_int(values[k]) for k in ("vocab_size", "batch_size", "seq_length", "steps"))
    share = (train_bytes / PLENTY_BYTES) ** (2 / 3)
    values["vocab_size"] = max(min(FEWEST_TOKENS, vocabulary), 256 * round(vocabulary * share / 256))
    passes = steps * batch * length * BYTES_PER_TOKEN / train_bytes
    if passes > 3:
        batch = max(1, batch // 2)
        most = round(MOST_EPOCHS * train_bytes / BYTES_PER_TOKEN / (batch * length))
        values |= {"batch_size": batch, "steps": max(1, min(steps, most)), "dropout": REPEATED_DROPOUT}
    return values


def unsettled() -> frozenset[str]:
    """The settings whose default depends on the size, the model, the text or the processor. The
    others have the default of `ebmvk.config.schema`."""
    usual = {name: value for _, name, value in items(Config())}
    levels = [*PRESETS.values(), *(model.defaults for model in MODELS.values())]
    changed = {name for values in levels for name, value in values.items() if value != usual[name]}
    # The other settings that depend on the text or the model also depend on the size.
    return frozenset(changed | {"precision"})


def recipe_names(model: str) -> list[str]:
    """The presets of a model, the smallest first."""
    return [name for name in ("nano", "small", "medium", "large") if (RECIPES / f"{model}-{name}.toml").exists()]


def recipe(model: str, name: str) -> dict[str, Any]:
    """{setting: value} of a recipe. name: one of `recipe_names(model)`."""
    return read_toml(RECIPES / f"{model}-{name}.toml")


def most_warmup(steps: int) -> int:
    """The longest warm-up of a run of `steps` steps, unless a flag or a file asks for more."""
    return max(1, steps // 10)


def smaller(config: Config) -> str | None:
    """The flag of a smaller model: the next smaller preset of the same text, or the next smaller
    size.

    None if there is no smaller one, or if the dimensions match neither a preset nor the size.
    """
    names = recipe_names(config.model.model)
    presets = {name: recipe(config.model.model, name) for name in names}
    if name := next((name for name, values in presets.items() if _is_of(config, values)), None):
        # A preset of another text would give figures that can't be compared.
        below = [
            other
            for other in names[: names.index(name)]
            if presets[other].get("dataset") == presets[name].get("dataset")
        ]
        return f"--preset {below[-1]}" if below else None
    size = config.run.size
    return f"--size {SIZES[SIZES.index(size) - 1]}" if _is_of(config, PRESETS[size]) and size != SIZES[0] else None


def _is_of(config: Config, values: Mapping[str, object]) -> bool:
    return all(getattr(config.model, name) == values[name] for name in DIMENSIONS)


def fast_precision() -> str:
    """bfloat16 if the processor multiplies it natively, else float32: emulated bfloat16 is
    slower."""
    import torch  # here, so that --help answers without it

    # float32 if torch can't tell: it works everywhere.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native or torch.cuda.is_available() else "float32"


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
