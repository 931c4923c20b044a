"""Saves and loads a memory as a file beside the weights that it was built for.

The file also holds a digest of these weights, so that a memory is never used with another model,
and it holds the likelihoods that `ebmvk memory` measured.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ebmvk.errors import CheckpointError
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.memory.law import TIERS, Law, Memory, Mode
from ebmvk.model.language import LanguageModel
from ebmvk.runs.atomic import write_atomic
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.runs.manifest import MODEL

NATS = "nats."  # prefix of the names of laws, for their likelihoods


def save(folder: Path, memory: Memory, fitted_on: FittedOn, nats: Mapping[Law, float]) -> Path:
    """Write the memory into the checkpoint folder that it was built for; returns the file's path.

    nats: {law: nats per token} on the text that the memory was fitted on.

    Raises:
        StorageError: the file can't be written; an older one stays intact.
    """
    figures = {f"{NATS}{law}": torch.tensor(value, dtype=torch.float64) for law, value in nats.items()}
    state = memory.state() | figures | {"model": _weights(folder)}
    write_atomic(folder / MEMORY_FILE, dump_tensors(state, metadata=fitted_on.metadata()))
    return folder / MEMORY_FILE


def fitted_nats(folder: Path) -> dict[str, float]:
    """{law: nats per token of the text that a folder's memory was fitted on}.

    Empty for files of earlier versions.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / MEMORY_FILE
    try:
        with safe_open(file, "pt") as opened:
            there = set(opened.keys())
            names = {law: f"{NATS}{law}" for law in ("none", "calibrated", *TIERS) if f"{NATS}{law}" in there}
            return {law: float(opened.get_tensor(name)) for law, name in names.items()}
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{file}: its figures cannot be read ({error})", hint="build the memory again with `ebmvk memory`"
        ) from None


def load(folder: Path, model: LanguageModel, mode: Mode) -> Memory:
    """The memory in a checkpoint folder.

    Raises:
        CheckpointError: the folder has no memory, it lacks a tier that `mode` needs, it is damaged,
            or it belongs to another model.
    """
    file, again = folder / MEMORY_FILE, f"build it with `ebmvk memory --checkpoint {shlex.quote(str(folder))}`"
    try:
        state = load_tensors(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no memory", hint=again) from None
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})", hint=again) from None
    digest = state.pop("model", None)
    if digest is None or not torch.equal(digest, _weights(folder)):
        raise CheckpointError(
            f"{file}: it was built for other weights than this checkpoint's",
            why="its splats are states of the model that it was built with",
            hint=again,
        )
    memory = Memory.from_state(state, str(file))
    if (memory.d, memory.vocab_size) != (model.config.latent_dim, model.vocab_size):
        raise CheckpointError(
            f"{file}: its splats have latent_dim {memory.d} and {memory.vocab_size} tokens, but the model has "
            f"{model.config.latent_dim} and {model.vocab_size}",
            hint=again,
        )
    if "static" in TIERS[mode] and memory.static is None:
        raise CheckpointError(f"{file}: it has no static splats", hint=again)
    return memory


def _weights(folder: Path) -> Tensor:
    """SHA-256 of a checkpoint's weights, (32,) uint8."""
    return torch.tensor(list(hashlib.sha256((folder / MODEL).read_bytes()).digest()), dtype=torch.uint8)
