"""Causal trunk with three scales: sliding-window attention whose window widens with depth (model
section 4).

The trunk's layers are in three parts. The first part sees `context_local` tokens, the second
`context_medium`, the last `context_global`. After each part a head reads one unit context vector
from the residual stream. Positions are rotary, and no distance in a window exceeds the window, so
sequences may be longer than in training.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Past
from ebmvk.model.dropout import NONE, Masks, dropout
from ebmvk.model.layers import Block, apply, rms_norm
from ebmvk.sphere.geometry import projx

SCALES = 3


def layer_scales(n_layers: int) -> list[int]:
    """The scale of each layer, rising with depth: 0 local, 1 medium, 2 global.

    The last layer is always global.
    """
    return [SCALES - 1 - (n_layers - 1 - layer) * SCALES // n_layers for layer in range(n_layers)]


def trunk_blocks(config: ModelConfig) -> nn.ModuleList:
    """The blocks of the trunk, each with the window of its scale."""
    windows = (config.context_local, config.context_medium, config.context_global)
    return nn.ModuleList(Block(config, windows[scale], config.ffn_dim) for scale in layer_scales(config.n_layers))


@dataclass(frozen=True)
class Scales:
    """Unit rows (B, T, d): the contexts of the three scales, and the state h (None if nothing reads
    it)."""

    local: Tensor
    medium: Tensor
    global_: Tensor
    state: Tensor | None


class ContextTrunk(nn.Module):
    """From unit token vectors (B, T, d) to the state and the three context vectors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scales = layer_scales(config.n_layers)
        self.blocks = trunk_blocks(config)
        # The state has its own head. Without one it would start as the last token, and predict that
        # this token repeats.
        self.reads_state = config.use_splat
        heads = SCALES + 1 if self.reads_state else SCALES
        self.heads = nn.ModuleList(nn.Linear(config.latent_dim, config.latent_dim, bias=False) for _ in range(heads))
        self.rate, self.again = config.dropout, config.gradient_checkpointing

    def forward(self, tokens: Tensor, cache: Past | None = None, masks: Masks = NONE) -> Scales:
        """tokens: (B, T, d) unit rows."""
        x = rms_norm(dropout(tokens, self.rate, masks))
        streams = [x] * SCALES
        for part, (scale, block) in enumerate(zip(self.scales, self.blocks, strict=True), start=1):
            x = apply(block, x, cache, masks.at(part), again=self.again)
            streams[scale] = x
        read = [x, *streams] if self.reads_state else streams
        rows = [projx(head(rms_norm(s)).to(x.dtype)) for head, s in zip(self.heads, read, strict=True)]
        local, medium, global_ = rows[-SCALES:]
        return Scales(local, medium, global_, rows[0] if self.reads_state else None)
