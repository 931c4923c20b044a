"""`python -m bench.ops`: every operation over sizes, against the device's own measured ceilings.

The ceilings of the CPU and of CUDA are torch's: a large copy and a large float32 matrix product. Work and bytes are the
least an operation needs: every input read once, every output written once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.measure import Timing, Work, chain_problem, facts, interleaved, table, unit, write
from ebmvk.engine import Backend, select


@dataclass(frozen=True)
class Case:
    """One operation at one size, with its floating-point operations and least bytes."""

    op: str
    size: str
    flops: float
    bytes: float
    work: Work


def ceilings(repeats: int) -> dict[str, float]:
    """GFLOP/s of a float32 matrix product and GB/s of a copy, read and write counted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, big = torch.randn(2048, 2048, device=device), torch.randn(1 << 26, device=device)
    to = torch.empty_like(big)
    timings = interleaved({"product": lambda: a @ a, "copy": lambda: to.copy_(big)}, repeats)
    return {
        "gflops": 2 * 2048**3 / timings["product"].median / 1e9,
        "gbs": 8 * (1 << 26) / timings["copy"].median / 1e9,
    }


def sphere(backend: Backend) -> Iterator[Case]:
    for b, d in ((1024, 640), (16_384, 256)):
        x, y = unit(b, d, 1), unit(b, d, 2)
        size, row = f"B {b}, d {d}", 4 * b * d
        yield Case("projx", size, 3 * b * d, 2 * row, lambda x=x: backend.projx(x))  # type: ignore[misc]
        yield Case("proju", size, 4 * b * d, 3 * row, lambda x=x, y=y: backend.proju(x, y))  # type: ignore[misc]
        yield Case("expmap", size, 5 * b * d, 3 * row, lambda x=x, y=y: backend.expmap(x, y))  # type: ignore[misc]
        yield Case("logmap", size, 9 * b * d, 3 * row, lambda x=x, y=y: backend.logmap(x, y))  # type: ignore[misc]
        yield Case("dist", size, 6 * b * d, 2 * row, lambda x=x, y=y: backend.dist(x, y))  # type: ignore[misc]
        transp = lambda x=x, y=y: backend.transp(x, y, x)
        yield Case("transp", size, 8 * b * d, 4 * row, transp)


def topk(backend: Backend, *, large: bool) -> Iterator[Case]:
    d, k = 640, 64
    for n in (5_000, 50_000, *((150_000, 1_000_000) if large else ())):
        points = backend.points(unit(n, d, 1))
        for b in (1, 64, 1024):
            queries = unit(b, d, 2)
            work = lambda q=queries, p=points: backend.topk(q, p, k)
            yield Case("topk", f"B {b}, N {n}, d {d}, k {k}", 2.0 * b * n * d, 4.0 * (n * d + b * d), work)


def chains(backend: Backend) -> Iterator[Case]:
    n, d, k = 50_000, 640, 64
    points = backend.points(unit(n, d, 1))
    for b, steps in ((64, 100), (1024, 20)):
        p = chain_problem(b, k, n, d)
        lists = (p.ids, p.logw, p.kappa, p.log_background)
        one, gathered = 4.0 * b * k * d, 4.0 * b * k * d
        size = f"B {b}, K {k}, d {d}"
        grads = torch.ones(b), p.v
        yield Case("energy_score", size, one, gathered, lambda p=p, a=lists: backend.energy_score(p.x, points, *a))  # type: ignore[misc]
        backward = lambda p=p, a=lists, g=grads: backend.energy_score_backward(p.x, points, *a, *g)
        yield Case("energy_score_backward", size, 3.5 * one, gathered + 4.0 * n * d, backward)
        baoab = lambda p=p, s=steps: p.run(backend, points, s)
        yield Case("langevin gbaoab", f"{size}, {steps} steps", steps * one, gathered, baoab)
        ghmc = lambda p=p, s=steps // 4: p.run(backend, points, s, scheme="ghmc")
        yield Case("langevin ghmc", f"{size}, {steps // 4} x 4 leapfrogs", steps * one, gathered, ghmc)
        sample = lambda p=p, b=b: backend.vmf_sample(p.x, torch.full((b,), 300.0), seed=1)
        yield Case("vmf_sample", f"B {b}, d {d}", 5.0 * b * d, 8.0 * b * d, sample)
        shares, tokens = p.logw.softmax(1), torch.arange(b) % 100
        add = lambda p=p, r=shares, t=tokens: backend.accumulate(p.x, p.ids, r, t, n)
        yield Case("accumulate", f"{size}, n {n}", 2.0 * b * k * d, 4.0 * (b * d + n * d), add)


def row(case: Case, timing: Timing, ceiling: dict[str, float]) -> dict[str, float | str]:
    """Per cent of the roofline: the least time that the ceilings allow over the time taken."""
    gflops, gbs = case.flops / timing.median / 1e9, case.bytes / timing.median / 1e9
    percent = 100 * max(gflops / ceiling["gflops"], gbs / ceiling["gbs"])
    return {
        "op": case.op,
        "size": case.size,
        "median_s": timing.median,
        "spread": timing.spread,
        "gflops": gflops,
        "gbs": gbs,
        "roofline_percent": percent,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__)
    parser.add_argument("--device", default="cpu", help="as of the commands: cpu, vulkan, vulkan:1, ...")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds; medians are reported")
    parser.add_argument("--large", action="store_true", help="top-k over 150,000 and 1,000,000 points too (8 GB)")
    options = parser.parse_args(argv)
    backend = select(options.device)
    where, ceiling = facts(backend), ceilings(options.repeats)
    print(f"{where['device']}; {where['processor']}, load {where['load_average']:.1f}")
    print(f"ceilings: {ceiling['gflops']:.0f} GFLOP/s, {ceiling['gbs']:.1f} GB/s", flush=True)
    results = []
    for part in (sphere(backend), topk(backend, large=options.large), chains(backend)):
        for case in part:
            timing = interleaved({"this": case.work}, options.repeats)["this"]
            results.append(row(case, timing, ceiling))
    head = ["operation", "size", "median ms", "spread", "GFLOP/s", "GB/s", "% of roofline"]
    body = [
        [str(r["op"]), str(r["size"]), f"{1e3 * float(r['median_s']):.3f}", f"{float(r['spread']):.0%}"]
        + [f"{float(r[key]):.1f}" for key in ("gflops", "gbs", "roofline_percent")]
        for r in results
    ]
    print(table([head, *body]))
    write(options.json, {"device": where, "ceilings": ceiling, "operations": results})


if __name__ == "__main__":
    main()
