"""Finds the first tensor that has a number which isn't finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebmvk.errors import ArgumentError


def first_bad(
    model: nn.Module, total: Tensor, norm: Tensor, parts: Mapping[str, float], again: Callable[[], object]
) -> str | None:
    """Name what isn't finite in a step: a loss, with the tensor where that begins, or a gradient.

    norm: that of all gradients together. again: repeats the step, to watch its modules; it is
    called if a loss is bad.

    Returns None if everything is finite.
    """
    loss = next((f"loss part '{name}'" for name, value in parts.items() if not math.isfinite(value)), None)
    if loss is None and not bool(torch.isfinite(total)):
        loss = "the loss"
    if loss is None:
        return None if bool(torch.isfinite(norm)) else _bad_gradient(model)
    source = origin(model, again)
    return f"{loss}, first {source}," if source else loss


def origin(model: nn.Module, again: Callable[[], object]) -> str | None:
    """The first weight that isn't finite; if there isn't one, the first bad output of a module
    during `again`."""
    return _bad_weight(model) or _bad_output(model, again)


def _bad_gradient(model: nn.Module) -> str:
    bad = (
        f"the gradient of '{name}'"
        for name, p in model.named_parameters()
        if p.grad is not None and not _is_finite(p.grad)
    )
    return next(bad, "the norm of all gradients")


def _bad_weight(model: nn.Module) -> str | None:
    """The first weight that isn't finite."""
    bad = (f"the weight '{name}'" for name, value in model.state_dict().items() if not _is_finite(value))
    return next(bad, None)


def _bad_output(model: nn.Module, again: Callable[[], object]) -> str | None:
    """The first module that returns a bad tensor: of nested modules, the innermost one."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and not all(_is_finite(tensor) for tensor in _tensors(output)):
            found.append(f"the output of '{name}'" if name else "the output of the model")

    hooks = [
        module.register_forward_hook(lambda _module, _args, output, name=name: look(name, output))
        for name, module in model.named_modules()
    ]
    try:
        with contextlib.suppress(ArgumentError):  # the engine may refuse the bad tensor
            again()
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(found), None)


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in the output of a module, also those in tuples, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
        return
    parts = output.values() if isinstance(output, Mapping) else output
    for part in parts if isinstance(output, tuple | list | Mapping) else getattr(output, "__dict__", {}).values():
        yield from _tensors(part)
