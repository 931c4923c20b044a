"""Texts read by compiled layers, against torch. The programs run in numpy here."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from model_support import VOCABULARY, build, variant

from ebmvk.compute.function import CompiledFunction, Function, compile_function
from ebmvk.data.windows import TokenStream
from ebmvk.errors import ArgumentError
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.model.language import LanguageModel
from ebmvk.model.on_device import DeviceLayers
from ebmvk.model.reading import TorchLayers

MODELS: dict[str, dict[str, Any]] = {
    "checkpointed": {"model": "minillm", "gradient_checkpointing": True},
    "experts": {"model": "tinygpt", "use_moe": True},
    "ebm": {"dropout": 0.2},
    "infinito": {"model": "infinito", "memory_slots": 7},
}
CONTEXT, STRIDE = 12, 5
NATS = 1e-5
"""The error that an evaluation may have, per token."""
CPU = torch.device("cpu")


@cache
def network(name: str) -> LanguageModel:
    """Perturbed, so that every part has an effect."""
    torch.manual_seed(0)
    net = build(dataclasses.replace(variant("ebm"), n_layers=1, **MODELS[name]))
    with torch.no_grad():
        for own in net.parameters():
            own.add_(torch.randn_like(own), alpha=0.05)
    return net


def layers(name: str, rows: int | None) -> DeviceLayers:
    net = network(name)

    def compiled(function: Function) -> CompiledFunction:
        made = compile_function(function, backend="reference", check=name == "experts")
        made.start({name: own.detach() for name, own in net.named_parameters()})
        return made

    return DeviceLayers(net, compiled, rows)


def text(starts: list[int], tokens: int = 60) -> TokenStream:
    """Documents that windows don't cross. Their last windows are shorter than the context."""
    ids = np.random.default_rng(tokens).integers(VOCABULARY, size=tokens).astype(np.int32)
    return TokenStream("made up", ids, np.array(starts), apart=True)


@pytest.mark.parametrize("name", MODELS)
def test_programs_read_as_torch_does(name: str) -> None:
    """Log-probabilities of every token, queries and states, in an order that doesn't depend on
    batches; dropout is off, and the model is left in training."""
    net, stream = network(name).train(), text([0, 5, 30])
    own, host = layers(name, 4), TorchLayers(net, CPU)
    found = token_nats(net, stream, context=CONTEXT, stride=STRIDE, device=CPU, layers=own)["none"]
    wanted = token_nats(net, stream, context=CONTEXT, stride=STRIDE, device=CPU)["none"]
    assert found.dtype == torch.float64
    assert (found - wanted).abs().max() <= NATS
    read = [list(part.contexts(stream, context=CONTEXT, stride=STRIDE)) for part in (own, host)]
    for field in ("query", "h"):
        mine, other = (torch.cat([getattr(seen, field)[0] for seen, _ in parts]) for parts in read)
        assert (mine - other).abs().max() <= NATS
    assert torch.equal(*(torch.cat([tokens for _, tokens in parts]) for parts in read))
    assert net.training
    assert own.did() == {"cpu_ops": 0}  # other figures come from a device
    assert own.did() == {}


@pytest.mark.parametrize("rows", [1, 3, 50, None])
def test_the_size_of_batches_changes_nothing(rows: int) -> None:
    net, stream = network("checkpointed"), text([0, 1, 2, 20], 47)
    how: dict[str, Any] = {"context": 7, "stride": 7, "device": CPU}
    found = token_nats(net, stream, **how, layers=layers("checkpointed", rows))["none"]
    assert (found - token_nats(net, stream, **how)["none"]).abs().max() <= NATS


def test_a_bad_stride_is_refused() -> None:
    with pytest.raises(ArgumentError, match="--stride 13"):
        list(layers("checkpointed", 2).log_p(text([0]), context=12, stride=13))
