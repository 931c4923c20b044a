"""INFINITO: a transformer with an external memory, and a loss for the integration of its hidden
state.

The memory has slots with learned addresses. A token writes its value to the slots near its key. The
strength of the write grows with the token's importance above a learned threshold. A token reads the
mean of what earlier tokens wrote near its query:

    w_i = sigmoid(u_i - theta),   M_t[s] = sum_{i<t} w_i a_is v_i,   N_t[s] = sum_{i<t} w_i a_is,
    read_t = sum_s r_ts M_t[s] / (N_t[s] + 1),   a_is, r_ts softmax over the slots

An empty slot reads as zero, and a token may be any distance back. This is linear attention with the
slots as features (Katharopoulos et al. 2020), normalised for each slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Past, Room
from ebmvk.model.dropout import NONE, Masks
from ebmvk.model.integration import correlation_of, phi_of
from ebmvk.model.language import Counted, OwnLoss
from ebmvk.model.layers import apply, rms_norm
from ebmvk.model.transformer import Transformer, dense_blocks

UNITS = 16  # number of hidden units whose integration is measured, evenly spread over the state


class ExternalMemory(nn.Module):
    """(B, T, d) -> (B, T, d): what each position reads from the memory; zero before training."""

    def __init__(self, dim: int, slots: int) -> None:
        super().__init__()
        self.read = nn.Linear(dim, dim, bias=False)
        self.write = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.importance = nn.Parameter(torch.zeros(dim))
        self.threshold = nn.Parameter(torch.zeros(()))
        self.addresses = nn.Parameter(torch.randn(slots, dim) / math.sqrt(dim))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(math.sqrt(dim))))
        nn.init.zeros_(self.out.weight)

    def strength(self, x: Tensor) -> Tensor:
        """How strongly each position writes: (B, T), in (0, 1). x: (B, T, d), normalised."""
        return torch.sigmoid((x * self.importance).sum(-1) - self.threshold)

    def _near(self, x: Tensor) -> Tensor:
        """(B, T, S): how near each slot is, as shares that sum to 1."""
        cosine = F.normalize(x, dim=-1) @ F.normalize(self.addresses, dim=-1).to(x.dtype).T
        return torch.softmax(self.log_sharpness.exp() * cosine.float(), dim=-1)

    def rooms(self) -> tuple[Room, ...]:
        """What a cache keeps of a row: the content of the slots and their mass."""
        slots, dim = self.addresses.shape
        return Room((slots, dim)), Room((slots,))

    def forward(self, x: Tensor, cache: Past | None = None) -> Tensor:
        """x: (B, T, d), normalised."""
        reads, writes, value = self._near(self.read(x)), self._near(self.write(x)), self.value(x)
        weight = self.strength(x)
        if cache and cache.in_padding:
            weight = weight * cache.real(x.shape[1]).to(weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            writes, value = writes * weight[..., None].float(), value.float()
            before = writes.cumsum(1) - writes  # by the tokens before each position
            content = mass = None
            if cache:
                content, mass = cache.parts.get(self, (None, None))
                if mass is not None:
                    before = before + mass[:, None]
            shares = reads / (before + 1)
            # sum_s r_ts a_is for i < t: attention without a softmax gives exactly the sums over the
            # slots.
            scores = (shares @ writes.transpose(-1, -2)).tril(-1)
            found = scores @ value
            if content is not None:
                found = found + shares @ content
            if cache:
                written = writes.transpose(-1, -2) @ value
                total = writes.sum(1)
                if content is not None and mass is not None:
                    written, total = content + written, mass + total
                cache.parts[self] = (written, total)
        projected: Tensor = self.out(found.to(x.dtype))
        return projected


@dataclass(frozen=True)
class Integration:
    """The loss 1 - PHI, where PHI is the integration of hidden units (N, n) float64."""

    units: Tensor

    @property
    def size(self) -> int:
        """Number of sums; see `OwnLoss`."""
        n = self.units.shape[1]
        return n + n * n

    def sums(self, there: Counted | None) -> Tensor:
        """Sums over all rows of the units, and of the products of each pair of units; see
        `OwnLoss`."""
        units = self.units if there is None else there.of(self.units)
        return torch.cat([units.sum(0), (units.T @ units).flatten()])

    def losses(self, sums: Tensor, n: Tensor | int) -> dict[str, Tensor]:
        """{"phi": 1 - PHI}, computed from the sums over n positions."""
        units = self.units.shape[1]
        mean, products = torch.split(sums / n, [units, units * units])
        return {"phi": 1 - phi_of(correlation_of(mean, products.view(units, units))).float()}


class Infinito(Transformer):
    """A transformer that sees the whole sequence and reads the external memory half way up.

    Its own loss `phi` is 1 - PHI of hidden units. It exists in training only: PHI belongs to a
    batch, not to a token, and is larger in small batches (`integration.chance`).
    """

    own_losses = True

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, dense_blocks(config))
        self.reach = config.context_global
        self.memory = ExternalMemory(config.latent_dim, config.memory_slots) if config.use_memory else None

    def read(self, x: Tensor, cache: Past | None, masks: Masks = NONE) -> tuple[Tensor, Sequence[OwnLoss]]:
        """As `Transformer.read`, with the memory half way up."""
        middle = (len(self.blocks) + 1) // 2
        for i, block in enumerate(self.blocks):
            x = apply(block, x, cache, masks.at(i + 1), again=self.config.gradient_checkpointing)
            if i + 1 == middle and self.memory is not None:
                x = x + self.memory(rms_norm(x), cache)
        if not self.training or cache is not None:
            return x, ()
        with torch.autocast(x.device.type, enabled=False):
            return x, (Integration(hidden_units(x)),)


def hidden_units(x: Tensor) -> Tensor:
    """(B T, UNITS) float64: evenly spread coordinates of the residual stream x (B, T, d)."""
    width = x.shape[-1]
    chosen = torch.linspace(0, width - 1, min(UNITS, width)).round().long().to(x.device)
    return rms_norm(x).flatten(0, -2)[:, chosen].double()
