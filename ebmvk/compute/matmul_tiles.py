"""Tiles of matrix products, and the choice among them.

Each tile is a specialisation of one of three kernels. `matmul_tiled` passes slices of both matrices
through shared memory. `matmul_lanes` is for CPUs: lanes of a subgroup take elements from each
other. `matmul_direct` does neither; it is for sums of a few terms, and for CPUs without such
subgroups.

The choice follows a model of the time for each kind of device; nothing is measured at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ebmvk.compute.ir import WORD

if TYPE_CHECKING:
    from ebmvk.engine.recording import Limits

PARTIAL_BYTES = 64 << 20
"""The most bytes of partial sums."""
LEAST_PART = 64
"""The least number of terms in a part of a sum: with fewer, storing the part would cost more than
computing it."""


@dataclass(frozen=True)
class Tile:
    """A kernel with the constants that don't depend on strides.

    Attributes:
        down, across: invocations of a workgroup along rows and columns.
        rows, columns: rows and columns of sums that one invocation computes.
        depth: for matmul_tiled, groups of four terms in a slice; for the others, terms in a round.
        speed: the share of a device's peak that the kernel reaches if all of the tile is used.
    """

    kernel: str
    down: int
    across: int
    rows: int
    columns: int
    depth: int
    speed: float

    @property
    def group(self) -> int:
        return self.down * self.across

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the tile."""
        lanes = self.across if self.kernel == "matmul_lanes" else self.down
        return lanes * self.rows, self.across * self.columns

    @property
    def least(self) -> int:
        """The least number of terms of a sum."""
        return 4 * self.depth if self.kernel == "matmul_tiled" else 1

    @property
    def shared_bytes(self) -> int:
        """Shared memory of matmul_tiled.comp: the most that it needs for any strides."""
        padding = 2 * (8 // self.depth)
        return 16 * self.depth * (sum(self.size) + padding) if self.kernel == "matmul_tiled" else 0

    @property
    def rounds(self) -> float:
        """Iterations of the kernel's loops for each term of a sum. It is below 1 if an iteration
        adds several terms."""
        return 1 / self.depth if self.kernel != "matmul_tiled" else 0.1

    def constants(self, a: tuple[int, int, int], b: tuple[int, int, int], added: bool) -> tuple[int, ...]:
        """The kernel's specialisation constants.

        Args:
            a: the number of rows, their stride, and the stride along the inner axis.
            b: the same for columns.
        """
        if self.kernel == "matmul_lanes":
            return self.rows, self.columns, self.depth, int(added)
        if self.kernel == "matmul_direct":
            return self.down, self.rows, self.columns, self.depth, int(added)
        along = _along(*a, quads=self.rows % 4 == 0), _along(*b, quads=self.columns % 4 == 0)
        return self.down, self.rows, self.columns, self.depth, *along, int(added)


def _along(lines: int, stride: int, inner: int, quads: bool) -> int:
    """The elements that an invocation reads at once; see matmul_tiled.comp."""
    if inner == 1:
        return 0
    return 2 if stride == 1 and lines % 4 == 0 and quads else 1


# The speeds are estimated from the multiply-adds in the loop (python -m bench.isa) and from the
# registers, which leave room for four waves. The last two tiles read the most elements for each
# multiply-add.
CARD = (
    Tile("matmul_tiled", 16, 16, 8, 8, 2, 0.85),  # 128 x 128
    Tile("matmul_tiled", 8, 8, 8, 8, 1, 0.75),  # 64 x 64
    Tile("matmul_tiled", 8, 8, 4, 4, 4, 0.5),  # 32 x 32
    Tile("matmul_tiled", 1, 64, 8, 1, 4, 0.25),  # 8 x 64: a few rows
    Tile("matmul_tiled", 64, 1, 1, 8, 4, 0.25),  # 64 x 8: a few columns
)
SHORT = Tile("matmul_direct", 8, 8, 4, 4, 1, 0.2)
"""For sums with fewer terms than a slice, and for devices with too little shared memory."""


@dataclass(frozen=True)
class Costs:
    """Costs, in units of the time of one multiply-add at the device's peak.

    Attributes:
        busy: the number of invocations, in all workgroups, that keep the device busy.
        join: the cost of writing and reading a partial sum. dispatch: the cost of a dispatch and
            its barrier.
    """

    busy: int
    join: float
    dispatch: float


# busy: eight invocations for each of the 2,048 lanes of an RX 6650 XT, because a lane with fewer
# waits for memory. Vulkan doesn't say how many lanes a device has. join: 8 bytes at 280 GB/s, with
# 5.4e12 multiply-adds a second. dispatch: 5 microseconds.
CARD_COSTS = Costs(16384, 150.0, 2.5e7)
# For a CPU. busy: 8 workgroups of 8 lanes, several for each core. join: 40 cycles. dispatch: 20
# microseconds.
PROCESSOR_COSTS = Costs(64, 320.0, 1e6)


def tiles(limits: Limits) -> tuple[Tile, ...]:
    """The tiles that a device may use, without SHORT."""
    if limits.kind == "cpu":
        return _processor(limits)
    return tuple(tile for tile in CARD if tile.group <= limits.group and tile.shared_bytes <= limits.shared_bytes)


# On lavapipe, if lanes read at different places, the read takes about 20 cycles a lane, because
# each element goes into its vector through memory. So the best tile reads least for each
# multiply-add: it is the largest one whose code still compiles in seconds. With 160 cycles for a
# read of 8 lanes and 3 for their multiply-add, the model gives the measured order of these tiles.
READ, ADD = 160.0, 3.0


def _processor(limits: Limits) -> tuple[Tile, ...]:
    lanes = limits.subgroup
    direct = [_direct(min(lanes or 8, limits.group), rows, columns) for rows, columns in ((8, 8), (4, 4), (1, 8))]
    if not 4 <= lanes <= 16:
        return tuple(direct)
    largest = 64 if lanes >= 8 else 32
    sides = [side for side in (64, 32, 16) if side <= largest]
    return (*(_lanes(lanes, rows // lanes, columns // lanes) for rows in sides for columns in sides), *direct)


def _lanes(lanes: int, rows: int, columns: int) -> Tile:
    adds = lanes * rows * columns
    return Tile("matmul_lanes", 1, lanes, rows, columns, 2, adds / (READ * (rows + columns) + ADD * adds))


def _direct(lanes: int, rows: int, columns: int) -> Tile:
    adds = rows * columns
    return Tile("matmul_direct", 1, lanes, rows, columns, 1, adds / (READ * (rows + columns) + ADD * adds))


def chosen(rows: int, columns: int, inner: int, batches: int, limits: Limits) -> tuple[Tile, int]:
    """The tile and the number of parts of the sums that take the least time in the model.

    Args:
        inner: terms of a sum, at least 1.
        batches: matrices of this size.
    """
    found = [tile for tile in tiles(limits) if tile.least <= inner] or [SHORT]
    costs = PROCESSOR_COSTS if limits.kind == "cpu" else CARD_COSTS
    choices = []
    for tile in found:
        count = -(-rows // tile.size[0]) * -(-columns // tile.size[1]) * batches
        for parts in _divisions(tile, rows * columns * batches, inner, limits):
            work = float(count) * tile.size[0] * tile.size[1] * inner / tile.speed
            busy = min(count * parts * tile.group / costs.busy, 1.0)
            joined = costs.join * parts * rows * columns * batches + costs.dispatch if parts > 1 else 0.0
            choices.append((work / busy + joined, tile, parts))
    _, tile, parts = min(choices, key=lambda choice: choice[0])
    return tile, parts


def _divisions(tile: Tile, results: int, inner: int, limits: Limits) -> Iterator[int]:
    """Numbers of parts to try. Each part then has terms, but not more than its loop can add."""
    least = -(-int(inner * tile.rounds + 64) // limits.loop_rounds)
    parts = least
    while parts == least or (inner // parts >= LEAST_PART and parts * results * WORD <= PARTIAL_BYTES):
        length = -(-inner // parts)
        yield -(-inner // length)
        parts *= 2
