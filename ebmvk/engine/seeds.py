"""Seeds and determinism. The randomness of a step depends only on (seed, step)."""

from __future__ import annotations

import hashlib
import os

import torch

from ebmvk.config.schema import Config


def step_seed(seed: int, step: int) -> int:
    """The seed of what a run draws at one step.

    With it, a resumed run needs no saved generator state.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest(), "little")


def set_deterministic(config: Config) -> None:
    """With --deterministic, let torch use only algorithms that repeat bit for bit."""
    if config.run.deterministic:
        # cuBLAS reads it when its first handle is made. Without it, torch refuses matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.run.deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports a compiler
        torch.use_deterministic_algorithms(config.run.deterministic)
