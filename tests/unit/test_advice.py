"""Advice on a finished run: none if all is well, otherwise a flag and a value."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from train_support import job

from ebmvk.config.models import MODELS
from ebmvk.config.schema import SIZES, Config, replace
from ebmvk.config.sizes import PRESETS, recipe, recipe_names
from ebmvk.monitoring.advice import advice, is_out_of_memory

WELL = {"perplexity": 40.0, "nats": 3.7, "train_nats": 3.6, "rose": False, "rate": 5000.0, "epochs": 2.0}


@pytest.mark.parametrize(
    ("changes", "config", "said"),
    [
        ({}, {}, None),
        ({"train_nats": 3.0}, {}, None),
        ({"rose": True}, {}, None),
        ({"train_nats": 3.0, "rose": True}, {"dropout": 0.2}, "--dropout 0.3"),
        ({"perplexity": 300.0}, {"steps": 100}, "--steps 200"),
        (
            {"perplexity": 311.0, "epochs": 0.05},
            {"steps": 20, "size": "nano"},
            "--steps 300; the text was read 0.05",
        ),
        ({"perplexity": 311.0, "epochs": 0.5}, {"steps": 20, "size": "nano"}, "--steps 120; the text was read 0.5"),
        ({"perplexity": 300.0, "epochs": 9.0}, {"latent_dim": 64}, "--latent-dim 128"),
        ({"rate": 20.0}, {"seq_length": 1024}, "--seq-length 512"),
        ({"rate": 20.0}, {"seq_length": 512, "stride": 300}, "--seq-length 256 --stride 256"),
        ({"rate": 20.0}, {"n_layers": 12, "latent_dim": 100}, "--n-layers 6"),
        ({"rate": 20.0}, {"n_layers": 1, "latent_dim": 100, "precision": "bfloat16"}, None),
        ({"rate": 20.0}, {**PRESETS["nano"], "size": "nano", "n_layers": 1, "precision": "bfloat16"}, None),
    ],
)
def test_advice(changes: dict[str, Any], config: dict[str, Any], said: str | None) -> None:
    found = list(advice(replace(Config(), config), **(WELL | changes)))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


PRESET_MODELS = [name for name in MODELS if recipe_names(name)]
STARTS = [
    *(("--size", size) for size in SIZES),
    *(("--model", model, "--size", size) for model in PRESET_MODELS for size in SIZES),
    *(("--model", model, "--preset", name) for model in PRESET_MODELS for name in recipe_names(model)),
]


@pytest.mark.parametrize("start", STARTS, ids=" ".join)
def test_a_slow_run_gets_flags_that_make_it_faster(start: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each suggested flag makes a token cheaper, or uses the number format in which the processor
    is faster."""
    asked = job(*start, "--dataset", "builtin").config
    for native, precision in product(("float32", "bfloat16"), repeat=2):
        monkeypatch.setattr("ebmvk.monitoring.advice.fast_precision", lambda native=native: native)
        config = replace(asked, {"precision": precision})
        (line,) = advice(config, **(WELL | {"rate": 20.0}))
        told = line.partition("use ")[2].split(", or ")
        assert ("--precision bfloat16" in told) == ((native, precision) == ("bfloat16", "float32"))
        for name, value in (flags.split() for flags in told if "--precision" not in flags):
            kept = start[:-2] if name in ("--size", "--preset") else start
            found = job(*kept, "--dataset", "builtin", name, value).config
            assert found.model.model == config.model.model
            assert _cost(found) < _cost(config)
            if name == "--preset":  # it must also be for the same text
                texts = {recipe(config.model.model, preset).get("dataset") for preset in (value, start[-1])}
                assert len(texts) == 1


def _cost(config: Config) -> int:
    """Roughly, the multiplications per token in the blocks."""
    model = config.model
    return model.n_layers * model.latent_dim * (model.latent_dim + model.ffn_dim + config.data.seq_length)


def test_errors_of_memory_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
