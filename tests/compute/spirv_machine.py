"""Runs the modules of generated kernels in numpy, with all invocations of a dispatch in lockstep.

It needs no device, and it finds errors that a device hides: an index outside its buffer, two
invocations that store to the same element, shared memory that is read before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebmvk.compute.spirv import LOCAL_INDEX, STORAGE_BUFFER, WORKGROUP, WORKGROUP_ID, Op
from ebmvk.compute.values import RAW

Array = np.ndarray[Any, Any]
CORE = {raw.number: raw for name, raw in RAW.items() if raw.kind == "core" and name != "UMulHigh"}
EXTENDED = {raw.number: raw for raw in RAW.values() if raw.kind == "extended"}
FLOAT_COMPARISONS = range(180, 192)  # in pairs: the first is false for NaN, the second true
U_MUL_EXTENDED = RAW["UMulHigh"].number
UNWRITTEN = 0xFFC0BEEF


class Fault(AssertionError):
    """A kernel did what no kernel may."""


class Machine:
    """One dispatch. buffers: words of each binding, changed in place."""

    def __init__(self, module: bytes, buffers: Sequence[Array], groups: tuple[int, int, int], group: int) -> None:
        self.buffers = buffers
        self.groups = groups[0] * groups[1]
        self.group = group
        self.lanes = self.groups * group
        self.workgroup = np.repeat(np.arange(self.groups), group)
        self.columns = groups[0]
        self.known: dict[int, Any] = {}
        self.types: dict[int, Any] = {}
        self.variables: dict[int, tuple[str, Any]] = {}
        self.functions: dict[int, dict[str, Any]] = {}
        self._read(np.frombuffer(module, np.uint32).tolist())

    # -------------------------------------------------------------------------------- reading

    def _read(self, words: list[int]) -> None:
        at, function, block = 5, None, None
        bindings: dict[int, int] = {}
        built_ins: dict[int, int] = {}
        storage: dict[int, tuple[int, int]] = {}
        lengths: dict[int, int] = {}
        while at < len(words):
            count, op = words[at] >> 16, words[at] & 0xFFFF
            a = words[at + 1 : at + count]
            at += count
            if op == Op.ENTRY_POINT:
                self.main = a[1]
            elif op == Op.DECORATE and a[1] == 33:
                bindings[a[0]] = a[2]
            elif op == Op.DECORATE and a[1] == 11:
                built_ins[a[0]] = a[2]
            elif op == Op.TYPE_FLOAT:
                self.types[a[0]] = np.float32
            elif op == Op.TYPE_INT:
                self.types[a[0]] = np.int32 if a[2] else np.uint32
            elif op == Op.TYPE_BOOL:
                self.types[a[0]] = np.bool_
            elif op == Op.TYPE_ARRAY:
                lengths[a[0]] = int(self.known[a[2]])
            elif op == Op.TYPE_POINTER:
                storage[a[0]] = (a[1], a[2])
            elif op in {Op.CONSTANT, Op.SPEC_CONSTANT}:
                self.known[a[1]] = np.array([a[2]], np.uint32).view(self.types[a[0]])[0]
            elif op in {Op.CONSTANT_TRUE, Op.CONSTANT_FALSE}:
                self.known[a[1]] = np.bool_(op == Op.CONSTANT_TRUE)
            elif op == Op.VARIABLE:
                kind, to = storage[a[0]]
                if kind == STORAGE_BUFFER:
                    self.variables[a[1]] = ("buffer", bindings[a[1]])
                elif kind == WORKGROUP:
                    self.variables[a[1]] = ("shared", np.full((self.groups, lengths[to]), UNWRITTEN, np.uint32))
                else:
                    self.variables[a[1]] = ("input", built_ins[a[1]])
            elif op == Op.FUNCTION:
                function = self.functions[a[1]] = {"parameters": [], "blocks": {}, "first": None}
            elif op == Op.FUNCTION_PARAMETER:
                function["parameters"].append(a[1])
            elif op == Op.LABEL:
                block = function["blocks"].setdefault(a[0], [])
                function["first"] = function["first"] or a[0]
            elif function is not None and op != Op.FUNCTION_END:
                block.append((op, a))

    # -------------------------------------------------------------------------------- running

    def run(self) -> None:
        blocks = self.functions[self.main]["blocks"]
        with np.errstate(all="ignore"):
            self._blocks(blocks, self.functions[self.main]["first"], None, np.ones(self.lanes, bool), None)

    def _blocks(self, blocks: Any, label: int, stop: int | None, mask: Array, before: int | None) -> int | None:
        """Runs from a block on until `stop`. Returns the last block before `stop`."""
        while label != stop:
            merge, loop = None, None
            for op, a in blocks[label]:
                if op == Op.PHI:
                    self._phi(a, before, mask)
                elif op == Op.SELECTION_MERGE:
                    merge = a[0]
                elif op == Op.LOOP_MERGE:
                    loop = a
                elif op == Op.BRANCH:
                    if loop is not None:
                        self._loop(blocks, label, loop, a[0], mask)
                        before, label = label, loop[0]
                    else:
                        before, label = label, a[0]
                elif op == Op.BRANCH_CONDITIONAL:
                    self._blocks(blocks, a[1], merge, mask & self.known[a[0]], label)
                    before, label = label, merge
                elif op == Op.RETURN:
                    return None
                else:
                    self._instruction(op, a, mask)
        return before

    def _phi(self, a: list[int], before: int | None, mask: Array) -> None:
        pairs = dict(zip(a[3::2], a[2::2], strict=True))
        value = np.broadcast_to(self.known[pairs[before]], (self.lanes,))
        old = self.known.get(a[1])
        self.known[a[1]] = value if old is None else np.where(mask, value, old)

    def _loop(self, blocks: Any, head: int, merge: list[int], test: int, mask: Array) -> None:
        again = merge[1]
        rounds = 0
        active = mask
        while True:
            *body, (_, (condition, inside, _)) = blocks[test]
            for op, a in body:
                self._instruction(op, a, active)
            active = active & self.known[condition]
            if not active.any():
                return
            rounds += 1
            if rounds > 65_000:
                raise Fault("a loop of more rounds than lavapipe runs")
            self._blocks(blocks, inside, again, active, test)
            for op, a in blocks[again]:
                if op != Op.BRANCH:
                    self._instruction(op, a, active)
            phis = [a for op, a in blocks[head] if op == Op.PHI]
            pairs = [dict(zip(a[3::2], a[2::2], strict=True)) for a in phis]
            new = [np.broadcast_to(self.known[pair[again]], (self.lanes,)) for pair in pairs]
            for a, value in zip(phis, new, strict=True):
                self.known[a[1]] = np.where(active, value, self.known[a[1]])

    def _instruction(self, op: int, a: list[int], mask: Array) -> None:
        known = self.known
        if op == Op.ACCESS_CHAIN:
            known[a[1]] = (a[2], known[a[-1]])
        elif op == Op.LOAD:
            known[a[1]] = self._load(a[0], a[2], mask)
        elif op == Op.STORE:
            self._store(known[a[0]], known[a[1]], mask)
        elif op == Op.CONTROL_BARRIER:
            whole = mask.reshape(self.groups, self.group)
            if not (whole.all(1) | ~whole.any(1)).all():
                raise Fault("a barrier that only a part of a workgroup reaches")
        elif op == Op.FUNCTION_CALL:
            known[a[1]] = self._call(a[2], [known[x] for x in a[3:]])
        elif op == Op.EXT_INST:
            known[a[1]] = EXTENDED[a[3]].numpy(*(known[x] for x in a[4:]))
        elif op == U_MUL_EXTENDED:
            known[a[1]] = (None, RAW["UMulHigh"].numpy(known[a[2]], known[a[3]]))
        elif op == Op.COMPOSITE_EXTRACT:
            known[a[1]] = known[a[2]][a[3]]
        elif op == Op.BITCAST:
            known[a[1]] = np.asarray(known[a[2]]).view(self.types[a[0]])
        elif op in FLOAT_COMPARISONS and op not in CORE:
            first, second = (known[x] for x in a[2:])
            nan = np.isnan(first) | np.isnan(second)
            known[a[1]] = (first != second) & ~nan if op == 182 else CORE[op ^ 1].numpy(first, second) | nan
        else:
            known[a[1]] = CORE[op].numpy(*(known[x] for x in a[2:]))

    def _call(self, number: int, arguments: list[Any]) -> Any:
        function = self.functions[number]
        for parameter, argument in zip(function["parameters"], arguments, strict=True):
            self.known[parameter] = argument
        for op, a in function["blocks"][function["first"]]:
            if op == Op.RETURN_VALUE:
                return self.known[a[0]]
            self._instruction(op, a, np.ones(self.lanes, bool))
        raise Fault("a function without a result")

    # --------------------------------------------------------------------------------- memory

    def _place(self, pointer: tuple[int, Any], mask: Array) -> tuple[Array, Any]:
        """The array of a pointer, and the indices of the active lanes in it."""
        kind, what = self.variables[pointer[0]]
        index = np.broadcast_to(pointer[1], (self.lanes,)).astype(np.int64)[mask]
        array = self.buffers[what] if kind == "buffer" else what
        if len(index) and (index.min() < 0 or index.max() >= array.shape[-1]):
            raise Fault(f"{kind} {what if kind == 'buffer' else ''}: index {index.max()} of {array.shape[-1]}")
        return array, index if kind == "buffer" else (self.workgroup[mask], index)

    def _load(self, kind: int, pointer: int, mask: Array) -> Array:
        if pointer in self.variables:
            which = self.variables[pointer][1]
            assert which == LOCAL_INDEX
            return np.tile(np.arange(self.group, dtype=np.uint32), self.groups)
        base, component = self.known[pointer]
        if self.variables[base][0] == "input":
            assert self.variables[base][1] == WORKGROUP_ID
            number = (self.workgroup % self.columns, self.workgroup // self.columns, 0 * self.workgroup)[int(component)]
            return number.astype(np.uint32)
        array, index = self._place(self.known[pointer], mask)
        result = np.zeros(self.lanes, np.uint32)
        result[mask] = array[index]
        if self.variables[base][0] == "shared" and (result[mask] == UNWRITTEN).any():
            raise Fault("shared memory that nothing has written")
        return result.view(self.types[kind])

    def _store(self, pointer: tuple[int, Any], value: Any, mask: Array) -> None:
        array, index = self._place(pointer, mask)
        flat = index if isinstance(index, np.ndarray) else index[0] * array.shape[-1] + index[1]
        if len(np.unique(flat)) < len(flat):
            raise Fault("two invocations store to one element")
        array[index] = np.broadcast_to(value, (self.lanes,))[mask].view(np.uint32)
