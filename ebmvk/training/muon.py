"""Muon for many matrices at once (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

It does the step of torch.optim.Muon with `match_rms_adamw`, but orthogonalises all matrices of one
shape together, which takes half the time if they are small. It computes in float32 if the processor
would only emulate bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ebmvk.training.adamw import Parameters

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of a quintic whose iterates quickly bring every singular value to between .7 and
1.2."""
_LEAST_NORM = 1e-7


def orthogonalized(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn U S V^T into about U V^T, by Newton-Schulz iterations in `dtype`.

    matrices and result: (n, rows, columns).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(_LEAST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        # Multiply tall matrices from the right: products with a transposed view take longer.
        x = torch.baddbmm(x, *((x, p) if tall else (p, x)), beta=a)
    return x


def step_size(shape: torch.Size) -> float:
    """What an orthogonal matrix is multiplied by, besides the learning rate: its entries have a
    root mean square of max(shape)^-1/2, and those of AdamW's updates have about .2."""
    return 0.2 * math.sqrt(max(shape))


class Muon(Parameters):
    """Orthogonalised Nesterov momentum for matrices; each entry of an update has about the size of
    AdamW's.

    lr, weight_decay: as for AdamW. dtype: that of the matrices while they are orthogonalised.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, lr: float, weight_decay: float, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__([{"params": matrices}], lr=lr, weight_decay=weight_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in shapes.items():
                update = orthogonalized(torch.stack(self._momenta(matrices)), self.dtype)
                size = group["lr"] * step_size(shape)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(update.to(matrices[0].dtype).unbind()), alpha=-size)

    def _momenta(self, matrices: list[Tensor]) -> list[Tensor]:
        """Nesterov momenta: the gradients, moved by MOMENTUM towards their running means, which are
        updated first.
        """
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
        return list(torch._foreach_lerp(gradients, means, MOMENTUM))
