"""Keeps the last training states for consolidation (model section 8)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ebmvk.errors import CheckpointError
from ebmvk.sphere.geometry import off_sphere


@dataclass
class History:
    """A ring buffer of the last n states of a run.

    Args:
        states: (n, d) float32 unit rows.
        tokens: (n,) int64, the token that followed each state.
        energies: (n,) float32, E(v|c) = -log p(v|c), nats.
        steps: (n,) int64, the training step of each state.
        left: (n,) float64, the share of each state that no splat has taken yet; 1 for a new one.
            Assignment and creation both take from it, so that a state enters the store only once.
        added: (1,) int64, the number of states added so far.
        pending: (1,) int64, how many of these have not been assigned to splats yet.
    """

    states: Tensor
    tokens: Tensor
    energies: Tensor
    steps: Tensor
    left: Tensor
    added: Tensor
    pending: Tensor

    @classmethod
    def empty(cls, size: int, d: int) -> History:
        """A ring for `size` states of dimension d, with none in it."""
        whole = torch.zeros(size, dtype=torch.int64)
        count = torch.zeros(1, dtype=torch.int64)
        real = whole.double()
        return cls(torch.zeros(size, d), whole, real.float(), whole.clone(), real, count, count.clone())

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def n(self) -> int:
        """The number of states in the ring."""
        return min(int(self.added), self.size)

    def add(self, states: Tensor, tokens: Tensor, energies: Tensor, step: int) -> None:
        """Add the states (m, d) of a step in place of the oldest ones."""
        keep = slice(max(0, len(states) - self.size), None)
        place = (int(self.added) + torch.arange(len(states))[keep]) % self.size
        self.states[place], self.tokens[place], self.energies[place] = states[keep], tokens[keep], energies[keep]
        self.steps[place], self.left[place] = step, 1.0
        self.added += len(states)
        self.pending += len(states)

    def unassigned(self) -> Tensor:
        """Places (m,) of the states added since `assigned` was last called, the oldest first."""
        new = min(int(self.pending), self.size)
        return (int(self.added) - new + torch.arange(new)) % self.size

    def assigned(self) -> None:
        """Mark all states added so far as assigned."""
        self.pending.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def restore(self, state: dict[str, Tensor], source: str) -> None:
        """Continue from what `state` returned. source: the file, for messages.

        Raises:
            CheckpointError: a tensor is missing, or has the wrong shape or dtype, or impossible
                values.
        """
        for name, own in self.state().items():
            value = state.get(name)
            if value is None or value.shape != own.shape or value.dtype != own.dtype:
                found = "missing" if value is None else f"{tuple(value.shape)} {value.dtype}"
                raise CheckpointError(
                    f"{source}: the history's {name} is {found}, not {tuple(own.shape)} {own.dtype}",
                    why="it was saved with another --soc-history or --latent-dim, or the file was changed",
                    hint="resume with the config.toml that this checkpoint was trained with",
                )
        if fault := History(**{name: state[name] for name in self.state()})._fault():
            raise CheckpointError(
                f"{source}: the history's {fault}", why="the file was changed", hint="use an older checkpoint"
            )
        for name, own in self.state().items():
            own.copy_(state[name])

    def _fault(self) -> str | None:
        if not 0 <= int(self.pending) <= int(self.added):
            return f"number of pending states is {int(self.pending)}, of {int(self.added)} added"
        row = off_sphere(self.states[: self.n])
        if row is not None:
            return f"states: row {row} isn't a unit vector"
        if bool((self.tokens < 0).any()) or bool((self.steps < 0).any()):
            return "tokens or steps are negative"
        if bool(((self.left < 0) | (self.left > 1)).any()):
            return "left is outside [0, 1]"
        return None
