"""The three energy terms of a token, folded into one query (model section 5).

    E(v|c) = -kappa_v mu_v.(s h_hat  +  lambda_geo sum_l lambda_l c_l
                            +  lambda_comp comp(c_l, c_m, c_g)) - b_v

Each term is linear in kappa_v mu_v, so their sum is one inner product with a query.
`TokenEnergy.terms` gives them separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.context import SCALES, Scales


@dataclass(frozen=True)
class QueryTerms:
    """The query (B, T, d) of each term, None if the term is off.

    Their sum is the query of the model.
    """

    splat: Tensor | None
    geometric: Tensor | None
    compositional: Tensor | None

    def total(self) -> Tensor:
        """The query of the model, (B, T, d)."""
        first, *rest = [term for term in (self.splat, self.geometric, self.compositional) if term is not None]
        for term in rest:
            first = first + term
        return first


class TokenEnergy(nn.Module):
    """The learned scale s, the weights of the terms, and the weights of the three context scales.

    Without a splat term, s multiplies the other two terms. The length of the query has to change by
    factors. The weights of the terms change by additive steps, so they would be slow to do that.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Random unit vectors have inner products of about 1/sqrt(d), so this gives logits of
        # variance 1/4. An untrained model then starts near the unigram distribution of its bias;
        # otherwise training spends a hundred steps on coming back to it.
        start = math.sqrt(config.latent_dim) / 2
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))
        weight = start / 8 if config.use_splat else 1 / (config.use_geometric + config.use_compositional)
        self.lambda_geo = nn.Parameter(torch.tensor(weight)) if config.use_geometric else None
        self.scale_logits = nn.Parameter(torch.zeros(SCALES)) if config.use_geometric else None
        self.lambda_comp = nn.Parameter(torch.tensor(weight)) if config.use_compositional else None

    @property
    def scale(self) -> Tensor:
        """s > 0."""
        return self.log_scale.exp()

    def terms(self, point: Tensor | None, scales: Scales, composed: Tensor | None) -> QueryTerms:
        """point h_hat, composed: (B, T, d) unit rows; None without the term that needs them."""
        splat = geometric = compositional = None
        unit: Tensor | float = self.scale
        if point is not None:
            splat, unit = self.scale * point, 1.0
        if self.lambda_geo is not None and self.scale_logits is not None:
            weight = unit * self.lambda_geo * torch.softmax(self.scale_logits, -1)
            geometric = weight[0] * scales.local + weight[1] * scales.medium + weight[2] * scales.global_
        if self.lambda_comp is not None and composed is not None:
            compositional = unit * self.lambda_comp * composed
        return QueryTerms(splat, geometric, compositional)
