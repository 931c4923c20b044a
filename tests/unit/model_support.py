"""Small models of every kind, for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ebmvk.config.models import MODELS
from ebmvk.config.schema import ModelConfig
from ebmvk.model.build import build_model

SMALL = ModelConfig(
    latent_dim=32, n_layers=3, n_heads=2, ffn_dim=48, context_local=3, context_medium=9, context_global=40,
    hidden_dim=24, dropout=0.2,
)  # fmt: skip
VOCABULARY = 61
TERMS = ("use_splat", "use_geometric", "use_compositional")
_CLASSES = {entry.path: name for name, entry in reversed(MODELS.items())}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"model": name} for name in reversed(_CLASSES.values())},  # each class once: a new model passes too
    "transformer decoder": {"decoder": "transformer"},
    "without splat": {"use_splat": False},
    "splat only": {"use_geometric": False, "use_compositional": False},
    "infinito": {"model": "infinito", "memory_slots": 7},
    "gpt of experts": {"model": "tinygpt", "use_moe": True},
    "gpt of one expert": {"model": "tinygpt", "use_moe": True, "moe_active": 1},
}


def variant(name: str, config: ModelConfig = SMALL) -> ModelConfig:
    return dataclasses.replace(config, **VARIANTS[name])


def build(config: ModelConfig = SMALL, seed: int = 0) -> Any:
    """A model whose zero-initialised matrices are random too, so that every part takes effect."""
    torch.manual_seed(seed)
    model = build_model(config, VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def tokens(length: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
