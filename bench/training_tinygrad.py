"""`plain_model` written for tinygrad: the same weights, the same step, captured by TinyJit.

tinygrad reads DEV, WEBGPU_PATH and TRAINING when it is imported, so they must be set before.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygrad import Device, GlobalCounters, Tensor, TinyJit, nn

from bench import plain_model as plain
from bench.plain_model import Sizes


class Trainer:
    """Weights and moments on tinygrad's device."""

    def __init__(self, of: Sizes) -> None:
        self.of = of
        self.weights = {n: Tensor(p.detach().numpy()).realize() for n, p in plain.model(of).named_parameters()}
        self.later = Tensor(np.triu(np.full((of.tokens, of.tokens), -1e9, np.float32), 1)).realize()
        beta1, beta2 = plain.BETAS
        self.optimiser = nn.optim.AdamW(
            list(self.weights.values()), plain.RATE, beta1, beta2, plain.EPSILON, plain.DECAY
        )
        self.jitted = TinyJit(self._step)
        self.kernels = 0
        self.held = 0

    def step(self, ids: NDArray[Any], targets: NDArray[Any]) -> float:
        """ids, targets: (B, T). Returns the loss before the step."""
        given = [Tensor(part.astype(np.int32)).realize() for part in (ids, targets)]
        GlobalCounters.reset()
        loss = self.jitted(*given)
        found = float(loss.item())
        self.kernels = GlobalCounters.kernel_count
        self.held = max(self.held, GlobalCounters.mem_used)
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "dispatches": self.kernels,
            "dispatches_are": "kernels and copies that tinygrad counts",
            "device_bytes": self.held,
            "device_bytes_are": "buffers that tinygrad holds after a step",
            "renderer": f"{Device.DEFAULT} {type(Device[Device.DEFAULT].renderer).__name__}",
        }

    def _step(self, ids: Tensor, targets: Tensor) -> Tensor:
        self.optimiser.zero_grad()
        loss = self._logits(ids).sparse_categorical_crossentropy(targets)
        loss.backward()
        return loss.realize(*self.optimiser.schedule_step())

    def _logits(self, ids: Tensor) -> Tensor:
        x = self.weights["words.weight"][ids] + self.weights["places"]
        for number in range(self.of.layers):
            x = self._block(x, f"blocks.{number}.")
        return self._linear(self._norm(x, "norm"), "head")

    def _block(self, x: Tensor, name: str) -> Tensor:
        rows, tokens, width = x.shape
        each = width // self.of.heads
        q, k, v = self._linear(self._norm(x, name + "norm1"), name + "qkv").split(width, dim=2)
        q, k, v = (part.reshape(rows, tokens, self.of.heads, each).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(each) + self.later).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, tokens, width)
        x = x + self._linear(mixed, name + "out")
        up = self._linear(self._norm(x, name + "norm2"), name + "up")
        return x + self._linear(up * 0.5 * (1 + (up / math.sqrt(2)).erf()), name + "down")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x.linear(self.weights[name + ".weight"].transpose(), self.weights.get(name + ".bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x.layernorm(eps=1e-5) * self.weights[name + ".weight"] + self.weights[name + ".bias"]
