"""The token distribution is normalised, causal bit for bit, and the sum of the terms switched
on."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from model_support import SMALL, TERMS, VARIANTS, VOCABULARY, build, tokens, variant

from ebmvk.config.schema import Config, ModelConfig, Size, replace
from ebmvk.config.sizes import PRESETS
from ebmvk.errors import ConfigError
from ebmvk.model.build import build_model
from ebmvk.model.context import layer_scales
from ebmvk.model.decoder import build_decoder
from ebmvk.model.ebm import EnergyModel
from ebmvk.model.language import TokenLaw


@pytest.mark.parametrize("length", [1, 2, 31, 48, 49, 97, 130])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_probabilities_sum_to_one(length: int, scale: float) -> None:
    model = build()
    with torch.no_grad():
        model.energy.log_scale.fill_(math.log(scale))
        total = model.log_p_lex(model(tokens(length))).double().exp().sum(-1)
    # float32 log-softmax over 61 tokens: rounding of a few 1e-7 per term.
    assert (total - 1).abs().max() < 1e-5


@pytest.mark.parametrize("length", [8, 33, 64, 80, 127])
@pytest.mark.parametrize("name", VARIANTS)
def test_permuting_future_tokens_changes_no_bit(length: int, name: str) -> None:
    """Outputs at t < cut stay the same: a future token is not read and doesn't change the
    rounding."""
    model = build(variant(name))
    row = tokens(length, batch=3)
    with torch.no_grad():
        before = model(row)
        for cut in (1, length // 3, length // 2, length - 1):
            generator = torch.Generator().manual_seed(cut)
            changed = row.clone()
            changed[:, cut:] = row[:, cut:][:, torch.randperm(length - cut, generator=generator)]
            changed[:, -1] = (row[:, -1] + 1) % VOCABULARY
            after = model(changed)
            assert not torch.equal(before.query, after.query)
            for field, rows in vars(before).items():
                if isinstance(rows, torch.Tensor):
                    assert torch.equal(rows[:, :cut], getattr(after, field)[:, :cut]), (field, cut)
            logits = model.logits(before)[:, :cut], model.logits(after)[:, :cut]
            assert torch.equal(*logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_is_causal_bit_for_bit_at_real_sizes(name: str) -> None:
    """Real shapes use other matrix kernels than small ones: 2 x 128 rows and 4 experts as in
    `--size tiny`."""
    torch.manual_seed(1)
    model = build_model(variant(name, ModelConfig()), VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.eval()
    row = tokens(128)
    changed = row.clone()
    changed[:, 70:] = tokens(58, seed=9)
    with torch.no_grad():
        assert torch.equal(model(row).query[:, :70], model(changed).query[:, :70])


@pytest.mark.parametrize("name", VARIANTS)
def test_training_mode_is_causal_up_to_rounding(name: str) -> None:
    model = build(dataclasses.replace(variant(name), dropout=0.0)).train()
    row, cut = tokens(64), 40
    changed = row.clone()
    changed[:, cut:] = tokens(24, seed=5)
    # Expert groups have other sizes: float32 rounding may differ, information may not flow.
    torch.testing.assert_close(model(row).query[:, :cut], model(changed).query[:, :cut], rtol=1e-5, atol=1e-5)


def test_context_is_limited_by_the_windows() -> None:
    """The state sees at most the sum of the layers' windows back, and it sees the far end of the
    last window."""
    model = build(dataclasses.replace(SMALL, context_local=2, context_medium=3, context_global=4))
    row = tokens(40, batch=1)
    reach = (2 - 1) + (3 - 1) + (4 - 1) + model.config.n_layers  # one more token per layer through the shifted keys
    changed = row.clone()
    changed[:, 0] = (row[:, 0] + 1) % VOCABULARY
    with torch.no_grad():
        moved = (model(row).query != model(changed).query).any(-1).squeeze(0)
    assert moved[0]
    assert moved[6]
    assert not moved[reach + 1 :].any()


def test_windows_widen_with_depth() -> None:
    for layers in range(3, 13):
        scales = layer_scales(layers)
        assert scales == sorted(scales)
        assert set(scales) == {0, 1, 2}
    assert layer_scales(1) == [2]
    assert layer_scales(4) == [0, 1, 2, 2]


@pytest.mark.parametrize("on", [on for on in itertools.product([True, False], repeat=3) if any(on)])
def test_energy_is_the_sum_of_the_terms_switched_on(on: tuple[bool, bool, bool]) -> None:
    splat, geometric, compositional = on
    model = build(dataclasses.replace(SMALL, **dict(zip(TERMS, on, strict=True)))).double()
    with torch.no_grad():
        context, mu = model(tokens(20)), model.embeddings() * model.log_kappa.exp()[:, None]
        energy = -model.bias.expand(2, 20, -1)
        unit = 1.0 if splat else model.energy.scale
        if splat:
            energy = energy - model.energy.scale * context.h @ mu.T
        if geometric:
            weights = torch.softmax(model.energy.scale_logits, -1)
            scales = (context.local, context.medium, context.global_)
            for weight, scale in zip(weights, scales, strict=True):
                energy = energy - unit * model.energy.lambda_geo * weight * (scale @ mu.T)
        if compositional:
            energy = energy - unit * model.energy.lambda_comp * (context.composed @ mu.T)
    terms = context.terms
    assert tuple(term is not None for term in (terms.splat, terms.geometric, terms.compositional)) == on
    torch.testing.assert_close(model.logits(context), -energy, rtol=1e-12, atol=1e-12)
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert ("decoder" in parts, "composition" in parts) == (splat, compositional)
    assert (context.composed is not None) == compositional
    if not splat:  # memory keeps the point that is compared with the tokens
        torch.testing.assert_close(context.h, context.query / context.query.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("name", ["ebm", "without splat", "splat only"])
def test_an_untrained_model_is_near_the_unigram_distribution(name: str) -> None:
    """With any terms, the logits start with variance 1/4."""
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(variant(name), latent_dim=256, n_heads=2), 500).eval()
    with torch.no_grad():
        found = float(model.logits(model(torch.randint(500, (2, 40)))).std())
    assert 0.3 < found < 0.8


@pytest.mark.parametrize("size", PRESETS)
def test_both_decoders_have_equally_many_active_parameters(size: Size) -> None:
    """Within 15 % at every size. Experts that a row isn't sent to don't count as active."""
    config = replace(Config(), PRESETS[size]).model
    counts = {}
    for kind in ("moe", "transformer"):
        decoder = build_decoder(dataclasses.replace(config, decoder=kind))
        counts[kind] = sum(p.numel() for p in decoder.parameters())
        if kind == "moe":
            expert = sum(p.numel() for p in [decoder.moe.up[0].weight, decoder.moe.down[0].weight])
            counts[kind] -= (config.moe_experts - config.moe_active) * expert
    assert abs(counts["transformer"] / counts["moe"] - 1) < 0.15


def test_the_transformer_decoder_looks_back() -> None:
    """Unlike the mixture: with the same state, another earlier position changes the point."""
    decoder = build(variant("transformer decoder")).decoder
    rows = torch.randn(1, 9, 4 * SMALL.latent_dim)
    with torch.no_grad():
        moved, losses = decoder.moved(rows)
        rows[:, 3] += 1
        changed = (decoder.moved(rows)[0] != moved).any(-1)[0]
    assert not losses
    assert changed.tolist() == [False] * 3 + [True] * 6


def test_every_output_is_a_unit_row() -> None:
    model = build()
    with torch.no_grad():
        context = model(tokens(50))
        rows = [context.h, context.local, context.medium, context.global_, context.composed, model.embeddings()]
    for row in rows:
        assert (row.norm(dim=-1) - 1).abs().max() < 1e-6  # a few float32 roundings of a sum of 32 squares


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(training: bool, name: str) -> None:
    model = build(variant(name)).train(training)
    context = model(tokens(50))
    (model.log_p_lex(context)[..., 0].sum() + sum(context.losses(context.sums(), 100).values())).backward()
    for own, parameter in model.named_parameters():
        assert parameter.grad is not None, own
        assert bool(parameter.grad.isfinite().all()), own
        assert parameter.grad.abs().max() > 0, own


def test_float32_agrees_with_float64() -> None:
    model, row = build(), tokens(70)
    with torch.no_grad():
        narrow = model.log_p_lex(model(row))
        wide = model.double().log_p_lex(model(row))
    assert wide.dtype == torch.float64
    # Float32 through 3 layers: relative 1e-6 per operation on logits of size 10.
    assert (narrow - wide).abs().max() < 2e-4


def test_start_from_counts_gives_the_unigram_distribution() -> None:
    model = EnergyModel(SMALL, VOCABULARY)
    counts = torch.arange(VOCABULARY)
    model.start_from_counts(counts)
    expected = (counts + 1).double() / (counts + 1).sum()
    torch.testing.assert_close(torch.softmax(model.bias, -1), expected.float())


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"n_heads": 3}, "--n-heads"),
        ({"latent_dim": 6, "n_heads": 2}, "--n-heads"),
        ({"context_local": 10}, "--context-local"),
        ({"moe_active": 5}, "--moe-active"),
        (dict.fromkeys(TERMS, False), "--no-use-splat"),
    ],
)
def test_contradicting_settings_are_refused_and_the_flag_named(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError) as raised:
        EnergyModel(dataclasses.replace(SMALL, **changes), VOCABULARY)
    assert flag in raised.value.what
    assert raised.value.hint


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("at_once", [1, 7 * VOCABULARY, 1 << 22])
def test_token_law_in_pieces_equals_the_softmax_of_all_logits(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy in float64, for pieces of one row, of rows that don't divide the text, and of
    the whole."""
    monkeypatch.setattr("ebmvk.model.language.LOGITS_AT_ONCE", at_once)
    model = build(variant(name))
    with torch.no_grad():
        seen, following = model(tokens(23)), tokens(23, seed=1).flatten()
        logits = model.logits(seen).flatten(0, 1).double().numpy()
    wanted = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    law, query = TokenLaw(model), seen.query.flatten(0, 1)
    np.testing.assert_allclose(law.of(query, following), wanted[np.arange(46), following], atol=2e-6)
    for rows, log_p in law.pieces(query):
        np.testing.assert_allclose(log_p, wanted[rows], atol=2e-6)
