"""What a compiled step of ours does in one run: its commands, its memory, and where the time
goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from ebmvk.compute.compiled import Compiled as Program
from ebmvk.compute.profile import PRODUCTS, profile
from ebmvk.compute.programs import Compiled
from ebmvk.engine.recording import Ran
from ebmvk.errors import DeviceError


def counts(made: Compiled, arguments: Sequence[Any]) -> dict[str, Any]:
    """The commands of a run, and the bytes on the device."""
    program = _on_device(made)
    ran = _run(program, arguments)
    return {
        "dispatches": ran.dispatches + ran.copies,
        "dispatches_are": "vkCmdDispatch, copies and fills",
        "kernels": ran.dispatches,
        "copies": ran.copies,
        "barriers": ran.barriers,
        "submissions": ran.submissions,
        "bytes_up": ran.bytes_up,
        "bytes_down": ran.bytes_down,
        "device_bytes": program.nbytes,
        "device_bytes_are": "planned: weights, moments, batch and intermediate results",
    }


def shares(made: Compiled, arguments: Sequence[Any]) -> dict[str, Any]:
    """not_products_share: the share of the device's time outside products; None without a clock."""
    program = _on_device(made)
    try:
        found = profile(program, _fed(program, arguments))
    except DeviceError:
        return {"not_products_share": None, "kernel_seconds": None}
    products = [kernel for kernel in found.kernels if kernel.kind in PRODUCTS]
    return {
        "not_products_share": 1 - sum(kernel.seconds for kernel in products) / found.busy,
        "kernel_seconds": found.busy,
        "product_seconds": sum(kernel.seconds for kernel in products),
        "products": len(products),
    }


def _on_device(made: Compiled) -> Program:
    if not isinstance(made.runner, Program):
        raise TypeError(f"the step runs in {type(made.runner).__name__}, not on a device")
    return made.runner


def _run(program: Program, arguments: Sequence[Any]) -> Ran:
    return program.run(_fed(program, arguments)).ran


def _fed(program: Program, arguments: Sequence[Any]) -> dict[int, Any]:
    leaves = pytree.tree_leaves(tuple(arguments))
    return {position: leaves[position].numpy() for position in program.fed}
