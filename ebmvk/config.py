"""Configuration: frozen dataclasses, `--size` as the one dial, TOML in and out.

Precedence: size < TOML file < flags. Names are those of the original system where it had one.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Size = Literal["nano", "tiny", "small", "base"]


@dataclass(frozen=True)
class DataConfig:
    dataset: str = "builtin"
    data_dir: Path | None = None
    vocab_size: int = 2048
    seq_length: int = 128


@dataclass(frozen=True)
class ModelConfig:
    model: Literal["ebm"] = "ebm"
    latent_dim: int = 256
    n_layers: int = 4
    n_heads: int = 4
    ffn_dim: int = 1024
    context_local: int = 12
    context_medium: int = 64
    context_global: int = 128
    moe_experts: int = 4
    moe_active: int = 2
    hidden_dim: int = 512
    dropout: float = 0.1
    use_geometric: bool = True
    use_compositional: bool = True


@dataclass(frozen=True)
class LangevinConfig:
    knn_k: int = 64
    langevin_steps: int = 200
    langevin_levels: int = 10
    langevin_dt: float | None = None
    langevin_gamma: float | None = None
    langevin_T: float = 1.0
    kappa: float | None = None


@dataclass(frozen=True)
class TrainingConfig:
    steps: int = 1000
    epochs: float | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    warmup_steps: int = 100
    lambda_lex: float = 0.5
    lambda_denoise: float = 0.1
    lambda_spread: float = 0.01
    moe_balance: float = 0.01
    moe_z: float = 1e-3


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    langevin: LangevinConfig = field(default_factory=LangevinConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
