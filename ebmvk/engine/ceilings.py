"""Measures the limits of a device: GB/s of a copy, GFLOP/s of float32 arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ebmvk.engine.api import Backend
from ebmvk.engine.vulkan import Vulkan


@dataclass(frozen=True)
class Ceilings:
    """The limits of a device.

    copy_gbs: bytes read and written per second, in GB. product_gflops: of a large float32 matrix
    product. arithmetic_gflops: of multiply-adds in registers, if measured. source: what measured
    them.
    """

    copy_gbs: float
    product_gflops: float
    arithmetic_gflops: float | None
    source: str

    @property
    def gflops(self) -> float:
        return max(self.product_gflops, self.arithmetic_gflops or 0.0)

    def least_seconds(self, flops: float, bytes_: float) -> float:
        """The roofline: seconds below which no work of this size can be done."""
        return max(flops / self.gflops, bytes_ / self.copy_gbs) / 1e9

    def __str__(self) -> str:
        arithmetic = f", arithmetic {self.arithmetic_gflops:.0f} GFLOP/s" if self.arithmetic_gflops else ""
        return f"product {self.product_gflops:.0f} GFLOP/s{arithmetic}, copy {self.copy_gbs:.1f} GB/s: {self.source}"


def ceilings(backend: Backend, *, quick: bool = False) -> Ceilings:
    if isinstance(backend, Vulkan):
        return _vulkan(backend, quick=quick)
    # The device that holds this backend's results
    return of_torch(backend.projx(torch.eye(2)).device.type, quick=quick)


def of_torch(device: str, *, quick: bool = False) -> Ceilings:
    """Ceilings measured with torch's copy and float32 product (TF32 off), the best of several."""
    torch.set_float32_matmul_precision("highest")
    side, floats = (256, 1 << 16) if quick else (8192, 1 << 28) if device == "cuda" else (2048, 1 << 26)
    a, big = torch.randn(side, side, device=device), torch.ones(floats, device=device)
    product, to = torch.empty_like(a), torch.empty_like(big)
    copying = _best(lambda: to.copy_(big), device)
    multiplying = _best(lambda: torch.mm(a, a, out=product), device)
    return Ceilings(
        copy_gbs=8 * floats / copying / 1e9,
        product_gflops=2 * side**3 / multiplying / 1e9,
        arithmetic_gflops=None,
        source=f"torch on {device}, copy of {4 * floats >> 20} MiB, product of {side} x {side}, TF32 off",
    )


def _best(work: Callable[[], object], device: str) -> float:
    """The fewest seconds of five runs, after one that isn't measured."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _vulkan(backend: Vulkan, *, quick: bool) -> Ceilings:
    """Ceilings measured on the device alone. The times exclude copies to and from the host."""
    device = backend.capabilities
    slow = quick or device.type == "cpu"
    size = min(1 << (25 if slow else 28), device.memory_bytes // 8, device.max_allocation) // 16 * 16
    rows, columns, d = (512, 1024, 640) if slow else (4096, 4096, 2048)
    threads = 1 << (14 if slow else 20)
    target = 0.005 if quick else 0.03
    times, copying = _until(target, lambda times: min(backend.copy_seconds(size, times, 3)))
    rounds, adding = _until(target, lambda rounds: min(backend.arithmetic_seconds(threads, rounds, 3)))
    return Ceilings(
        copy_gbs=2 * size * times / copying / 1e9,
        product_gflops=2 * rows * columns * d / min(backend.product_seconds(rows, columns, d, 3)) / 1e9,
        arithmetic_gflops=256 * threads * rounds / adding / 1e9,
        source=f"Vulkan on the device, {times} copies of {size >> 20} MiB between buffers, the engine's own scoring "
        f"kernel as a product of {rows} x {d} x {columns}, and fused multiply-adds in registers",
    )


def _until(target: float, seconds_of: Callable[[int], float]) -> tuple[int, float]:
    """The amount of work that takes at least `target` seconds, and its time.

    The ~30 us of a submission don't matter in such a time.
    """
    count = 1
    while (seconds := seconds_of(count)) < target and count < 1 << 16:
        count *= 2 if seconds > target / 8 else 8
    return count, seconds
