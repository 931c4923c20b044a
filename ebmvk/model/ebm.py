"""The energy model: unit token vectors, trunk, decoder, energy (model sections 3 to 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config.checks import check_model
from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Past
from ebmvk.model.context import SCALES, ContextTrunk
from ebmvk.model.decoder import Composition, MixtureDecoder, build_decoder
from ebmvk.model.dropout import NONE, Masks
from ebmvk.model.energy import QueryTerms, TokenEnergy
from ebmvk.model.language import Context, LanguageModel, OwnLoss
from ebmvk.model.roles import UNIT_ROWS
from ebmvk.sphere.geometry import off_sphere, projx


@dataclass(frozen=True)
class EnergyContext(Context):
    """The output of the energy model for every prefix.

    query: log p(v|c) = kappa_v query.mu_v + b_v - log Z. h: the point h_hat, or the direction of
    the query if the splat term is off. local, medium, global_, composed: unit rows (B, T, d);
    composed is None without a compositional term.
    """

    local: Tensor
    medium: Tensor
    global_: Tensor
    composed: Tensor | None
    terms: QueryTerms


class EnergyModel(LanguageModel):
    """The energy model: p(v|c) = softmax(kappa_v query(c).mu_v + b_v).

    The unit vectors mu_v of the tokens are both input and output. Each token v is a splat with a
    direction mu_v, a concentration kappa_v and a weight e^{b_v}.

    Parts that no energy term needs aren't built: without the splat term, the decoder and the head
    of the state; without the compositional term, the composition.

    Raises:
        ConfigError: settings that contradict each other.
    """

    on_sphere: ClassVar[bool] = True
    default_sampler: ClassVar[str] = "langevin"
    rows_name, rows_role = "points", UNIT_ROWS
    inherited = ("points", "bias", "trunk.", "energy.log_scale")

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        check_model(config)
        super().__init__(config, vocab_size)
        # Rows of about unit length, so that a step of the optimiser turns them as far as it moves
        # them.
        self.points = nn.Parameter(torch.randn(vocab_size, config.latent_dim) / math.sqrt(config.latent_dim))
        self.log_kappa = nn.Parameter(torch.zeros(vocab_size))
        self.trunk = ContextTrunk(config)
        self.composition = Composition(config.latent_dim) if config.use_compositional else None
        self.decoder = build_decoder(config) if config.use_splat and config.decoder != "none" else None
        self.own_losses = isinstance(self.decoder, MixtureDecoder)
        self.energy = TokenEnergy(config)
        # Pretraining builds the heads of the scales, although no term reads them; then they aren't
        # trained.
        read = config.use_geometric or config.use_compositional or self.decoder is not None
        self.trunk.heads[-SCALES:].requires_grad_(read)

    def embeddings(self) -> Tensor:
        """mu: (V, d) unit rows."""
        return projx(self.points)

    def concentrations(self) -> Tensor:
        """kappa_v: (V,), 1 at first. The scale that all tokens share is a part of `TokenEnergy`."""
        return self.log_kappa.exp()

    @torch.no_grad()
    def fault_in(self, weights: Mapping[str, Tensor]) -> str | None:
        """Names a row of `points` without a direction, or a concentration that isn't above 0."""
        row = off_sphere(projx(weights["points"]))
        if row is not None:
            length = torch.linalg.vector_norm(weights["points"][row].double())
            return f"tensor 'points': row {row}, of length {float(length):g}, has no direction"
        for name in ("log_kappa", "energy.log_scale"):
            kappa = weights[name].exp().flatten()
            wrong = ~((kappa > 0) & kappa.isfinite())
            if bool(wrong.any()):
                return (
                    f"tensor '{name}': it stands for kappa {float(kappa[wrong][0]):g}, which is not above 0 and finite"
                )
        return None

    @torch.no_grad()
    def start_from_directions(self, known: Tensor, directions: Tensor) -> None:
        """Set the rows to length 1, which is about the length of the random ones."""
        self.points[known] = directions[known]

    def forward(
        self, tokens: Tensor, embeddings: Tensor | None = None, cache: Past | None = None, masks: Masks = NONE
    ) -> EnergyContext:
        """tokens: (B, T) int64.

        embeddings: the result of `embeddings()`, if the caller has it already.
        """
        mu = self.embeddings() if embeddings is None else embeddings
        scales = self.trunk(F.embedding(tokens, mu), cache, masks)
        composed, point = None, scales.state
        aux: Sequence[OwnLoss] = ()
        if self.composition is not None:
            composed = self.composition(self.composition(scales.local, scales.medium), scales.global_)
        if self.decoder is not None:
            point, aux = self.decoder(scales, cache, masks.at(self.config.n_layers + 1))
        terms = self.energy.terms(point, scales, composed)
        query = terms.total()
        h = projx(query) if point is None else point
        return EnergyContext(query, h, aux, scales.local, scales.medium, scales.global_, composed, terms)
