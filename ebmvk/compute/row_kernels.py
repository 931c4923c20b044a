"""Divides sorts, top-k and running sums into dispatches.

A row is sorted in blocks that fit into shared memory. Then pairs of sorted runs are merged, with
one dispatch for each doubling of their length. For top-k, each block keeps its k largest values,
until one block is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebmvk.compute.dispatches import Axes, Dispatch, Fresh, Planned, packed, power_of_two
from ebmvk.compute.ir import WORD, Call, DType, Tensor, View
from ebmvk.errors import ArgumentError

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

KINDS: dict[DType, int] = {"uint32": 0, "bool": 0, "int32": 1, "float32": 2}
"""The number of each type in row_keys.glsl."""

ROWS = ("offset", "stride", "batch_1", "batch_2", "row_0", "row_1", "row_2")
PUSH = {
    "sort_block": ("rows", "count", "kept", "pitch", *ROWS, "sorted_offset", "ids_offset", "descending"),
    "sort_merge": ("rows", "count", "kept", "run", *ROWS, "sorted_offset", "ids_offset", "descending"),
    "scan_rows": ("rows", "count", *ROWS, "sums_offset"),
}
"""The push constants of each kernel, in the order of shaders/kernels.toml."""

BLOCK = 1024  # most values of a block, 8 bytes of shared memory each
KEEPS = 2  # a block keeps at most this share, 1/2, of its values; otherwise rows are sorted whole


def sort(call: Call, limits: Limits, fresh: Fresh) -> Planned:
    """Sorts rows; equal values stay in their order, and NaN is above all numbers.

    Input: (..., n). Outputs: the values, and their places as int32, both (..., n), dense.
    Constants: descending, False unless given; unsigned, True to sort int32 as uint32, so that
    negative numbers come last.
    """
    source = call.inputs[0]
    if 0 in source.shape:
        return Planned()
    rows = _Sort(call, "descending", False, limits, fresh)
    return Planned(tuple(rows.all(rows.count)))


def topk(call: Call, limits: Limits, fresh: Fresh) -> Planned:
    """The k largest values of each row in descending order; among equal ones, the lower ids.

    Input: (..., n). Outputs: values and ids (int32), both (..., k), dense. Constants: largest, True
    unless given; False for the smallest, in ascending order. k is read from the outputs.

    Raises:
        ArgumentError: k is above n.
    """
    source, k = call.inputs[0], call.outputs[0].shape[-1]
    if k > source.shape[-1]:
        raise ArgumentError(
            f"topk: k = {k}, and rows have {source.shape[-1]} values", hint=f"take k <= {source.shape[-1]}"
        )
    if 0 in call.outputs[0].shape:
        return Planned()
    rows = _Sort(call, "largest", True, limits, fresh)
    return Planned(tuple(rows.largest(k)))


def scan_sum(call: Call, limits: Limits, _: Fresh) -> Planned:
    """Running sums along the last axis, in a fixed order. Each sum includes the element itself.

    Input: (..., n), float32 or int32. Output: the same shape, dense.

    Raises:
        ArgumentError: rows are longer than the loops of the device's driver allow.
    """
    source, out = call.inputs[0], call.outputs[0]
    if 0 in source.shape:
        return Planned()
    count, rows = source.shape[-1], _rows_of(source)
    each = 16 if limits.kind == "cpu" else 4
    group = _scan_group(count, each, limits)
    values = {"rows": rows.count, "count": count, "sums_offset": out.offset, **_place(source, rows)}
    groups = min(rows.count, limits.groups)
    return Planned((
        Dispatch(
            "scan_rows",
            group,
            (each, KINDS[source.tensor.dtype]),
            (source.tensor, out.tensor),
            packed(PUSH["scan_rows"], values),
            (groups, -(-rows.count // groups), 1),
            2.0 * rows.count * count,
            2 * WORD * rows.count * count,
        ),
    ))  # fmt: skip


def _scan_group(count: int, each: int, limits: Limits) -> int:
    """The size of the workgroup for rows of `count` values. Wider ones loop fewer times."""
    least = limits.subgroup or 8 if limits.kind == "cpu" else 32
    most = min(256, limits.group)
    group = min(max(power_of_two(-(-count // each)), least), least if limits.kind == "cpu" else most)
    while True:
        rounds = -(-count // (group * each)) * (group.bit_length() + 1)
        if rounds <= limits.loop_rounds:
            return group
        if group * 2 > most:
            longest = limits.loop_rounds // (group.bit_length() + 1) * group * each
            raise ArgumentError(
                f"scan_sum: rows of {count} values are too long; this device's driver ends long loops, so the most "
                f"is {longest}",
                hint="split the rows",
            )
        group *= 2


def _rows_of(view: View) -> Axes:
    """The leading axes, at most three after merging."""
    rows = Axes.of({"row": view}, 1).merged()
    if len(rows.sizes) > 3:
        raise ArgumentError(
            f"rows of a view of shape {view.shape} with strides {view.strides} have more than three axes",
            hint="make the view dense first",
        )
    return rows.padded(3)


def _place(view: View, rows: Axes) -> dict[str, int | float]:
    named = zip(("row_0", "row_1", "row_2"), rows.strides["row"], strict=True)
    sizes = {"batch_1": rows.sizes[1], "batch_2": rows.sizes[2]}
    return {"offset": view.offset, "stride": view.strides[-1], **sizes, **dict(named)}


@dataclass
class _Pairs:
    """Keys and ids of rows, `count` of each in a row."""

    keys: Tensor
    ids: Tensor
    count: int


class _Sort:
    """The dispatches that sort the rows of a call. order, otherwise: the name of the constant that
    decides whether the sort is descending, and its default."""

    def __init__(self, call: Call, order: str, otherwise: bool, limits: Limits, fresh: Fresh) -> None:
        constants = dict(call.constants)
        source, (self.values, self.ids) = call.inputs[0], call.outputs
        self.source = source
        self.limits, self.fresh = limits, fresh
        self.count = source.shape[-1]
        rows = _rows_of(source)
        self.rows = rows.count
        self.push = {"rows": rows.count, "descending": int(constants.get(order, otherwise)), **_place(source, rows)}
        self.kind = KINDS["uint32" if constants.get("unsigned") else source.tensor.dtype]
        most = min(BLOCK, power_of_two(limits.shared_bytes // 8 + 1) // 2)
        self.block = max(min(most, power_of_two(self.count)), 2)
        self.group = min(self.block // 2, limits.group, (limits.subgroup or 8) if limits.kind == "cpu" else 256)

    def all(self, kept: int) -> Iterator[Dispatch]:
        """Sorts the rows and writes the first `kept` values of each."""
        if self.count <= self.block:
            yield self._blocks(None, None, kept)
            return
        now = self._pairs(self.count)
        yield self._blocks(None, now, self.block)
        run = self.block
        while 2 * run < self.count:
            after = self._pairs(self.count)
            yield self._merge(now, after, run, self.count)
            now, run = after, 2 * run
        yield self._merge(now, None, run, kept)

    def largest(self, k: int) -> Iterator[Dispatch]:
        if k * KEEPS > self.block and self.count > self.block:
            yield from self.all(k)
            return
        now: _Pairs | None = None
        count = self.count
        while count > self.block:
            count = -(-count // self.block) * k
            after = self._pairs(count)
            yield self._blocks(now, after, k)
            now = after
        yield self._blocks(now, None, k)

    def _pairs(self, count: int) -> _Pairs:
        shape = (self.rows, count)
        return _Pairs(self.fresh(shape, "uint32"), self.fresh(shape, "int32"), count)

    def _blocks(self, source: _Pairs | None, to: _Pairs | None, kept: int) -> Dispatch:
        count = source.count if source else self.count
        pitch = to.count if to else kept
        numbers = {"count": count, "kept": kept, "pitch": pitch}
        constants = (self.block, self.kind, int(source is not None), int(to is None))
        return self._dispatch("sort_block", self.group, constants, source, to, numbers, -(-count // self.block))

    def _merge(self, source: _Pairs, to: _Pairs | None, run: int, kept: int) -> Dispatch:
        numbers = {"count": self.count, "kept": kept, "run": run}
        group = min(64, self.limits.group)
        constants = (self.kind, int(to is None))
        return self._dispatch("sort_merge", group, constants, source, to, numbers, -(-self.count // group))

    def _dispatch(
        self,
        kernel: str,
        group: int,
        constants: tuple[int, ...],
        source: _Pairs | None,
        to: _Pairs | None,
        numbers: dict[str, int],
        across: int,
    ) -> Dispatch:
        whole = self.source.tensor
        read = (whole, source.keys, source.ids) if source else (whole, whole, whole)
        written = (to.keys, to.ids) if to else (self.values.tensor, self.ids.tensor)
        offsets = (0, 0) if to else (self.values.offset, self.ids.offset)
        values = {**self.push, **numbers, "sorted_offset": offsets[0], "ids_offset": offsets[1]}
        down = min(self.rows, self.limits.groups_yz)
        moved = self.rows * numbers["count"] * (2 if source else 1) + 2 * self.rows * numbers["kept"]
        return Dispatch(
            kernel,
            group,
            constants,
            (*read, *written),
            packed(PUSH[kernel], values),
            (across, down, -(-self.rows // down)),
            0.0,
            WORD * moved,
        )
