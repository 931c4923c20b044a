"""`python -m bench.gradients`: what `energy_score_backward` costs with few and with many points.

Arguments and results are tensors on the device. The problems differ in the number of points N only:
`same` candidates are points below the smallest N, so that the touched rows are the same; `spread`
candidates are any points, so that more points mean more rows to write. `host` is `same` with arrays
on the host, whose gradient of the points is dense.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.measure import Work, chain_problem, facts, interleaved, introduce, table, unit, write
from ebmvk.engine import select
from ebmvk.engine.vulkan import Vulkan


def arguments(rows: int, k: int, d: int, below: int) -> list[Any]:
    """x, ids, logw, kappa, log_background, grad_energy, grad_score, with ids in [0, below)."""
    p = chain_problem(rows, k, below, d)
    return [p.x, p.ids, p.logw, p.kappa, p.log_background, torch.ones(rows), p.v]


def works(backend: Vulkan, rows: int, k: int, d: int, counts: Sequence[int]) -> dict[str, Work]:
    def work(n: int, below: int, *, on_device: bool) -> Work:
        points = backend.points(unit(n, d, 1))
        given = arguments(rows, k, d, below)
        if on_device:
            given = [backend.tensor(value) for value in given]
        x, *rest = given
        return lambda: backend.energy_score_backward(x, points, *rest)

    found: dict[str, Work] = {}
    for n in counts:
        found[f"same {n}"] = work(n, min(counts), on_device=True)
        found[f"spread {n}"] = work(n, n, on_device=True)
        found[f"host {n}"] = work(n, min(counts), on_device=False)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gradients", description=__doc__)
    parser.add_argument("--device", default="vulkan", help="vulkan, or vulkan:1, ...")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=20, help="measured rounds; medians are reported")
    parser.add_argument("--rows", type=int, default=64, help="states, B")
    parser.add_argument("--candidates", type=int, default=64, help="candidates of each state, K")
    parser.add_argument("--dimension", type=int, default=640, help="of states and points, d")
    parser.add_argument("--points", type=int, nargs="+", default=[1000, 50_000], help="numbers of points, N")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; only tests that it runs")
    options = parser.parse_args(argv)
    backend = select(options.device)
    if not isinstance(backend, Vulkan):
        parser.error(f"--device {options.device}: only a Vulkan device keeps tensors; use --device vulkan")
    rows, k, d, counts = options.rows, options.candidates, options.dimension, sorted(options.points)
    if options.quick:
        rows, k, d, counts = 4, 8, 16, [30, 200]
    where = facts(backend, "bench.gradients", argv)
    introduce(where)
    timings = interleaved(works(backend, rows, k, d, counts), options.repeats)
    figures = {name: {"median_s": timing.median, "spread": timing.spread} for name, timing in timings.items()}
    ratios = {
        kind: timings[f"{kind} {counts[-1]}"].median / timings[f"{kind} {counts[0]}"].median
        for kind in ("same", "spread", "host")
    }
    lines = [("candidates", *(f"N {n}: ms" for n in counts), "ratio")]
    for kind, ratio in ratios.items():
        lines.append((kind, *(f"{1e3 * timings[f'{kind} {n}'].median:.3f}" for n in counts), f"{ratio:.2f}"))
    print(table(lines))
    shape = {"rows": rows, "candidates": k, "dimension": d, "points": counts}
    write(options.json, {"device": where, "shape": shape, "seconds": figures, "ratios": ratios})


if __name__ == "__main__":
    main()
