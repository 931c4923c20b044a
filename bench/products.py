"""`python -m bench.products`: the matrix products of a training step, each as GFLOP/s.

The step is that of a transformer. The number of layers doesn't matter for a product's speed, so
each kind of product is measured once, with the transpositions that forward and backward need. For
comparison, the engine's scoring kernel and torch on the CPU run the same sizes. The three take
turns, and the best of `--rounds` counts. If the machine does other work, the figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measure import command_line, commit, table, write
from ebmvk.compute.ir import Call, DType, Tensor, View
from ebmvk.compute.kernels import KERNELS, Dispatch, Planned
from ebmvk.engine.recording import Memory, Recorder, Recording
from ebmvk.engine.vulkan import Vulkan

SECONDS = 0.1  # the time that a measured run should take
MOST = 200  # the most products in a run


@dataclass(frozen=True)
class Product:
    """`batch` products of (m, k) and (k, n); a_turned, b_turned: stored as (k, m) or (n, k)."""

    name: str
    batch: int
    m: int
    n: int
    k: int
    a_turned: bool = False
    b_turned: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.n * self.k


def linear(name: str, tokens: int, out: int, d: int) -> list[Product]:
    """A layer y = x W': forward, and the gradients of x and W."""
    return [
        Product(name, 1, tokens, out, d, b_turned=True),
        Product(f"{name}, d input", 1, tokens, d, out),
        Product(f"{name}, d weight", 1, out, d, tokens, a_turned=True),
    ]


def step(d: int, heads: int, batch: int, tokens: int, vocabulary: int) -> list[Product]:
    """All products of a step, each kind once."""
    rows, many, width = batch * tokens, batch * heads, d // heads
    attention = [
        Product("q k'", many, tokens, tokens, width, b_turned=True),
        Product("p v", many, tokens, width, tokens),
        Product("d k, d v", many, tokens, width, tokens, a_turned=True),
    ]
    layers = (
        ("q, k, v", 3 * d, d),
        ("projection", d, d),
        ("up", 4 * d, d),
        ("down", d, 4 * d),
        ("head", vocabulary, d),
    )
    return [*itertools.chain.from_iterable(linear(name, rows, out, of) for name, out, of in layers), *attention]


class Bench:
    """One product on the device: operands in device memory, and recordings of many runs."""

    def __init__(self, recorder: Recorder, product: Product, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.recorder, self.product = recorder, product
        self.a, self.b = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((product.batch, product.m, product.k), (product.batch, product.k, product.n))
        )
        self.ids = itertools.count()
        self.places: dict[Tensor, tuple[int, int]] = {}
        self.end = 0

    def tensor(self, shape: tuple[int, ...], dtype: DType = "float32") -> Tensor:
        tensor = Tensor(next(self.ids), shape, dtype)
        self.places[tensor] = (self.end, tensor.bytes)
        self.end += -(-tensor.bytes // self.recorder.alignment) * self.recorder.alignment
        return tensor

    def own(self) -> tuple[Memory, Tensor, Planned]:
        """Our kernel's plan, and memory with the operands in it."""
        a, b = self._stored(self.a, self.product.a_turned), self._stored(self.b, self.product.b_turned)
        result = self.tensor((self.product.batch, self.product.m, self.product.n))
        call = Call("matmul", (a[1], b[1]), (result.view(),))
        planned = KERNELS["matmul"](call, self.recorder.limits, self.tensor)
        memory = self.recorder.memory(self.end)
        memory.write([(self.places[view.tensor][0], array) for array, view in (a, b)])
        return memory, result, planned

    def _stored(self, array: np.ndarray[Any, Any], turned: bool) -> tuple[np.ndarray[Any, Any], View]:
        if not turned:
            return array, self.tensor(array.shape).view()
        stored = np.ascontiguousarray(array.transpose(0, 2, 1))
        view = self.tensor(stored.shape).view()
        shape, strides = ((part[0], part[2], part[1]) for part in (view.shape, view.strides))
        return stored, View(view.tensor, shape, strides, 0)

    def recording(self, memory: Memory, planned: Planned, times: int) -> Recording:
        record = self.recorder.recording()
        for _ in range(times):
            for dispatch in dispatches(planned):
                module = self.recorder.kernel(dispatch.kernel, dispatch.group, dispatch.constants)
                places = [(memory, *self.places[tensor]) for tensor in dispatch.tensors]
                record.kernel(module, places, dispatch.push, dispatch.groups)
        record.finish()
        return record

    def scoring(self, times: int) -> Recording | None:
        """The scoring kernel, columns of b as points. None for a batch, or if 4 doesn't divide
        k."""
        product = self.product
        if product.k % 4 or product.batch > 1:
            return None
        cpu = self.recorder.limits.kind == "cpu"
        group = max(self.recorder.limits.subgroup, 8) if cpu else 256
        results = (4, 4) if cpu else (8, 8)
        tile = (4, 4 * group) if cpu else (128, 128)
        module = self.recorder.kernel("score_direct" if cpu else "score_tiled", group, results)
        params, other = np.array([product.m, product.n, 0, 0, 0, 0], np.uint32), np.zeros(16, np.float32)
        points = np.ascontiguousarray(self.b.transpose(0, 2, 1))
        arrays = [params, self.a, points, other, other, other, other]
        tensors = [self.tensor(array.shape) for array in arrays]
        scores = self.tensor((product.m, product.n))
        memory = self.recorder.memory(self.end)
        memory.write([(self.places[tensor][0], array) for tensor, array in zip(tensors, arrays, strict=True)])
        push = np.array([product.k // 4, product.n, 0, 0], np.uint32).tobytes()
        groups = (-(-product.n // tile[1]), -(-product.m // tile[0]), 1)
        record = self.recorder.recording()
        for _ in range(times):
            record.kernel(module, [(memory, *self.places[tensor]) for tensor in (*tensors, scores)], push, groups)
        record.finish()
        return record

    def checked(self, memory: Memory, result: Tensor) -> float:
        """The largest error against float64, as a share of 4 sqrt(k) 2^-24 |A||B|."""
        found = np.empty(result.shape, np.float32)
        memory.read([(self.places[result][0], found)])
        a, b = self.a.astype(np.float64), self.b.astype(np.float64)
        bound = 4 * self.product.k**0.5 * 2.0**-24 * (np.abs(a) @ np.abs(b))
        return float((np.abs(found - a @ b) / bound).max())


def dispatches(planned: Planned) -> list[Dispatch]:
    return [step for step in planned.steps if isinstance(step, Dispatch)]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured(recorder: Recorder, product: Product, rounds: int) -> dict[str, Any]:
    bench = Bench(recorder, product, 1)
    memory, result, planned = bench.own()
    once = bench.recording(memory, planned, 1)
    once.run()
    error = bench.checked(memory, result)
    times = int(np.clip(SECONDS / max(once.run().seconds, 1e-6), 1, MOST))
    own, scoring = bench.recording(memory, planned, times), bench.scoring(times)
    a, b = (torch.from_numpy(array) for array in (bench.a, bench.b))
    if product.a_turned:
        a = a.transpose(1, 2).contiguous().transpose(1, 2)
    if product.b_turned:
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    runs: dict[str, Callable[[], object]] = {"own": own.run}
    if scoring:
        runs["scoring"] = scoring.run
    runs["torch"] = lambda: [torch.matmul(a, b) for _ in range(times)]
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds + 1):  # the first round warms up
        for name, run in runs.items():
            best[name] = min(best[name], timed(run))
    first = dispatches(planned)[0]
    return {
        **asdict(product),
        "gflops": {name: product.flops * times / seconds / 1e9 for name, seconds in best.items()},
        "error": error,
        "kernel": first.kernel,
        "constants": first.constants,
        "parts": first.groups[1],
    }


def rows(results: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    yield ["product", "batch", "m, n, k", "kernel", "own", "scoring", "torch"]
    for found in results:
        speeds = [
            f"{found['gflops'][name]:.1f}" if name in found["gflops"] else "" for name in ("own", "scoring", "torch")
        ]
        kernel = f"{found['kernel']} {' '.join(map(str, found['constants']))}"
        kernel += f" in {found['parts']} parts" if found["parts"] > 1 else ""
        yield [found["name"], str(found["batch"]), f"{found['m']}, {found['n']}, {found['k']}", kernel, *speeds]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.products", description=__doc__)
    for flag, value, what in (
        ("--d", 128, "width"),
        ("--heads", 4, "attention heads"),
        ("--batch", 12, "sequences"),
        ("--tokens", 64, "tokens of a sequence"),
        ("--vocabulary", 4096, "size of the vocabulary"),
        ("--rounds", 5, "rounds; the best counts"),
    ):
        parser.add_argument(flag, type=int, default=value, help=what)
    parser.add_argument("--only", default="", help="only products whose name contains this")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    recorder = Recorder(Vulkan())
    wanted = step(options.d, options.heads, options.batch, options.tokens, options.vocabulary)
    results = [measured(recorder, product, options.rounds) for product in wanted if options.only in product.name]
    device = recorder.backend.capabilities.name
    print(f"{device}; torch on {torch.get_num_threads()} threads\n\n{table(list(rows(results)))}")
    figures = {"device": device, "products": results}
    write(options.json, {"command": command_line("bench.products", argv), "commit": commit(), **figures})


if __name__ == "__main__":
    main()
