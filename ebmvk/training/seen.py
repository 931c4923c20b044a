"""What consolidation samples of each step, kept on the device until its next check.

A step writes its sample into a slot of its own; the host reads all slots at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.memory.while_training import samples

SEEN = "seen"
"""Name of the slots among what a step keeps."""
MOST_BYTES = 1 << 24
"""The most bytes of all slots together. Each step writes all slots, because only the value of a
scalar says which slot is new."""


def empty(config: Config) -> dict[str, Tensor]:
    """The slots for samples, all 0: {SEEN: (slots, m, d + 1) float32}; {} without consolidation."""
    m, width = samples(config), config.model.latent_dim + 1
    if not config.splats.enable_soc:
        return {}
    slots = min(config.splats.soc_check_interval, max(1, MOST_BYTES // (4 * m * width)))
    return {SEEN: torch.zeros(slots, m, width)}


def put(seen: Tensor, sample: Tensor, slot: Tensor) -> Tensor:
    """The slots (slots, m, d + 1) with a sample (m, d + 1) in one of them; slot: int64 scalar."""
    return torch.where(torch.arange(len(seen))[:, None, None] == slot, sample, seen)
