"""Composition of context vectors in a tangent space, and the two decoders (model section 4)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Past
from ebmvk.model.context import Scales
from ebmvk.model.dropout import NONE, Masks
from ebmvk.model.experts import MixtureOfExperts
from ebmvk.model.language import OwnLoss
from ebmvk.model.layers import Block
from ebmvk.sphere.geometry import expmap, proju, projx


def midpoint_and_log(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """p = projx(a + b) and log_p(a), for unit a, b: (..., d).

    p is the midpoint of the geodesic, so log_p(a) = (theta/2) (a-b)/|a-b| and log_p(b) = -log_p(a):
    one closed form gives both logarithms. If a + b = 0, no direction is shortest: then p is a and
    the tangent vector is 0.
    """
    total, difference = a + b, a - b
    plus = (total * total).sum(-1, keepdim=True)
    minus = (difference * difference).sum(-1, keepdim=True)
    tiny = torch.finfo(a.dtype).eps ** 2
    antipodal, equal = plus <= tiny, minus <= tiny
    length = torch.where(antipodal, 1.0, plus).sqrt()
    chord = torch.where(equal, 1.0, minus).sqrt()
    p = torch.where(antipodal, a, total / length)
    # At b = a: atan2(|a-b|, |a+b|) / |a-b| -> 1/|a+b|.
    factor = torch.where(equal, 1 / length, torch.atan2(chord, length) / chord)
    return p, torch.where(antipodal, 0.0, factor * difference)


class Composition(nn.Module):
    """comp(a, b) = exp_p(net[log_p a, log_p b]), p = projx(a + b).

    The two logarithms are opposite (see `midpoint_and_log`), so the network reads only the first: a
    linear layer that reads both equals one that reads the first alone. The output layer starts at
    zero, where comp(a, b) is the midpoint.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim // 2)
        self.outer = nn.Linear(dim // 2, dim, bias=False)
        nn.init.zeros_(self.outer.weight)
        self.gain = math.sqrt(dim)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: (..., d) unit rows -> (..., d) unit rows."""
        p, u = midpoint_and_log(a, b)
        v = self.outer(F.gelu(self.inner(u * self.gain))).to(a.dtype) / self.gain
        return projx(expmap(p, proju(p, v)))


class Decoder(nn.Module, ABC):
    """Computes h_hat, the point that is compared with the tokens: the state h plus a learned
    correction D of h and of the local, medium and global contexts, projected back onto the sphere.

    h_hat = projx(h + D([h; c_l; c_m; c_g]))
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gain = math.sqrt(config.latent_dim)

    @abstractmethod
    def moved(self, rows: Tensor, cache: Past | None = None, masks: Masks = NONE) -> tuple[Tensor, Sequence[OwnLoss]]:
        """Apply D. rows: (B, T, 4 d), elements with mean square 1.

        Returns (B, T, d) and the decoder's own losses.
        """

    def forward(
        self, scales: Scales, cache: Past | None = None, masks: Masks = NONE
    ) -> tuple[Tensor, Sequence[OwnLoss]]:
        """Unit rows h_hat (B, T, d), and the decoder's own losses."""
        h = scales.state
        assert h is not None
        rows = torch.cat([h, scales.local, scales.medium, scales.global_], dim=-1)
        moved, losses = self.moved(rows * self.gain, cache, masks)
        return projx(h + moved / self.gain), losses


class MixtureDecoder(Decoder):
    """D is a mixture of experts, applied to each position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.latent_dim
        self.moe = MixtureOfExperts(4 * d, config.hidden_dim, d, config.moe_experts, config.moe_active)

    def moved(self, rows: Tensor, cache: Past | None = None, masks: Masks = NONE) -> tuple[Tensor, Sequence[OwnLoss]]:
        del cache, masks  # no position looks at another, and nothing is dropped
        y, routing = self.moe(rows.flatten(0, -2))
        return y.view(*rows.shape[:-1], -1), (routing,)


class TransformerDecoder(Decoder):
    """D is a projection to d and one block as in GPT-2: attention over the global window, then two
    layers with GELU.

    D gets about as many weights as A active experts have, 5 A d hidden_dim. Projection and
    attention take 8 d^2 of them; the width of the two layers follows from the rest.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d = config.latent_dim
        width = max(config.hidden_dim, 5 * config.moe_active * config.hidden_dim // 2 - 4 * d)
        self.inner = nn.Linear(4 * d, d, bias=False)
        self.block = Block(config, config.context_global, width, F.gelu)

    def moved(self, rows: Tensor, cache: Past | None = None, masks: Masks = NONE) -> tuple[Tensor, Sequence[OwnLoss]]:
        y: Tensor = self.block(self.inner(rows).to(rows.dtype), cache, masks)
        return y, ()


def build_decoder(config: ModelConfig) -> Decoder:
    """The decoder that `--decoder` names."""
    kinds = {"moe": MixtureDecoder, "transformer": TransformerDecoder}
    return kinds[config.decoder](config)
