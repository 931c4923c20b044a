"""`python -m bench.ops`: every operation at several sizes, compared with the device's limits.

Work and bytes are the least that an operation needs: every input read once, every output written
once. Seconds are those of a call. On Vulkan they include copying arguments to the device and
results back, but the limits don't; a second table then has the number of submissions of a call, and
the bytes that it copies up and down.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from bench.measure import (
    Sizes,
    Timing,
    Work,
    chain_problem,
    facts,
    interleaved,
    introduce,
    sizes,
    table,
    unit,
    write,
)
from ebmvk.engine import Backend, select
from ebmvk.engine.ceilings import Ceilings, ceilings, of_torch


@dataclass(frozen=True)
class Case:
    """One operation at one size, with its floating-point operations and least bytes."""

    op: str
    size: str
    flops: float
    bytes: float
    work: Work


def sphere(backend: Backend, of: Sizes) -> Iterator[Case]:
    for b, d in of.sphere:
        x, y = unit(b, d, 1), unit(b, d, 2)
        size, row = f"B {b}, d {d}", 4 * b * d
        yield Case("projx", size, 3 * b * d, 2 * row, partial(backend.projx, x))
        yield Case("proju", size, 4 * b * d, 3 * row, partial(backend.proju, x, y))
        yield Case("expmap", size, 5 * b * d, 3 * row, partial(backend.expmap, x, y))
        yield Case("logmap", size, 9 * b * d, 3 * row, partial(backend.logmap, x, y))
        yield Case("transp", size, 8 * b * d, 4 * row, partial(backend.transp, x, y, x))
        yield Case("dist", size, 6 * b * d, 2 * row, partial(backend.dist, x, y))


def topk(backend: Backend, of: Sizes, *, large: bool) -> Iterator[Case]:
    for n in (*of.stores, *(of.large if large else ())):
        points = backend.points(unit(n, of.d, 1))
        for b in of.batches:
            work = partial(backend.topk, unit(b, of.d, 2), points, of.k)
            size = f"B {b}, N {n}, d {of.d}, k {of.k}"
            yield Case("topk", size, 2.0 * b * n * of.d, 4.0 * (n + b) * of.d, work)


def chains(backend: Backend, of: Sizes) -> Iterator[Case]:
    n, d, k = of.n, of.d, of.k
    points = backend.points(unit(n, d, 1))
    for b in of.chains:
        p = chain_problem(b, k, n, d)
        lists = (p.ids, p.logw, p.kappa, p.log_background)
        one = gathered = 4.0 * b * k * d
        size = f"B {b}, K {k}, d {d}"
        yield Case("energy_score", size, one, gathered, partial(backend.energy_score, p.x, points, *lists))
        backward = partial(backend.energy_score_backward, p.x, points, *lists, torch.ones(b), p.v)
        yield Case("energy_score_backward", size, 3.5 * one, gathered + 4.0 * n * d, backward)
        run = partial(p.run, backend, points)
        yield Case("langevin gbaoab", f"{size}, {of.steps} steps", of.steps * one, gathered, partial(run, of.steps))
        trajectories = of.steps // 4
        ghmc = partial(run, trajectories, scheme="ghmc")
        yield Case("langevin ghmc", f"{size}, {trajectories} x 4 leapfrogs", 4 * trajectories * one, gathered, ghmc)
        sample = partial(backend.vmf_sample, p.x, torch.full((b,), 300.0), seed=1)
        yield Case("vmf_sample", f"B {b}, d {d}", 5.0 * b * d, 8.0 * b * d, sample)
        add = partial(backend.accumulate, p.x, p.ids, p.logw.softmax(1), torch.arange(b) % 100, n)
        yield Case("accumulate", f"{size}, n {n}", 2.0 * b * k * d, 4.0 * (b * d + n * d), add)


def row(case: Case, timing: Timing, ceiling: Ceilings) -> dict[str, float | str]:
    """The percentage of the roofline: the least time that the limits allow, divided by the time
    taken.
    """
    return {
        "op": case.op,
        "size": case.size,
        "median_s": timing.median,
        "spread": timing.spread,
        "gflops": case.flops / timing.median / 1e9,
        "gbs": case.bytes / timing.median / 1e9,
        "roofline_percent": 100 * ceiling.least_seconds(case.flops, case.bytes) / timing.median,
    }


def traffic(backend: Backend, work: Work) -> dict[str, float | str]:
    """What one call does on the device's queue. Empty if the device has no queue."""
    before = backend.counts()
    work()
    calls = [(count, before.get(name)) for name, count in backend.counts().items()]
    found: dict[str, float | str] = {
        key: sum(getattr(now, key) - (getattr(old, key) if old else 0) for now, old in calls) for key in TRAFFIC
    }
    return found if found["submissions"] else {}


TRAFFIC = ("submissions", "dispatches", "barriers", "bytes_up", "bytes_down")
COLUMNS: tuple[tuple[str, Callable[[dict[str, float | str]], str]], ...] = (
    ("operation", lambda r: str(r["op"])),
    ("size", lambda r: str(r["size"])),
    ("median ms", lambda r: f"{1e3 * float(r['median_s']):.3f}"),
    ("spread", lambda r: f"{float(r['spread']):.0%}"),
    ("GFLOP/s", lambda r: f"{float(r['gflops']):.1f}"),
    ("GB/s", lambda r: f"{float(r['gbs']):.1f}"),
    ("% of roofline", lambda r: f"{float(r['roofline_percent']):.1f}"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__)
    parser.add_argument("--device", default="cpu", help="as for the commands: cpu, cuda, vulkan, vulkan:1, ...")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds; medians are reported")
    parser.add_argument("--large", action="store_true", help="also top-k over 150,000 and 1,000,000 points (6 GB)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; only tests that it runs")
    options = parser.parse_args(argv)
    backend = select(options.device)
    where = facts(backend, "bench.ops", argv)
    introduce(where)
    of, ceiling = sizes(backend, quick=options.quick), ceilings(backend, quick=options.quick)
    print(f"ceilings: {ceiling}", flush=True)
    result = {"device": where, "sizes": of.name, "ceilings": asdict(ceiling)}
    if backend.name == "vulkan" and torch.cuda.is_available():  # the same GPU through CUDA
        cuda = of_torch("cuda", quick=options.quick)
        result["torch_cuda_ceilings"] = asdict(cuda)
        print(f"limits of the same GPU by torch: {cuda}", flush=True)
    results = []
    for part in (sphere(backend, of), topk(backend, of, large=options.large), chains(backend, of)):
        for case in part:
            timing = interleaved({"this": case.work}, options.repeats)["this"]
            results.append({**row(case, timing, ceiling), **traffic(backend, case.work)})
    print(table([[title for title, _ in COLUMNS], *([cell(r) for _, cell in COLUMNS] for r in results)]))
    counted = [r for r in results if "submissions" in r]
    if counted:
        keys = ("op", "size", *TRAFFIC)
        print(table([["operation", "size per call", *keys[2:]], *([f"{r[key]}" for key in keys] for r in counted)]))
    write(options.json, {**result, "operations": results})


if __name__ == "__main__":
    main()
