"""What a compiled step of ours does in one run: its commands, its memory, and where the time goes.

The time of each kernel comes from a second recording of the same program, in which each node is a
segment of its own, between two time stamps of the device.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any
from unittest import mock

from torch.utils import _pytree as pytree

from ebmvk.compute import plan
from ebmvk.compute.compiled import Compiled as Program
from ebmvk.compute.ir import Call, Finished
from ebmvk.compute.programs import Compiled
from ebmvk.engine.recording import Ran

ROUNDS = 3
"""Runs of the second recording; the median of each kernel counts."""


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
    """not_products_share: of the device's seconds. None if the device has no clock."""
    program = _on_device(made)
    with mock.patch.object(plan, "SEGMENT_SECONDS", 0.0):  # a cut after each node
        timed = Program(
            program.recorder,
            made.program,
            names=program.names,
            fed=program.fed,
            fetched=made.results,
            arena=program.arena,
            state=program.state,
        )
        ends = [end for end, _ in timed.plan.segments()]
    runs = [_run(timed, arguments).segment_seconds for _ in range(ROUNDS + 1)][1:]  # the first warms up
    seconds = [statistics.median(each) for each in zip(*runs, strict=True)]
    nodes = [[step.node for step in timed.plan.steps[a:b]] for a, b in _parts(ends)]
    nodes.append([])  # what comes after the last cut: transfers to the host
    if len(seconds) != len(nodes) or not sum(seconds):
        return {"not_products_share": None, "kernel_seconds": None}
    products = sum(took for took, part in zip(seconds, nodes, strict=True) if any(map(is_product, part)))
    return {
        "not_products_share": 1 - products / sum(seconds),
        "kernel_seconds": sum(seconds),
        "product_seconds": products,
        "products": sum(is_product(node) for part in nodes for node in part),
    }


def is_product(node: object) -> bool:
    """True for matrix products, with what is fused into them. Parts of their sums are added up in
    loops, which aren't counted here."""
    if isinstance(node, Finished):
        return True
    return isinstance(node, Call) and node.name in {"matmul", "matmul_parts"}


def _parts(ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(a + 1, b + 1) for a, b in zip([-1, *ends[:-1]], ends, strict=True)]


def _on_device(made: Compiled) -> Program:
    if not isinstance(made.runner, Program):
        raise TypeError(f"the step runs in {type(made.runner).__name__}, not on a device")
    return made.runner


def _run(program: Program, arguments: Sequence[Any]) -> Ran:
    leaves = pytree.tree_leaves(tuple(arguments))
    return program.run({position: leaves[position].numpy() for position in program.fed}).ran
