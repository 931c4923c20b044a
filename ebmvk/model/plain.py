"""A plain transformer language model on the trunk of the energy model: what that one has to be compared with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config import ModelConfig
from ebmvk.model.cache import Cache
from ebmvk.model.context import trunk_blocks
from ebmvk.model.dropout import dropout
from ebmvk.model.language import Context, LanguageModel
from ebmvk.model.layers import rms_norm
from ebmvk.sphere.geometry import projx


class PlainModel(LanguageModel):
    """Embedding, the trunk's blocks, tied output. Rows are free vectors; the loss is cross-entropy only."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        # Blocks start at zero, so that the last hidden state starts at the last token, whose own logit is then
        # sqrt(d) times the length of its row: rows of length d^-1/2 keep that near 1.
        self.table = nn.Parameter(torch.randn(vocab_size, config.latent_dim) / config.latent_dim)
        self.blocks = trunk_blocks(config)

    def embeddings(self) -> Tensor:
        """(V, d), of any length."""
        return self.table

    @torch.no_grad()
    def start_from_directions(self, known: Tensor, directions: Tensor) -> None:
        """Rows of length d^-1/2, as the random ones about are."""
        self.table[known] = directions[known] / math.sqrt(self.config.latent_dim)

    def forward(self, tokens: Tensor, embeddings: Tensor | None = None, cache: Cache | None = None) -> Context:
        """tokens: (B, T) int64."""
        rows = F.embedding(tokens, self.embeddings() if embeddings is None else embeddings)
        x = rms_norm(dropout(rows, self.config.dropout, self.training))
        for block in self.blocks:
            x = block(x, cache)
        return Context(rms_norm(x), projx(x), {})
