"""Sizes and recipes: known names, valid models, and what follows from the amount of text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from train_support import job

from ebmvk.config.checks import check
from ebmvk.config.models import MODELS
from ebmvk.config.schema import SIZES, Config, ModelConfig, Size, items, replace
from ebmvk.config.sizes import FFN_RATIO, PLENTY_BYTES, PRESETS, RECIPES, derive, recipe, recipe_names
from ebmvk.data.windows import TokenStream
from ebmvk.model.build import build_model
from ebmvk.model.ebm import EnergyModel
from ebmvk.runs.progress import Progress
from ebmvk.training.job import Job, with_steps

PRESET_MODELS = [name for name in MODELS if recipe_names(name)]
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
CHARACTERS, GPT2 = 67, 50_258  # tokens of Tiny Shakespeare, and of GPT-2 with <unk>
CLAIMS = {
    "n_layers": r"(\d+) layers",
    "latent_dim": r"(?:layers of|[Ww]idth) (\d+)",
    "n_heads": r"(\d+) heads",
    "memory_slots": r"(\d+) slots",
    "batch_size": r"(\d+) windows of",
    "seq_length": r"windows of (\d+)",
}
"""What the comment at the top of a recipe may claim."""


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


def _of(name: str, *flags: str) -> Job:
    model, _, preset = name.partition("-")
    return job("--model", model, "--preset", preset, "--dataset", "builtin", *flags)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_used_as_written_and_its_comment_is_true(name: str) -> None:
    """`train --model M --preset P` uses every value of it, and the comment at its top describes the
    model."""
    model, _, preset = name.partition("-")
    said, config = recipe(model, preset), _of(name).config
    found: dict[str, Any] = {key: value for _, key, value in items(config)}
    assert {key: found[key] for key in said} | {"dataset": "builtin"} == said | {"dataset": "builtin"}
    assert (found["model"], found["enable_soc"]) == (model, False)
    assert (found["windows"] == "document") == (model == "minillm")
    assert found["ffn_dim"] == FFN_RATIO * found["latent_dim"]

    comment = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    assert comment.startswith("# ")
    for key, claim in CLAIMS.items():
        if told := re.search(claim, comment):
            assert int(told[1]) == found[key], key
    vocabulary = {"char": CHARACTERS, "gpt2": GPT2}.get(config.data.tokenizer, config.data.vocab_size)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config.model, vocabulary).parameters())
    if told := re.search(r"[Aa]bout (\d+) million parameters", comment):
        assert parameters == pytest.approx(int(told[1]) * 1e6, rel=0.1)


def test_every_transformer_has_the_same_presets() -> None:
    for model in PRESET_MODELS:
        assert {"small", "medium", "large"} <= set(recipe_names(model))
    assert sorted(f"{model}-{name}" for model in PRESET_MODELS for name in recipe_names(model)) == NAMES


@pytest.mark.parametrize("size", SIZES)
def test_ffn_dim_of_every_size_follows_from_its_width(size: Size) -> None:
    assert PRESETS[size]["ffn_dim"] == FFN_RATIO * replace(Config(), PRESETS[size]).model.latent_dim


@pytest.mark.parametrize("name", NAMES)
def test_a_default_warm_up_is_at_most_a_tenth_of_the_steps(name: str) -> None:
    stream = TokenStream("made-up/train", np.zeros(5_000, dtype=np.int32), np.zeros(1, dtype=np.int64), apart=True)
    for flags in ((), ("--epochs", "2"), ("--steps", "30"), ("--steps", "100000")):
        found = with_steps(_of(name, *flags), stream, Progress())
        steps, warmup = found.config.training.steps, found.config.training.warmup_steps
        assert warmup == min(recipe(*name.split("-"))["warmup_steps"], max(1, steps // 10))
        assert (found.sources["warmup_steps"] == "derived") == (warmup != recipe(*name.split("-"))["warmup_steps"])
        asked = with_steps(_of(name, *flags, "--warmup-steps", "25"), stream, Progress())
        assert (asked.config.training.warmup_steps, asked.sources["warmup_steps"]) == (25, "flag")
