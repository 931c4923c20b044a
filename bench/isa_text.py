"""Reads RADV's disassembly of a kernel: instructions by class, and loops.

Blocks begin with a label; a branch to the same or an earlier block closes a loop, which is all
blocks from there to the branch. Both sides of a condition count as run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

# In the order of the columns; the first pattern that fits an opcode gives its class.
CLASSES = {
    "fma": r"v_(dual_)?(fma|fmac|fmaak|fmamk|mac|mad|madak|madmk|dot2c?|pk_fma|pk_mad|mad_mix|fma_mix)(lo|hi)?_f",
    "valu": r"v_",
    "lds": r"ds_",
    "load": r"(buffer|global|flat|tbuffer|image)_(load|atomic)",
    "store": r"(buffer|global|flat|tbuffer|image)_store",
    "scratch": r"scratch_",
    "smem": r"s_(load|buffer_load)",
    "barrier": r"s_barrier",
    "branch": r"s_(cbranch|branch|setpc|endpgm)",
    "wait": r"s_(waitcnt|wait_|delay_alu|nop|clause|depctr)",
    "salu": r"s_",
    "other": r"",
}
LABEL = re.compile(r"(BB\d+):")
LINE = re.compile(r"\s+([a-z]+_\w+)\s*(.*?)\s*(?:;.*)?$")
TARGET = re.compile(r"BB\d+")

INNER_ITERATIONS = 32
"""To find the hottest loop, every loop counts as run this often each time that it is entered."""


@cache
def class_of(opcode: str) -> str:
    """The class of an opcode, cached because a kernel has thousands of instructions."""
    return next(kind for kind, pattern in CLASSES.items() if re.match(pattern, opcode))


@dataclass(frozen=True)
class Instruction:
    """paired: the second half of a dual instruction, which is issued with the first. optional: a
    branch of the whole wave can skip it, together with loads but neither loops nor stores.
    """

    opcode: str
    operands: str
    paired: bool = False
    optional: bool = False

    @property
    def kind(self) -> str:
        return class_of(self.opcode)

    @property
    def target(self) -> str | None:
        """The block that a branch goes to."""
        found = TARGET.match(self.operands) if self.kind == "branch" else None
        return found[0] if found else None


def count(instructions: Sequence[Instruction]) -> Counter[str]:
    return Counter(instruction.kind for instruction in instructions)


@dataclass
class Loop:
    """Blocks `first` to `last`. own: its instructions without those of the loops inside."""

    first: int
    last: int
    depth: int = 1
    own: list[Instruction] = field(default_factory=list)
    inside: list[Loop] = field(default_factory=list)

    def walk(self) -> Iterator[Loop]:
        """This loop and all loops inside it, in the order of the code."""
        yield self
        for loop in self.inside:
            yield from loop.walk()


@dataclass
class Code:
    """loops: the outermost ones. outside: instructions that are in no loop."""

    instructions: list[Instruction]
    loops: list[Loop]
    outside: list[Instruction]

    def all_loops(self) -> list[Loop]:
        return [inner for loop in self.loops for inner in loop.walk()]

    def hottest(self) -> list[Instruction]:
        """The instructions of the loop that probably takes the time; without loops, all of them.

        It is the loop with the most multiply-adds. If none has any, it is the one with the most
        loads from memory, or else with the most instructions. Counts are multiplied by
        INNER_ITERATIONS for every loop around. Among equal loops it is the first.
        """
        loops = self.all_loops()
        if not loops:
            return self.instructions

        def rank(loop: Loop) -> tuple[float, ...]:
            times, kinds = INNER_ITERATIONS**loop.depth, count(loop.own)
            work = kinds["fma"] * times, kinds["load"] * times
            return *work, 0 if any(work) else len(loop.own) * times

        return max(loops, key=rank).own


def parse(text: str) -> Code:
    """Parse a disassembly. Raises ValueError if it has no blocks of instructions."""
    blocks, labels = _blocks(text)
    if not any(blocks):
        raise ValueError("this is not RADV's disassembly: it has no instructions after a label BB0:")
    ends: dict[int, int] = {}  # of each loop, by its first block
    for number, block in enumerate(blocks):
        for instruction in block:
            target = labels.get(instruction.target or "", number + 1)
            if target <= number:
                ends[target] = max(ends.get(target, 0), number)
    loops = [Loop(first, last) for first, last in sorted(ends.items())]
    blocks = _marked(blocks, labels, ends)
    code = Code([instruction for block in blocks for instruction in block], [], [])
    stack: list[Loop] = []
    for loop in loops:
        while stack and stack[-1].last < loop.first:
            stack.pop()
        loop.depth = len(stack) + 1
        (stack[-1].inside if stack else code.loops).append(loop)
        stack.append(loop)
    for number, block in enumerate(blocks):
        around = [loop for loop in loops if loop.first <= number <= loop.last]
        (max(around, key=lambda loop: loop.depth).own if around else code.outside).extend(block)
    return code


def _marked(blocks: list[list[Instruction]], labels: dict[str, int], loops: dict[int, int]) -> list[list[Instruction]]:
    """The blocks, with the optional instructions marked."""
    optional: set[int] = set()
    for number, block in enumerate(blocks):
        for branch in block:
            if not re.match(r"s_cbranch_(scc|vcc)", branch.opcode) or not branch.target:
                continue
            skipped = range(number + 1, labels[branch.target])
            kinds = count([instruction for one in skipped for instruction in blocks[one]])
            edges = any(edge in skipped for loop in loops.items() for edge in loop)  # of a loop, also around the branch
            if kinds["load"] and not kinds["store"] and not edges:
                optional.update(skipped)
    return [
        [replace(instruction, optional=number in optional) for instruction in block]
        for number, block in enumerate(blocks)
    ]


def _blocks(text: str) -> tuple[list[list[Instruction]], dict[str, int]]:
    blocks: list[list[Instruction]] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(blocks)
            blocks.append([])
        elif blocks and (found := LINE.match(line)):
            first, _, second = f"{found[1]} {found[2]}".partition(" :: ")
            for half, paired in ((first, False), (second, True)):
                if half:
                    opcode, _, operands = half.strip().partition(" ")
                    blocks[-1].append(Instruction(opcode, operands.strip(), paired))
    return blocks, labels
