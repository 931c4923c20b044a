"""Estimates from machine code how long a kernel takes on a card.

The method, the same for every kernel:

1. A plan says how often a wave runs each loop, from the sizes of the work. Instructions outside
   loops count once.
2. The code of a loop is walked through in order for a wave that runs alone: an instruction waits
   for the registers it reads and for the loads that an s_waitcnt names. This gives the latency of a
   wave.
3. The waves that a SIMD holds at once share its vector unit, and shared memory. The vector unit
   takes 1 cycle for an instruction of 32 lanes and 2 for 64; 4 times that for reciprocals, roots,
   logarithms, trigonometry, 32-bit integer products and 64-bit shifts. Shared memory moves 128
   bytes a cycle for two SIMDs. The rest of a wave's latency passes while other waves work. Mean
   value analysis of such a closed network of queues (Reiser and Lavenberg, J. ACM 27, 1980) gives
   the waves that a SIMD finishes per cycle: fewer than the busiest unit allows, and fewer than
   their number over their latency.
4. The kernel takes that time, or the time to move its bytes if that is longer. Repeated reads
   count. They come from the Infinity Cache if what the running workgroups read fits half of it, and
   otherwise from memory.

The share of the roofline is the least time of the work (bench.ops: each operand moved once, all
multiply-adds at the peak rate) over that estimate.

The estimate leaves out contention for banks of shared memory and for its atomic additions, waiting
at barriers, the instruction cache, clocks below the boost clock, submission, and copies to and from
the host.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.isa_text import Code, Instruction, Loop, count


@dataclass(frozen=True)
class Chip:
    """The four SIMDs over which a workgroup is spread: a compute unit of Vega, or two of RDNA.

    registers: of a SIMD, for each lane of a wave of 32. granule: a wave of 32 gets a multiple of
    this many. slots: the most waves of a SIMD. lds: bytes of shared memory.
    """

    registers: int
    granule: int
    slots: int
    lds: int

    def waves(self, wave: int, vgprs: int, lds: int, group: int) -> float:
        """The waves of a kernel that a SIMD can hold at once, if enough workgroups wait.

        wave: lanes of a wave. vgprs: registers of a lane. lds: bytes of a workgroup. group: its
        invocations.
        """
        granule = self.granule * 32 // wave
        given = -(-max(vgprs, 1) // granule) * granule
        fit = min(self.slots, self.registers * 32 // wave // given)
        waves = -(-group // wave)
        groups = 4 * fit // waves
        if lds:
            groups = min(groups, self.lds // lds)
        return groups * waves / 4

    def free(self, wave: int) -> int:
        """The most registers of a lane with which a SIMD still holds `slots` waves."""
        return self.registers * 32 // wave // self.slots


CHIPS = {
    "navi23": Chip(registers=1024, granule=16, slots=16, lds=128 << 10),
    "vega10": Chip(registers=512, granule=8, slots=10, lds=64 << 10),
    "navi31": Chip(registers=1536, granule=24, slots=16, lds=128 << 10),
}


@dataclass(frozen=True)
class Card:
    """hertz: the boost clock. units: compute units, of two SIMDs each. memory and cache: bytes per
    second of memory and of the Infinity Cache, which has cache_bytes. latency_*: in cycles, until a
    result of the vector unit, shared memory, a scalar load, the Infinity Cache, memory can be used.
    """

    name: str
    chip: Chip
    hertz: float
    units: int
    memory: float
    cache: float
    cache_bytes: int
    latency_alu: int = 5
    latency_lds: int = 64
    latency_scalar: int = 64
    latency_cache: int = 370
    latency_memory: int = 600

    @property
    def flops(self) -> float:
        """Peak float32 operations per second: a multiply-add on each of 32 lanes and cycle."""
        return 2 * self.units * 32 * 2 * self.hertz

    def least_seconds(self, flops: float, bytes_: float) -> float:
        return max(flops / self.flops, bytes_ / self.memory)


RX_6650_XT = Card(
    name="RX 6650 XT",
    chip=CHIPS["navi23"],
    hertz=2.635e9,
    units=32,
    memory=280e9,
    cache=993e9,  # 512 bytes a cycle at 1.94 GHz
    cache_bytes=32 << 20,
)


@dataclass(frozen=True)
class Plan:
    """How much work a kernel has, and how often a wave runs its loops.

    groups: workgroups. memory: iterations of each loop that reads memory, in the order of the code.
    arithmetic: the same for each loop that doesn't, and has 8 multiply-adds or more. stores: store
    instructions of a wave in loops that write memory. around: iterations of loops that hold such
    loops. other: iterations of all other loops. multiply_adds: those that an invocation must do; if
    given, they check the plan. traffic: bytes that all reads and writes move, repeated ones
    included. kept: bytes that a running workgroup reads again. skips: the wave skips optional
    instructions.
    """

    groups: int
    memory: tuple[float, ...]
    arithmetic: tuple[float, ...] = ()
    stores: float = 0
    around: float = 1
    other: float = 1
    multiply_adds: float = 0
    traffic: float = 0
    kept: float = math.inf
    skips: bool = False


@dataclass(frozen=True)
class Estimate:
    """seconds: what the kernel needs. bound: what it waits for most. parts: seconds that the vector
    units, shared memory, the latencies of all waves, and moving the bytes would need if nothing
    else counted.
    """

    seconds: float
    bound: str
    parts: dict[str, float]


@dataclass
class Cost:
    """Cycles that a wave takes of the vector unit, of shared memory, and in all if it runs
    alone."""

    vector: float = 0
    lds: float = 0
    latency: float = 0
    multiply_adds: float = 0

    def add(self, other: Cost, times: float) -> None:
        self.vector += times * other.vector
        self.lds += times * other.lds
        self.latency += times * other.latency
        self.multiply_adds += times * other.multiply_adds


def estimate(card: Card, code: Code, wave: int, waves: float, group: int, plan: Plan) -> Estimate:
    """The time of a kernel. waves: how many a SIMD holds at once. Raises ValueError if the plan
    doesn't fit the code.
    """
    each = -(-group // wave)
    running = min(waves, math.ceil(plan.groups / (card.units / 2)) * each / 4)
    cached = running * 4 / each * card.units / 2 * plan.kept <= card.cache_bytes / 2
    loads = card.latency_cache if cached else card.latency_memory
    total = Cost()
    total.add(cost(card, _run(code.outside, plan), wave, loads), 1)
    for loop, times in iterations(code, plan):
        # The cost of a second pass: what the first has requested is then on its way
        once, twice = (cost(card, _run(loop.own, plan) * n, wave, loads) for n in (1, 2))
        once.latency = twice.latency - once.latency
        total.add(once, times)
    if plan.multiply_adds and abs(total.multiply_adds / plan.multiply_adds - 1) > 0.05:
        raise ValueError(f"{total.multiply_adds:.0f} multiply-adds counted, and {plan.multiply_adds:.0f} are needed")
    # Waves of a SIMD; the last workgroups leave some compute units without work
    share = math.ceil(plan.groups / (card.units / 2)) * each / 4
    waves_seconds = share / throughput(running, [total.vector, 2 * total.lds], total.latency) / card.hertz
    level = "Infinity Cache" if cached else "memory"
    parts = {
        "vector unit": share * total.vector / card.hertz,
        "shared memory": 2 * share * total.lds / card.hertz,
        "latency": share / running * total.latency / card.hertz,
        level: plan.traffic / (card.cache if cached else card.memory),
    }
    bound = max(parts, key=lambda part: parts[part])
    return Estimate(max(waves_seconds, parts[level]), bound, parts)


def throughput(waves: float, demands: Sequence[float], latency: float) -> float:
    """Waves that finish per cycle, by mean value analysis.

    waves: how many are there at once; between whole numbers it is interpolated. demands: cycles
    that each unit works for one wave. latency: cycles of a wave alone, including these.
    """
    elsewhere = max(latency - sum(demands), 0.0)
    queues = [0.0] * len(demands)
    rates = [0.0]  # with 0, 1, 2, … waves
    for present in range(1, math.ceil(waves) + 1):
        stays = [demand * (1 + queue) for demand, queue in zip(demands, queues, strict=True)]
        rates.append(present / (elsewhere + sum(stays)))
        queues = [rates[-1] * stay for stay in stays]
    whole = math.floor(waves)
    return rates[whole] + (waves - whole) * (rates[math.ceil(waves)] - rates[whole])


def _run(instructions: list[Instruction], plan: Plan) -> list[Instruction]:
    return [instruction for instruction in instructions if not (plan.skips and instruction.optional)]


def iterations(code: Code, plan: Plan) -> list[tuple[Loop, float]]:
    """Each loop, and how often a wave runs it. Raises ValueError if the plan doesn't fit."""
    found: dict[str, list[Loop]] = {"memory": [], "arithmetic": [], "store": []}
    for loop in code.all_loops():
        if role := _role(loop):
            found[role].append(loop)
    times = {id(loop): plan.stores / sum(count(one.own)["store"] for one in found["store"]) for loop in found["store"]}
    for role, planned in (("memory", plan.memory), ("arithmetic", plan.arithmetic)):
        if len(found[role]) != len(planned):
            raise ValueError(f"{len(found[role])} {role} loops found, and the plan has {len(planned)}")
        times |= {id(loop): number for loop, number in zip(found[role], planned, strict=True)}
    out = []
    for loop in code.all_loops():
        inside = [times[id(inner)] for inner in loop.walk() if id(inner) in times]
        rest = plan.other if not inside else plan.around if any(inside) else 0
        out.append((loop, times.get(id(loop), rest)))
    return out


def _role(loop: Loop) -> str:
    kinds = count(loop.own)
    return "store" if kinds["store"] else "memory" if kinds["load"] else "arithmetic" if kinds["fma"] >= 8 else ""


def cost(card: Card, instructions: Sequence[Instruction], wave: int, load_latency: int) -> Cost:
    """The cost of instructions that a single wave runs in sequence."""
    out = Cost()
    now = 0.0
    ready: dict[str, float] = {}  # when a register can be read
    loads: list[float] = []  # when each of the loads that weren't waited for is done
    others: list[float] = []  # the same for shared memory and scalar loads
    for instruction in instructions:
        kind = instruction.kind
        if kind == "fma":
            out.multiply_adds += 1
        if instruction.paired:
            continue
        if kind in ("fma", "valu"):
            cycles = wave / 32 * (4 if SLOW.match(instruction.opcode) else 1)
            to, *used = registers(instruction.operands)
            if "mac" in instruction.opcode:  # adds to its result
                used.append(to)
            begin = max([now, *(ready.get(name, 0.0) for names in used for name in names)])
            now = begin + cycles
            out.vector += cycles
            ready |= dict.fromkeys(to, begin + cycles - 1 + card.latency_alu)
        elif kind == "wait":
            now = max(
                now, *(_waited(instruction.operands, name, queue) for name, queue in (("vm", loads), ("lgkm", others)))
            )
        else:
            now += 1
            if kind == "lds":
                cycles = lds_bytes(instruction.opcode) * wave / 128
                out.lds += cycles
                others.append(now + card.latency_lds + cycles)
            elif kind == "smem":
                others.append(now + card.latency_scalar)
            elif kind in ("load", "scratch"):
                loads.append(now + load_latency)
    out.latency = now
    return out


SLOW = re.compile(r"v_(rcp|rsq|sqrt|exp|log|sin|cos|mul_lo_u32|mul_hi_|mad_u64|mad_i64|lshlrev_b64|lshrrev_b64)")


def _waited(operands: str, counter: str, queue: list[float]) -> float:
    """The time at which the queue is as short as the instruction asks for. Entries that are done
    leave the queue."""
    found = re.search(rf"\b{counter}cnt\((\d+)\)", operands)
    if not found or len(queue) <= int(found[1]):
        return 0.0
    done = max(queue[: len(queue) - int(found[1])])
    del queue[: len(queue) - int(found[1])]
    return done


def registers(operands: str) -> list[list[str]]:
    """The vector registers of each operand; the first operand is the result."""
    out: list[list[str]] = []
    for operand in operands.split(", "):
        found = re.match(r"[-|]*(v)(?:(\d+)|\[(\d+):(\d+)\])", operand)
        if not found:
            out.append([])
        elif found[2]:
            out.append([f"v{found[2]}"])
        else:
            out.append([f"v{number}" for number in range(int(found[3]), int(found[4]) + 1)])
    return out


def lds_bytes(opcode: str) -> int:
    """Bytes that a lane moves."""
    width = int(found[1]) if (found := re.search(r"_[bui](\d+)", opcode)) else 32
    return width // 8 * (2 if re.search(r"(read|write|load|store)_?2", opcode) else 1)
