"""Cross-entropy of queries against the whole vocabulary, without holding all logits if there are
many.

The logits of a chunk of rows stay in cache while they become probabilities and gradients; the
backward pass only scales what the forward pass computed. At 4,096 rows and 8,192 tokens this saves
134 MB of logits and half of the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.engine.library import operation

FEW_LOGITS = 1 << 18
"""Up to this many logits stay in cache anyway, and torch's own passes take half the time of ours.
"""
CHUNK_ELEMENTS = 1 << 22  # 16 MiB of float32 logits, 8 of bfloat16
COMPILED_ELEMENTS = 1 << 23
"""Logits of a chunk in a compiled step: 32 MiB, a quarter of the range that every device can bind.
"""


def reference(
    query: Tensor, points: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operation `ebmvk::linear_cross_entropy` in plain torch, holding all logits.

    Returns the losses w_i * -log softmax(query_i mu^T + b)[target_i] (N,), and the gradients of
    their sum with respect to query (N, d), points (V, d) and bias (V,). Arguments as for
    `linear_cross_entropies`.
    """
    narrow, part = points.to(dtype), query.to(dtype)
    p = torch.softmax(F.linear(part, narrow, bias.to(dtype)), dim=-1)
    losses = -p.gather(-1, targets[:, None]).squeeze(-1).to(query.dtype).log()
    pull = p.to(query.dtype) - F.one_hot(targets, len(points)).to(query.dtype)
    if weights is not None:
        losses, pull = losses * weights, pull * weights[:, None]
    return losses, pull @ narrow.to(query.dtype), pull.t() @ part.to(query.dtype), pull.sum(0)


def _in_chunks(
    query: Tensor, points: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference`, some rows at a time."""
    rows, vocabulary = len(query), len(points)
    narrow, narrow_bias = points.to(dtype), bias.to(dtype)
    grad_query, grad_points, grad_bias = torch.empty_like(query), torch.zeros_like(points), torch.zeros_like(bias)
    log_p = query.new_empty(rows)
    size = min(rows, max(1, CHUNK_ELEMENTS // vocabulary))
    # All chunks are written into the same arrays, because the system would fill each page of a new
    # array with zeros.
    logits, probabilities = (query.new_empty(size, vocabulary, dtype=dtype) for _ in range(2))
    # The gradients of points and bias are sums over these rows. Weights scale the rows here, where
    # they are narrow.
    own = query if weights is None else query * weights[:, None]
    ones = query.new_ones(rows, dtype=dtype) if weights is None else weights.to(dtype)
    product = None if dtype == points.dtype else torch.empty_like(narrow)
    for start in range(0, rows, size):
        chunk = slice(start, start + size)
        part = query[chunk].to(dtype)
        scaled = part if weights is None else own[chunk].to(dtype)
        p = probabilities[: len(part)]
        torch.addmm(narrow_bias, part, narrow.t(), out=logits[: len(part)])
        torch.softmax(logits[: len(part)], dim=-1, out=p)
        log_p[chunk] = p.gather(-1, targets[chunk, None]).squeeze(-1).to(query.dtype).log()
        grad_query[chunk] = p @ narrow
        if product is None:
            grad_points.addmm_(p.t(), scaled)
        else:
            grad_points += torch.mm(p.t(), scaled, out=product)
        grad_bias += p.t() @ ones[chunk]
    grad_query -= points.index_select(0, targets)
    grad_points.index_add_(0, targets, own, alpha=-1)
    grad_bias.index_add_(0, targets, torch.ones_like(log_p) if weights is None else weights, alpha=-1)
    if weights is not None:
        grad_query *= weights[:, None]
        return -log_p * weights, grad_query, grad_points, grad_bias
    return -log_p, grad_query, grad_points, grad_bias


def _compiled(
    query: Tensor, points: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference` as a compiled step computes it: of COMPILED_ELEMENTS logits at a time, with
    operations that fuse into one pass over them."""
    narrow, words = points.to(dtype), torch.arange(len(points), device=points.device)
    size = max(1, COMPILED_ELEMENTS // len(points))
    losses, of_query, of_points, of_bias = [], [], torch.zeros_like(points), torch.zeros_like(bias)
    for start in range(0, len(query), size):
        chunk = slice(start, start + size)
        part, target = query[chunk].to(dtype), targets[chunk, None]
        log_p = torch.log_softmax(torch.addmm(bias.to(dtype), part, narrow.t()).to(query.dtype), -1)
        loss = -log_p.gather(-1, target).squeeze(-1)
        pull = log_p.exp() - (words == target).to(query.dtype)
        if weights is not None:
            loss, pull = loss * weights[chunk], pull * weights[chunk, None]
        losses.append(loss)
        of_query.append(pull.to(dtype) @ narrow)
        # The first chunk isn't added to anything, so a single chunk takes three products and no
        # more.
        product = pull.to(dtype).t() @ part
        of_points, of_bias = (of_points + product, of_bias + pull.sum(0)) if start else (product, pull.sum(0))
    return torch.cat(losses), torch.cat(of_query), of_points, of_bias


def _fake(query: Tensor, points: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return query.new_empty(len(query)), torch.empty_like(query), torch.empty_like(points), torch.empty_like(bias)


_OPERATION = operation(
    "linear_cross_entropy(Tensor query, Tensor points, Tensor bias, Tensor targets, Tensor? weights, ScalarType dtype)"
    " -> (Tensor losses, Tensor of_query, Tensor of_points, Tensor of_bias)",
    reference=reference,
    fast=_in_chunks,
    fake=_fake,
    apart=_compiled,
)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        losses, *gradients = _OPERATION(*arguments)
        ctx.save_for_backward(*gradients)
        ctx.rows = len(losses)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, points, bias = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return query.mul_(scale), points.mul_(scale), bias.mul_(scale), None, None, None  # no second backward pass


def linear_cross_entropy(
    query: Tensor, points: Tensor, bias: Tensor, targets: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Mean over rows of -log softmax(query mu^T + b)[target], in nats.

    query: (N, d); points: (V, d); bias: (V,); targets: (N,) int64. All floating tensors have one
    dtype.
    dtype: the one for products (bfloat16 in mixed precision), and for probabilities if there are
        many logits; sums keep the dtype of `query`.
    """
    return linear_cross_entropies(query, points, bias, targets, dtype)[0]


def linear_cross_entropies(
    query: Tensor,
    points: Tensor,
    bias: Tensor,
    targets: Tensor,
    dtype: torch.dtype | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, and the loss of each row (N,), without a gradient: -log p(v|c) of the
    targets. weights: (N,), factors of the rows; by default 1."""
    if len(query) * len(points) <= FEW_LOGITS:
        narrow = dtype or query.dtype
        logits = F.linear(query.to(narrow), points.to(narrow), bias.to(narrow)).to(query.dtype)
        losses = F.cross_entropy(logits, targets, reduction="none")
        losses = losses if weights is None else losses * weights
        return losses.mean(), losses.detach()
    arguments = (query, points, bias, targets, weights, dtype or query.dtype)
    found: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return found
