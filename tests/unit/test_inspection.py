"""Attention maps equal the forward pass; the tokens of experts equal the routing."""

from __future__ import annotations

import math

import pytest
import torch
from model_support import VARIANTS, VOCABULARY, build, tokens, variant

from ebmvk.model.inspection import AttentionMap, attention_maps, specialisation
from ebmvk.model.layers import Attention


@pytest.mark.parametrize("length", [1, 9, 70])
def test_attention_weights_equal_those_of_the_forward_pass(length: int) -> None:
    """With 70 tokens, attention with windows of 5 runs in blocks; the map doesn't."""
    torch.manual_seed(0)
    layer = Attention(16, 4, 5).double()
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, length, 16, dtype=torch.float64)
    with torch.no_grad():
        weights = layer.weights(x)
        v = layer.qkv(x).view(2, length, 3, 4, 4).permute(2, 0, 3, 1, 4)[2]
        mixed = layer.out((weights @ v).transpose(1, 2).reshape(2, length, 16))
        torch.testing.assert_close(mixed, layer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, length, dtype=torch.float64))
    assert (weights.triu(1) == 0).all()
    assert (weights.tril(-5) == 0).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_attention_layer_has_a_map(name: str) -> None:
    model = build(variant(name)).train()
    before = {key: len(module._forward_hooks) for key, module in model.named_modules()}
    maps = attention_maps(model, tokens(20, batch=1)[0])
    layers = sum(isinstance(module, Attention) for module in model.modules())
    assert len(maps) == len({own.layer for own in maps}) == layers
    assert all(own.weights.shape == (model.config.n_heads, 20, 20) for own in maps)
    assert model.training
    assert {key: len(module._forward_hooks) for key, module in model.named_modules()} == before


def test_figures_of_known_maps() -> None:
    """One head looks at the token itself, one at the first token, one at all before it equally."""
    n = 6
    even = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    first = torch.zeros(n, n)
    first[:, 0] = 1
    own = AttentionMap("x", torch.stack([torch.eye(n), first, even]))
    torch.testing.assert_close(own.distance, torch.tensor([0.0, 2.5, 1.25]))
    torch.testing.assert_close(own.entropy, torch.tensor([0.0, 0.0, sum(math.log(i) for i in range(1, n + 1)) / n]))


@pytest.mark.parametrize("name", ["ebm", "gpt of experts", "gpt of one expert"])
def test_specialisation_counts_the_tokens_of_each_expert(name: str) -> None:
    model, ids = build(variant(name)), tokens(50, batch=3)
    found = specialisation(model, ids)
    assert len(found) == (1 if name == "ebm" else model.config.n_layers)
    for own in found:
        assert own.count.tolist() == torch.bincount(ids.flatten(), minlength=VOCABULARY).tolist()
        came = own.count > 0
        torch.testing.assert_close(own.shares[came].sum(1), torch.ones(int(came.sum())))
        assert (own.shares[~came] == 0).all()
        torch.testing.assert_close((own.shares * own.count[:, None]).sum(0) / ids.numel(), own.load)
        for expert, top in enumerate(own.top(3, least=2)):
            assert all(own.count[token] >= 2 and share > own.load[expert] for token, share in top)
            assert [share for _, share in top] == sorted((share for _, share in top), reverse=True)
    assert specialisation(build(variant("plain")), ids) == []


def test_the_only_token_of_an_expert_is_its_top_token() -> None:
    """The router sends one token to the last expert, and all others elsewhere."""
    model = build(variant("gpt of experts"))
    block = model.blocks[0]
    with torch.no_grad():
        model.table.zero_()
        model.table[:, 0] = 1.0
        model.table[7, 0] = -1.0
        for parameter in block.attention.parameters():
            parameter.zero_()
        block.moe.router.weight.zero_()
        block.moe.router.weight[-1, 0] = -100.0
    ids = torch.arange(VOCABULARY).repeat(3)[None]
    own = specialisation(model, ids)[0]
    assert own.top(2, least=1)[-1] == [(7, pytest.approx(1.0))]
