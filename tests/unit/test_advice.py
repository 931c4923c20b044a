"""What a run is told about itself: nothing when all is well, a flag and a value when not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ebmvk.config import Config, replace
from ebmvk.training.advice import advice, is_out_of_memory

WELL = {"perplexity": 40.0, "nats": 3.7, "train_nats": 3.6, "rose": False, "rate": 5000.0, "epochs": 2.0}


@pytest.mark.parametrize(
    ("changes", "config", "said"),
    [
        ({}, {}, None),
        ({"train_nats": 3.0}, {}, None),
        ({"rose": True}, {}, None),
        ({"train_nats": 3.0, "rose": True}, {"dropout": 0.2}, "--dropout 0.3"),
        ({"perplexity": 300.0}, {"steps": 100}, "--steps 200"),
        ({"perplexity": 300.0, "epochs": 9.0}, {"latent_dim": 64}, "--latent-dim 128"),
        ({"rate": 20.0}, {"seq_length": 1024}, "--seq-length 512"),
        ({"rate": 20.0}, {"seq_length": 128}, "--size tiny"),
    ],
)
def test_advice(changes: dict[str, Any], config: dict[str, Any], said: str | None) -> None:
    found = list(advice(replace(Config(), config), **(WELL | changes)))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_what_running_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
