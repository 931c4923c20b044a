"""The energy model: tied unit token embeddings, trunk, decoder, energy; an exact token law (model sections 3 to 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config import ModelConfig, check_model
from ebmvk.model.context import ContextTrunk, Scales
from ebmvk.model.decoder import Composition, Decoder
from ebmvk.model.energy import QueryTerms, TokenEnergy
from ebmvk.sphere.geometry import projx


@dataclass(frozen=True)
class Context:
    """What the model makes of every prefix. query: (B, T, d), with log p(v|c) = query.mu_v + b_v - log Z. h: the point
    h_hat; local, medium, global_, composed: unit rows (B, T, d). aux: scalar losses by name."""

    query: Tensor
    h: Tensor
    local: Tensor
    medium: Tensor
    global_: Tensor
    composed: Tensor
    terms: QueryTerms
    aux: dict[str, Tensor]


class EnergyModel(nn.Module):
    """p(v|c) = softmax(query(c).mu_v + b_v) over the vocabulary, with the tokens' unit vectors mu_v on both sides.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        check_model(config)
        self.config, self.vocab_size = config, vocab_size
        # Rows of about unit length, so that a step of the optimiser turns them about as far as it moves them.
        self.points = nn.Parameter(torch.randn(vocab_size, config.latent_dim) / math.sqrt(config.latent_dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.trunk = ContextTrunk(config)
        self.composition = Composition(config.latent_dim)
        self.decoder = Decoder(config)
        self.energy = TokenEnergy(config)
        # What no energy term reads gets no gradient, and the optimiser keeps no state for it.
        self.composition.requires_grad_(config.use_compositional)
        self.decoder.requires_grad_(config.use_decoder)
        scales = config.use_decoder or config.use_geometric or config.use_compositional
        self.trunk.heads[1:].requires_grad_(scales)

    def embeddings(self) -> Tensor:
        """mu: (V, d) unit rows."""
        return projx(self.points)

    @torch.no_grad()
    def start_from_counts(self, counts: Tensor) -> None:
        """Sets the bias to log unigram frequencies, smoothed by one. counts: (V,) tokens of the training split."""
        frequency = counts.to(torch.float64) + 1
        self.bias.copy_((frequency / frequency.mean()).log())

    def forward(self, tokens: Tensor, embeddings: Tensor | None = None) -> Context:
        """tokens: (B, T) int64. `embeddings`: what `embeddings()` returned, where the caller needs it too."""
        mu = self.embeddings() if embeddings is None else embeddings
        scales = self.trunk(F.embedding(tokens, mu))
        return self._context(scales)

    def _context(self, scales: Scales) -> Context:
        composed = self.composition(self.composition(scales.local, scales.medium), scales.global_)
        point, aux = scales.state, {}
        if self.config.use_decoder:
            point, routing = self.decoder(scales)
            aux = routing.losses()
        terms = self.energy.terms(point, scales, composed)
        return Context(terms.total(), point, scales.local, scales.medium, scales.global_, composed, terms, aux)

    def logits(self, context: Context, embeddings: Tensor | None = None) -> Tensor:
        """-E(v|c): (B, T, V)."""
        return F.linear(context.query, self.embeddings() if embeddings is None else embeddings, self.bias)

    def log_p_lex(self, context: Context, embeddings: Tensor | None = None) -> Tensor:
        """Exact log p(v|c): (B, T, V), normalised over the whole vocabulary."""
        return torch.log_softmax(self.logits(context, embeddings), dim=-1)
