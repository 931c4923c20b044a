"""What a model keeps of the tokens it has read, so that the next one costs one position and not all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Cache:
    """Of B rows of tokens. Each module keeps its own part, which only it understands; rows lie along dimension 0.

    pads: (B,) int64, how many of a row's first positions are padding: rows of unequal length end together. length:
    positions read so far, padding included.
    """

    pads: Tensor
    length: int = 0
    parts: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return bool((self.pads > 0).any())

    def real(self, n: int) -> Tensor:
        """(B, n) bool: which of the next n positions are not padding."""
        places = torch.arange(self.length, self.length + n, device=self.pads.device)
        return places >= self.pads[:, None]

    def keep(self, rows: Tensor) -> None:
        """Drops all other rows. rows: (b,) int64."""
        self.pads = self.pads[rows]
        self.parts = {module: tuple(value[rows] for value in part) for module, part in self.parts.items()}
