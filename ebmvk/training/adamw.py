"""AdamW by torch's fused kernel, and what an optimiser keeps for its parameters.

We don't use torch.optim: the first optimiser that a process makes imports torch's compiler. We
don't need it, and it would cost each training process more than a second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


class Parameters:
    """Parameters in groups of the same settings, and the tensors kept for each parameter.

    param_groups: dicts of settings, with the parameters in "params". state: {parameter: {name:
    tensor}}. Both are laid out as in torch.optim.Optimizer.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], **settings: Any) -> None:
        """settings: those of groups that don't have their own."""
        self.param_groups = [{**settings, **group, "params": list(group["params"])} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


class AdamW(Parameters):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), bit for bit as
    torch.optim.AdamW(fused=True) does it."""

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """groups: dicts with "params", "weight_decay", and other settings, which are kept."""
        super().__init__(groups, lr=lr, betas=betas, eps=eps)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient. Those of a group must have one device and
        dtype."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            kept = [self._kept(parameter) for parameter in moved]
            steps = [slots["step"] for slots in kept]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                moved,
                [parameter.grad for parameter in moved],
                [slots["exp_avg"] for slots in kept],
                [slots["exp_avg_sq"] for slots in kept],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _kept(self, parameter: Tensor) -> dict[str, Tensor]:
        slots = self.state[parameter]
        if not slots:
            slots["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            slots["exp_avg"], slots["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return slots
