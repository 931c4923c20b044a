"""The plain model against a naive one, position by position; its shared table; what it can
learn."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.config.schema import Config, ModelConfig, TrainingConfig
from ebmvk.engine.reference import Reference
from ebmvk.model.build import build_model
from ebmvk.model.transformer import PlainModel
from ebmvk.objective import losses
from ebmvk.training import optim

SMALL = ModelConfig(
    model="plain", latent_dim=24, n_layers=4, n_heads=3, ffn_dim=20, context_local=2, context_medium=7,
    context_global=40, dropout=0.0,
)  # fmt: skip
VOCABULARY = 37


def build(config: ModelConfig = SMALL, seed: int = 0) -> PlainModel:
    """A model whose zero-initialised matrices are random too."""
    torch.manual_seed(seed)
    model = build_model(config, VOCABULARY)
    assert isinstance(model, PlainModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.double().eval()


def tokens(length: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def normed(x: Tensor) -> Tensor:
    return x / x.square().mean().add(torch.finfo(x.dtype).eps).sqrt()


def rotated(x: Tensor, position: int) -> Tensor:
    """Pairs (x_i, x_{i + n/2}) turned by position 1000^(-2i/n), as complex numbers."""
    half = len(x) // 2
    angles = position * 1000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / len(x))
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag])


def naive_attention(attention: torch.nn.Module, rows: list[Tensor]) -> list[Tensor]:
    """Attention of each query and head over the keys it may see.

    The first half of the heads has keys one token late.
    """
    heads, window, dim = attention.heads, attention.window, len(rows[0])
    width = dim // heads
    q, k, v = ([part @ x for x in rows] for part in attention.qkv.weight.split(dim))
    out = []
    for t in range(len(rows)):
        mixed = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            late = int(head < heads // 2)
            query = rotated(normed(q[t][own]), t) * attention.temperature[head, 0, 0] / math.sqrt(width)
            seen = range(max(0, t - window + 1), t + 1)
            keys = [normed(k[s - late][own]) if s >= late else torch.zeros(width).double() for s in seen]
            scores = torch.stack([query @ rotated(key, s) for key, s in zip(keys, seen, strict=True)]) / math.sqrt(
                width
            )
            weights = torch.softmax(scores, 0)
            mixed.append(sum(w * v[s][own] for w, s in zip(weights, seen, strict=True)))
        out.append(attention.out.weight @ torch.cat(mixed))
    return out


def naive_logits(model: PlainModel, ids: Tensor) -> Tensor:
    """(T, V) of one row of tokens."""
    stream = [normed(model.table[i]) for i in ids]
    for block in model.blocks:
        moved = naive_attention(block.attention, [normed(x) for x in stream])
        stream = [x + y for x, y in zip(stream, moved, strict=True)]
        hidden = [torch.clamp(block.up.weight @ normed(x), min=0) ** 2 for x in stream]
        stream = [x + block.down.weight @ y for x, y in zip(stream, hidden, strict=True)]
    return torch.stack([model.table @ normed(x) + model.bias for x in stream])


@pytest.mark.parametrize(("length", "heads"), [(1, 1), (2, 3), (31, 1), (50, 3)])  # windows go in blocks from 49 on
@torch.no_grad()
def test_the_plain_model_equals_a_naive_one(length: int, heads: int) -> None:
    model = build(dataclasses.replace(SMALL, n_heads=heads), seed=length)
    ids = tokens(length)
    seen = model(ids)
    expected = torch.log_softmax(naive_logits(model, ids[1]), -1)
    torch.testing.assert_close(model.log_p_lex(seen)[1], expected, rtol=1e-10, atol=1e-10)  # float64
    torch.testing.assert_close(seen.h.norm(dim=-1), torch.ones(2, length).double())
    torch.testing.assert_close(seen.query, seen.h * math.sqrt(SMALL.latent_dim))


def test_input_and_output_share_one_table() -> None:
    """Rows of tokens that weren't read get a gradient from the output; no other tensor has V
    rows."""
    model = build()
    assert model.embeddings() is model.table
    assert [name for name, p in model.named_parameters() if VOCABULARY in p.shape] == ["bias", "table"]
    ids = torch.zeros(1, 9, dtype=torch.int64)
    F.nll_loss(model.log_p_lex(model(ids))[0], torch.zeros(9, dtype=torch.int64)).backward()
    assert bool((model.table.grad.norm(dim=1) > 0).all())
    with torch.no_grad():
        before = model.logits(model(ids))
        model.table[0] += 1  # the only token that is read
        changed = model.logits(model(ids)) != before
    assert bool(changed[..., 0].all())  # as an output
    assert bool(changed[..., 1:].any())  # and, through the state, as an input


def test_plain_models_start_near_the_unigram_law_and_can_memorise_a_text() -> None:
    config = Config(model=SMALL, training=TrainingConfig(steps=60, learning_rate=2e-2, warmup_steps=5))
    torch.manual_seed(0)
    model = build_model(SMALL, VOCABULARY)
    text = tokens(21, batch=3)
    counts = torch.bincount(text.flatten(), minlength=VOCABULARY)
    model.start_from_counts(counts)
    unigram = -((counts + 1.0) / (counts + 1.0).sum()).log()[text[:, 1:]].mean()
    optimizer = optim.build(model, config.training)
    history = []
    for step in range(config.training.steps):
        optimizer.zero_grad()
        found = losses.objective(model, text, Reference(), config, seed=0, step=step)
        assert set(found.parts) == {"ce"}
        found.total.backward()
        optimizer.step(optim.lr_at(step, config.training), optimizer.gradient_norm())
        history.append(float(found.parts["ce"]))
    assert abs(history[0] - float(unigram)) < 0.3
    assert history[-1] < 0.05
