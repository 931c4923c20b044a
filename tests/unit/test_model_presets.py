"""Sizes: known names, valid models, and what follows from the amount of text."""

from __future__ import annotations

import pytest

from ebmvk.config import SIZES, Config, ModelConfig, Size, check, replace
from ebmvk.model.ebm import EnergyModel
from ebmvk.presets import PLENTY_BYTES, PRESETS, derive


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("train_bytes", [None, 1, 3_000, 350_000, 10_800_000, 10**12])
def test_every_size_is_a_valid_configuration_of_any_text(size: Size, train_bytes: int | None) -> None:
    check(replace(Config(), derive(size, train_bytes)))


def test_base_keeps_the_values_it_is_defined_by() -> None:
    expected = {
        "latent_dim": 640, "knn_k": 64, "batch_size": 32, "seq_length": 32, "langevin_steps": 200, "langevin_T": 1.0,
        "context_local": 12, "context_medium": 64, "context_global": 512, "vocab_size": 50257, "moe_experts": 4,
        "moe_active": 2, "hidden_dim": 1024, "learning_rate": 1e-4, "weight_decay": 0.01, "grad_clip": 1.0,
        "epochs": 10.0, "n_splats_init": 10_000, "max_splats": 150_000, "enable_curriculum_learning": True,
        "curriculum_epochs": 5, "curriculum_target_splats": 50_000, "soc_check_interval": 100, "soc_threshold": 0.8,
        "splat_temperature": 0.1, "splat_weight_decay": 0.0, "splat_weight_decay_start": 1.0, "min_kappa": 1,
        "max_kappa": 50,
    }  # fmt: skip
    for train_bytes in (None, 1_000, PLENTY_BYTES):
        values = derive("base", train_bytes)
        assert {name: values[name] for name in expected} == expected


def test_less_text_means_fewer_tokens_fewer_steps_and_dropout() -> None:
    amounts = [PLENTY_BYTES // 200, PLENTY_BYTES // 20, PLENTY_BYTES // 2, PLENTY_BYTES]
    for name, least in (("vocab_size", 300), ("steps", 1)):
        values = [derive("tiny", amount)[name] for amount in amounts]
        assert values == sorted(values), name
        assert values[0] < values[-1] == PRESETS["tiny"][name]
        assert values[0] >= least
    assert derive("tiny", amounts[0])["dropout"] > derive("tiny", amounts[-1])["dropout"]


@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_the_small_sizes_build(size: Size) -> None:
    config: ModelConfig = replace(Config(), PRESETS[size]).model
    parameters = sum(p.numel() for p in EnergyModel(config, 300).parameters())
    assert parameters < 6_000_000
