"""Transformer language models, to compare the energy model with and to use on their own.

Each has an embedding, blocks, and an output that shares its rows with the embedding. `PlainModel`
is the trunk of the energy model without the energy; `GPT` sees the whole sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Past
from ebmvk.model.context import trunk_blocks
from ebmvk.model.dropout import NONE, Masks, dropout
from ebmvk.model.experts import MixtureOfExperts, Routing
from ebmvk.model.language import Context, LanguageModel, OwnLoss
from ebmvk.model.layers import Attention, Block, apply, rms_norm
from ebmvk.model.roles import FREE_ROWS
from ebmvk.sphere.geometry import projx


class Transformer(LanguageModel):
    """A transformer whose token rows may be any vectors. The loss is the cross-entropy, plus the
    losses of the blocks."""

    rows_name, rows_role = "table", FREE_ROWS
    inherited = ("table", "bias", "blocks.")

    def __init__(self, config: ModelConfig, vocab_size: int, blocks: nn.ModuleList) -> None:
        super().__init__(config, vocab_size)
        # Blocks start at zero, so the last hidden state starts as the last token. Its own logit is
        # then sqrt(d) times the length of its row, which rows of length d^-1/2 keep near 1.
        self.table = nn.Parameter(torch.randn(vocab_size, config.latent_dim) / config.latent_dim)
        self.blocks = blocks

    def embeddings(self) -> Tensor:
        """(V, d), of any length."""
        return self.table

    @torch.no_grad()
    def start_from_directions(self, known: Tensor, directions: Tensor) -> None:
        """Set the rows to length d^-1/2, which is about the length of the random ones."""
        self.table[known] = directions[known] / math.sqrt(self.config.latent_dim)

    def forward(
        self, tokens: Tensor, embeddings: Tensor | None = None, cache: Past | None = None, masks: Masks = NONE
    ) -> Context:
        """tokens: (B, T) int64."""
        rows = F.embedding(tokens, self.embeddings() if embeddings is None else embeddings)
        x, aux = self.read(rms_norm(dropout(rows, self.config.dropout, masks)), cache, masks)
        return Context(rms_norm(x), projx(x), aux)

    def read(self, x: Tensor, cache: Past | None, masks: Masks = NONE) -> tuple[Tensor, Sequence[OwnLoss]]:
        """The residual stream (B, T, d) after the last block, and the losses of its experts."""
        losses: list[OwnLoss] = []
        for part, block in enumerate(self.blocks, start=1):
            again = self.config.gradient_checkpointing
            if isinstance(block, ExpertBlock):
                x, routing = apply(block.routed, x, cache, masks.at(part), again=again)
                losses.append(routing)
            else:
                x = apply(block, x, cache, masks.at(part), again=again)
        return x, losses


class PlainModel(Transformer):
    """A transformer with the trunk of the energy model, whose windows widen with depth."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, trunk_blocks(config))


class ExpertBlock(nn.Module):
    """A block with a mixture of experts in place of its feed-forward part. Each expert is as wide
    as the part that it replaces."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.latent_dim
        self.attention = Attention(d, config.n_heads, config.context_global)
        self.moe = MixtureOfExperts(d, config.ffn_dim, d, config.moe_experts, config.moe_active)
        self.rate = config.dropout

    def routed(self, x: Tensor, cache: Past | None = None, masks: Masks = NONE) -> tuple[Tensor, Routing]:
        """x: (B, T, d) -> (B, T, d), and the experts that each position was sent to."""
        x = x + dropout(self.attention(rms_norm(x), cache), self.rate, masks, 0)
        y, routing = self.moe(rms_norm(x).flatten(0, -2))
        return x + dropout(y.view_as(x), self.rate, masks, 1), routing


class GPT(Transformer):
    """Attention over the whole sequence; `use_moe` puts a mixture of experts into each block.
    TinyGPT and Mini-LLM are this model with different recipes."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, _expert_blocks(config) if config.use_moe else dense_blocks(config))
        self.reach, self.own_losses = config.context_global, config.use_moe


def _expert_blocks(config: ModelConfig) -> nn.ModuleList:
    return nn.ModuleList(ExpertBlock(config) for _ in range(config.n_layers))


def dense_blocks(config: ModelConfig) -> nn.ModuleList:
    """Blocks whose attention sees the whole sequence."""
    return nn.ModuleList(Block(config, config.context_global, config.ffn_dim) for _ in range(config.n_layers))
