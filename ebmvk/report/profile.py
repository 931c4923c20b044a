"""What the kernels of a training step take: a page, figures as JSON, and a trace for viewers such
as Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ebmvk.compute.profile import PRODUCTS, Block, Kernel, Profile, by
from ebmvk.engine.ceilings import Ceilings
from ebmvk.report.charts import Blocks
from ebmvk.report.page import Page, render
from ebmvk.report.section import Part, Picture, Shown, Tile
from ebmvk.report.tables import Table, number, percent
from ebmvk.runs.atomic import write_atomic
from ebmvk.runs.layout import PROFILE_FILE, PROFILE_PAGE, TRACE_FILE

MOST_LINES, MOST_KERNELS = 30, 20
"""Rows of the tables; the JSON has all."""
SIZES = ((2**20, "below 1 MiB"), (2**24, "1 to 16 MiB"), (float("inf"), "16 MiB and more"))
"""Colours of tensors: (bytes below which it holds, name)."""


@dataclass(frozen=True)
class Measured:
    """The profile of a step.

    programs: {name: (runs in a step, what one run takes)}. ceilings: of the device. title, device:
    of the page. version: of ebmvk.
    """

    programs: Mapping[str, tuple[int, Profile]]
    ceilings: Ceilings
    title: str
    device: str
    version: str

    @property
    def kernels(self) -> list[tuple[int, Kernel]]:
        """(runs in a step, kernel), in order."""
        return [(runs, kernel) for runs, own in self.programs.values() for kernel in own.kernels]

    @property
    def busy(self) -> float:
        """Seconds of all kernels of a step."""
        return sum(runs * own.busy for runs, own in self.programs.values())

    @property
    def seconds(self) -> float:
        """Seconds of a step's programs, one after the other."""
        return sum(runs * own.seconds for runs, own in self.programs.values())


def write(found: Measured, folder: Path) -> Path:
    """Write profile.html, profile.json and trace.json to a folder; returns the page.

    Raises StorageError.
    """
    write_atomic(folder / PROFILE_FILE, json.dumps(record(found), indent=1).encode())
    write_atomic(folder / TRACE_FILE, json.dumps(trace(found)).encode())
    page = Page(found.title, "profile", found.device, list(parts(found)), found.version)
    write_atomic(folder / PROFILE_PAGE, render(page).encode())
    return folder / PROFILE_PAGE


def line(found: Measured) -> str:
    """The profile in one line."""
    groups = _grouped(found, "kind")
    shares = ", ".join(f"{name} {group.seconds / found.busy:.0%}" for name, group in list(groups.items())[:4])
    return f"{found.busy:.3g} s of kernels a step on the device: {shares}"


def record(found: Measured) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "device": found.device,
        "ceilings": asdict(found.ceilings),
        "busy_seconds": found.busy,
        "seconds": found.seconds,
        "programs": {
            name: {"runs": runs, "busy_seconds": own.busy, **asdict(own)}
            for name, (runs, own) in found.programs.items()
        },
    }


# ---- the trace -----------------------------------------------------------------------------------


def trace(found: Measured) -> dict[str, Any]:
    """Chrome's trace event format, which Perfetto opens: each program once, its kernels one after
    another, and the bytes of intermediate results in use. Times are in microseconds."""
    events: list[dict[str, Any]] = []
    began = 0.0
    for thread, (name, (_, own)) in enumerate(found.programs.items()):
        place = {"pid": 1, "tid": thread + 1}
        events.append({"ph": "M", "name": "thread_name", **place, "args": {"name": name}})
        used = in_use(own.blocks, len(own.kernels))
        for kernel, nbytes in zip(own.kernels, used, strict=True):
            took = 1e6 * kernel.seconds
            args = {
                "operation": kernel.operation, "line": kernel.line, "flops": kernel.flops, "bytes": kernel.bytes,
                "dispatches": kernel.dispatches,
            }  # fmt: skip
            events.append({"ph": "X", "name": kernel.kind, **place, "ts": began, "dur": took, "args": args})
            memory = {"bytes in use": nbytes}
            events.append({"ph": "C", "name": "intermediate results", "pid": 1, "ts": began, "args": memory})
            began += took
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def in_use(blocks: Sequence[Block], count: int) -> list[int]:
    """Bytes of the tensors that live at each of `count` nodes."""
    return [sum(block.nbytes for block in blocks if block.first <= node <= block.last) for node in range(count)]


# ---- the page ------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Kernels of a step together. count: of kernels; the rest as in `Kernel`."""

    count: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def add(self, runs: int, kernel: Kernel) -> None:
        self.count += runs
        self.seconds += runs * kernel.seconds
        self.flops += runs * kernel.flops
        self.bytes += runs * kernel.bytes


def parts(found: Measured) -> Iterator[Part]:
    """The page's content."""
    yield Part("", Shown(tiles=list(_tiles(found))))
    note = (
        f"The device's limits were measured in the same run: {found.ceilings}. "
        "The share of the limit is the least time that the work can take at these limits, divided by the time it took."
    )
    yield Part("Kernels by kind", Shown(note=note, tables=[_table(found, "kind", "kind")]))
    note = (
        "The line made the first result of a kernel; kernels that were fused come from several lines. "
        "Gradients count for the line whose gradient they are."
    )
    yield Part("Lines of the model's code", Shown(note=note, tables=[_table(found, "line", "line", MOST_LINES)]))
    yield Part("The kernels that take longest", Shown(tables=[_slowest(found)]))
    for name, (_, own) in found.programs.items():
        if own.blocks:
            yield Part(f"Memory of the program {name}", _memory(name, own))


def _tiles(found: Measured) -> Iterator[Tile]:
    groups = _grouped(found, "kind")
    products = sum(group.seconds for name, group in groups.items() if name in PRODUCTS)
    least = sum(runs * found.ceilings.least_seconds(own.flops, own.bytes) for runs, own in found.kernels)
    dispatches = sum(runs * kernel.dispatches for runs, kernel in found.kernels)
    yield Tile(_milliseconds(found.busy), "kernels of a step")
    yield Tile(_milliseconds(found.seconds), "the whole step", "without time stamps between kernels")
    yield Tile(percent(products / found.busy, 0), "of it matrix products")
    yield Tile(percent(least / found.busy, 0), "of the device's limit")
    yield Tile(f"{dispatches:,}", "dispatches")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{1 if seconds < 0.1 else 0}f} ms"


def _table(found: Measured, attribute: str, name: str, most: int | None = None) -> Table:
    head = (name, "kernels", "ms", "share", "GFLOP/s", "GB/s", "of the limit")
    groups = list(_grouped(found, attribute).items())[:most]
    return Table(head, [(own or "unknown", *_cells(found, group)) for own, group in groups])


def _slowest(found: Measured) -> Table:
    head = ("line", "kernel", "ms", "share", "GFLOP/s", "GB/s", "of the limit")
    slowest = sorted(found.kernels, key=lambda own: -own[0] * own[1].seconds)[:MOST_KERNELS]
    rows = []
    for runs, kernel in slowest:
        group = _Group()
        group.add(runs, kernel)
        rows.append((kernel.line or "unknown", kernel.kind, *_cells(found, group)[1:]))
    return Table(head, rows)


def _cells(found: Measured, group: _Group) -> tuple[str, ...]:
    seconds = group.seconds or float("nan")
    return (
        f"{group.count:,}",
        number(1e3 * group.seconds, ".3f"),
        percent(group.seconds / found.busy),
        number(group.flops / seconds / 1e9, ".1f"),
        number(group.bytes / seconds / 1e9, ".1f"),
        percent(found.ceilings.least_seconds(group.flops, group.bytes) / seconds, 0),
    )


def _memory(name: str, own: Profile) -> Shown:
    mib = 2.0**20
    boxes = [
        (
            float(block.first),
            float(block.last + 1),
            block.offset / mib,
            (block.offset + block.nbytes) / mib,
            next(colour for colour, (below, _) in enumerate(SIZES) if block.nbytes < below),
        )
        for block in own.blocks
    ]
    chart = Blocks(boxes, [text for _, text in SIZES], "kernel", "MiB from the start of the arena")
    note = (
        "Each box is a tensor: from the kernel that first writes it to the last one that reads it, at its place in "
        f"memory. Tensors share {own.nbytes['arena'] / mib:.1f} MiB; without sharing they would take "
        f"{sum(block.nbytes for block in own.blocks) / mib:.1f} MiB."
    )
    return Shown(note=note, pictures=[Picture(f"Intermediate results of {name}", "", chart, wide=True)])


def _grouped(found: Measured, attribute: str) -> dict[str, _Group]:
    """Kernels by an attribute, the group that takes longest first."""
    groups: dict[str, _Group] = {}
    for runs, own in found.programs.values():
        for name, kernels in by(own.kernels, attribute).items():
            group = groups.setdefault(name, _Group())
            for kernel in kernels:
                group.add(runs, kernel)
    return dict(sorted(groups.items(), key=lambda item: -item[1].seconds))
