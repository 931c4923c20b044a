"""Estimates the times of five workloads on a card, from the machine code of their kernels.

Sizes are those of the physical limits: 1,024 queries or chains, 50,000 points, d = 640, 64
neighbours or candidates, 200 steps. A plan belongs to the code of a kernel: whoever changes the
loops of a kernel must change its plan here. Comments say what a plan assumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bench.isa_estimate import RX_6650_XT, Estimate, Plan, estimate
from bench.isa_text import Code

ROWS, POINTS, D, K, STEPS = 1024, 50_000, 640, 64, 200
QUADS = D // 4
FIRST, BLOCK = 2048, 8192
"""Points of the first block of a scan, and of the next ones (scan.cpp)."""
RUNNING = 64
"""Workgroups of score_tiled that the card runs at once: four on each of its 16 pairs of units."""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel. constants: its specialisation constants, without the workgroup's size."""

    code: Code
    wave: int
    vgprs: int
    lds: int
    group: int
    constants: tuple[int, ...]

    def estimate(self, plan: Plan) -> Estimate:
        waves = RX_6650_XT.chip.waves(self.wave, self.vgprs, self.lds, self.group)
        return estimate(RX_6650_XT, self.code, self.wave, waves, self.group, plan)


def scoring(kernel: Kernel) -> Plan:
    """score_tiled, all blocks. Neighbouring workgroups share points and together have all queries.

    Scores have no weights or bounds, whose loads are optional. All appending instructions count,
    whether or not a score passes the bar; the atomic additions are on their way together. Repeated
    reads: every tile of queries reads each tile of points, and RUNNING workgroups read all queries.
    """
    rows, columns = (16 * results for results in kernel.constants)
    depth = 2  # quads of a slice in shared memory
    slices, tall, wide = QUADS / depth, math.ceil(ROWS / rows), math.ceil(POINTS / columns)
    return Plan(
        groups=tall * wide,
        memory=(slices,),
        multiply_adds=rows * columns / kernel.group * D,
        traffic=4.0 * D * POINTS * tall + 8.0 * ROWS * (FIRST + sum(passing())),
        kept=4.0 * D * (columns / tall + ROWS / RUNNING),
        skips=True,
    )


def passing() -> list[float]:
    """How many scores of a row pass the bar in each later block, if the order is random."""
    return [K / begin * min(BLOCK, POINTS - begin) for begin in range(FIRST, POINTS, BLOCK)]


def first_selection(kernel: Kernel) -> Plan:
    """select_topk after the first block: four digits and one collection, each over all its scores.

    Rows have no ties that would need the second search. other: to find a digit, one invocation goes
    through 16 parts of the digits and then through the 16 digits of a part, half of them on
    average, for each of four digits. The other waves of a workgroup do nothing meanwhile.
    """
    scan, waves = math.ceil(FIRST / kernel.group), kernel.group / kernel.wave
    return Plan(
        groups=ROWS,
        memory=(1, 4 * scan, 0, scan),
        stores=3,
        around=4,
        other=4 * 8 / waves,
        traffic=8.0 * ROWS * FIRST * 5,
        kept=8.0 * FIRST,
    )


def next_selection(kernel: Kernel) -> Plan:
    """select_topk after a later block, where kept and new scores are few: they are sorted.

    other: the stages of a sort. An invocation compares two scores in a stage, and waves without any
    do nothing.
    """
    steps = []
    for number in passing():
        doublings = math.ceil(math.log2(K + number))
        waves = max(2**doublings / 2 / kernel.wave, 1)
        steps.append(doublings * (doublings + 1) / 2 * waves / (kernel.group / kernel.wave))
    traffic = 8.0 * ROWS * (3 * K + sum(passing()) / len(steps))
    return Plan(ROWS, (1, 0, 0, 0), stores=3, other=sum(steps) / len(steps), traffic=traffic)


def streaming(kernel: Kernel) -> Plan:
    """langevin: a step reads every candidate twice, for its products and for their weighted sum."""
    waves = kernel.group / kernel.wave
    return Plan(
        groups=ROWS,
        memory=(1, STEPS * K * QUADS / kernel.group, STEPS * K * QUADS / kernel.group),
        arithmetic=(STEPS, STEPS),  # a step, and the weights of its candidates
        around=STEPS * K / waves,
        other=STEPS * waves,  # sums over the waves of a workgroup
        traffic=2.0 * 4 * STEPS * ROWS * K * D,
        kept=4.0 * K * D,
    )


def resident(kernel: Kernel, word: int) -> Plan:
    """langevin with candidates of `word` bytes in registers: they are read once.

    One wave of a workgroup moves the chain, in loops over the quads of a lane. As many waves as
    hold a row, with one quad per lane, draw the noise. So STEPS / waves and STEPS * drawing are
    means over the waves.
    """
    waves, lane_quads = kernel.group / kernel.wave, kernel.constants[4]
    moves, drawing = STEPS / waves, QUADS / kernel.group
    quads = moves * lane_quads
    return Plan(
        groups=ROWS,
        # the chain before its first step, and its record
        memory=(lane_quads / waves, 1 / waves),
        # a step; the moves before an evaluation, with the products and the result; noise; the end
        # of an evaluation; the moves after it
        arithmetic=(STEPS, moves, quads, quads, STEPS * drawing, moves, moves, quads, quads),
        stores=2 * lane_quads / waves,
        around=1,
        other=STEPS * drawing,  # storing the noise, and the sum of the parts, which takes as long
        traffic=float(word * ROWS * K * D),
    )


@dataclass(frozen=True)
class Part:
    """A kernel of a workload, and how often it is dispatched."""

    name: str
    variant: str
    storage: str
    constants: tuple[int, ...] | None
    plan: Callable[[Kernel], Plan]
    times: int = 1


@dataclass(frozen=True)
class Work:
    """A workload. flops and bytes: the least that it needs, for the roofline, as in bench.ops."""

    flops: float
    bytes: float
    parts: tuple[Part, ...]


SCORING = Part("score_tiled", "portable", "float32", (8, 8), scoring)
FIRST_SELECTION = Part("select_topk", "portable", "float32", (512,), first_selection)
NEXT_SELECTION = replace(FIRST_SELECTION, plan=next_selection, times=len(passing()))


def _chain(variant: str, storage: str, plan: Callable[[Kernel], Plan]) -> Part:
    return Part("gbaoab", variant, storage, None, plan)


CHAIN_FLOPS = 4.0 * STEPS * ROWS * K * D
WORKS = {
    "scoring": Work(2.0 * ROWS * POINTS * D, 4.0 * D * (POINTS + ROWS), (SCORING,)),
    "topk": Work(2.0 * ROWS * POINTS * D, 4.0 * D * (POINTS + ROWS), (SCORING, FIRST_SELECTION, NEXT_SELECTION)),
    "langevin_float32": Work(
        CHAIN_FLOPS, 4.0 * ROWS * K * D, (_chain("resident", "float32", partial(resident, word=4)),)
    ),
    "langevin_float16": Work(
        CHAIN_FLOPS, 2.0 * ROWS * K * D, (_chain("resident", "float16", partial(resident, word=2)),)
    ),
    "langevin_streaming": Work(CHAIN_FLOPS, 4.0 * ROWS * K * D, (_chain("subgroup", "float32", streaming),)),
}


def estimates(find: Callable[[Part], Kernel]) -> dict[str, dict[str, Any]]:
    """For each workload: seconds, least_seconds, share (of the roofline), and its kernels.

    share_cached: the share if everything that workgroups read again came from the Infinity Cache.
    If a kernel isn't found or its plan doesn't fit, there is only `missing`, with the reason.
    """
    return {name: _estimated(work, find) for name, work in WORKS.items()}


def _estimated(work: Work, find: Callable[[Part], Kernel]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for part in work.parts:
        try:
            kernel = find(part)
            plan = part.plan(kernel)
            found, cached = (kernel.estimate(one) for one in (plan, replace(plan, kept=0.0)))
        except (ValueError, LookupError) as error:
            return {"missing": f"the plan of {part.name} doesn't fit; change bench/isa_plans.py: {error}"}
        one = {"kernel": part.name, "seconds": part.times * found.seconds, "bound": found.bound}
        one["parts"] = {bound: part.times * second for bound, second in found.parts.items()}
        if math.isfinite(plan.kept):
            one["seconds_cached"] = part.times * cached.seconds
        parts.append(one)
    least, seconds = RX_6650_XT.least_seconds(work.flops, work.bytes), sum(part["seconds"] for part in parts)
    cached_seconds = sum(part.get("seconds_cached", part["seconds"]) for part in parts)
    shares = {"share": least / seconds, "share_cached": least / cached_seconds}
    return {"seconds": seconds, "least_seconds": least, **shares, "kernels": parts}
