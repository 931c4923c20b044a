"""Prepares the arguments of the extensions' functions, and their results, by operations.toml."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ebmvk.engine import api, chained
from ebmvk.engine.api import LangevinDiagnostics, LangevinResult, Schedule
from ebmvk.engine.operations import TABLES

if TYPE_CHECKING:
    from numpy.typing import NDArray


def array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().numpy()  # type: ignore[no-any-return, unused-ignore]


def arguments(
    name: str, given: Mapping[str, Any], sizes: Mapping[str, int], points: Any, convert: Callable[[Any], Any] = array
) -> list[Any]:
    """The arguments of an extension's function, in order.

    Args:
        given: checked arguments by name. sizes: what `checks.operation` returned.
        points: the extension's own. convert: turns a tensor into what the extension takes.
    """
    taken: list[Any] = []
    for argument, kind in _ARGUMENTS[name]:
        value = given[argument]
        if kind == "tensor":
            taken.append(None if value is None else convert(value))
        elif kind == "points":
            taken.append(points)
        elif kind == "levels":
            taken += [*_levels(value, sizes["B"]), list(value.steps)]
        else:
            taken.append(value)
    return taken


_ARGUMENTS = {
    name: [(argument.name, argument.kind.replace("index", "tensor")) for argument in operation.arguments]
    for name, operation in TABLES.items()
}


def _levels(schedule: Schedule, rows: int) -> Iterable[NDArray[Any]]:
    """kappa_scale, logw_shift, step_size, gamma: all (1, L), or all (B, L) if any differs by
    chain."""
    tables = (schedule.kappa_scale, schedule.logw_shift, schedule.step_size, schedule.gamma)
    shared = all(table.dim() == 1 for table in tables)
    shape = (1 if shared else rows, len(schedule.steps))
    return [array(table.expand(shape).contiguous()) for table in tables]


def returned(name: str, results: Iterable[Any]) -> Any:
    """What an operation returns, made from its results in the order of the table."""
    operation = TABLES[name]
    if operation.returns == "Tensor":
        (result,) = results
        return result
    if operation.returns == "LangevinResult":
        x, v, *diagnostics = results
        return LangevinResult(x, v, LangevinDiagnostics(*diagnostics))
    return getattr(chained if operation.device else api, operation.returns)(*results)
