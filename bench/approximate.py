"""`python -m bench.approximate`: recall and speed of approximate search, compared with exact top-k.

Points and queries lie around N / 200 random directions, with a cosine of .7 to their direction, so
the store has structure. Uniform points have none, and no index of this kind helps with them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import Work, facts, interleaved, introduce, table, unit, write
from ebmvk.engine import select
from ebmvk.engine.approximate import ApproximateIndex, recall

PER_CLUSTER = 200
"""Points around one direction; their cosine with it is .7, because the noise is as long."""


def clustered(n: int, d: int, clusters: int, seed: int) -> Tensor:
    """Unit rows; the directions don't depend on `seed`."""
    centres, x = unit(clusters, d, 0), unit(n, d, seed)
    of = torch.randint(clusters, (n,), generator=torch.Generator().manual_seed(seed))
    for part, own in zip(torch.split(x, 1 << 16), torch.split(of, 1 << 16), strict=True):
        part.add_(centres[own])
        part.div_(part.norm(dim=1, keepdim=True))
    return x


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.approximate", description=__doc__)
    parser.add_argument("--points", type=int, default=150_000, help="number of points, N")
    parser.add_argument("--dimension", type=int, default=640, help="dimension, d")
    parser.add_argument("--queries", type=int, default=1024, help="number of queries, B")
    parser.add_argument("--k", type=int, default=64, help="number of neighbours to find")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds; medians are reported")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    n, d, k = options.points, options.dimension, options.k
    backend = select("cpu")
    where = facts(backend, "bench.approximate", argv)
    introduce(where)
    clusters = max(1, n // PER_CLUSTER)
    rows, queries = clustered(n, d, clusters, 1), clustered(options.queries, d, clusters, 2)
    start = time.perf_counter()
    index = ApproximateIndex(rows)
    built = time.perf_counter() - start
    points = backend.points(rows)
    del rows
    print(f"{n:,} x {d} in {index.lists} lists, built in {built:.1f} s", flush=True)
    probes = [p for p in (1, 4, 16, 64, 256) if p < index.lists]
    works: dict[str, Work] = {"exact": partial(backend.topk, queries, points, k)}
    works.update({str(p): partial(index.search, queries, k, probes=p) for p in probes})
    timings = interleaved(works, options.repeats)
    exact = backend.topk(queries, points, k)
    results = [
        {
            "probes": p,
            "recall": recall(index.search(queries, k, probes=p), exact),
            "seconds": timings[str(p)].per(1),
            "times_as_fast_as_exact": timings["exact"].median / timings[str(p)].median,
        }
        for p in probes
    ]
    head = ["lists looked into", f"recall@{k}", "ms", "times as fast as exact"]
    body = [
        [str(p), f"{r['recall']:.4f}", f"{1e3 * timings[str(p)].median:.1f}", f"{r['times_as_fast_as_exact']:.2f}"]
        for p, r in zip(probes, results, strict=True)
    ]
    print(table([head, *body]))
    print(f"exact, for {options.queries} queries: {1e3 * timings['exact'].median:.1f} ms")
    size = {"n": n, "d": d, "b": options.queries, "k": k, "lists": index.lists}
    write(
        options.json,
        {"device": where, **size, "build_s": built, "exact": timings["exact"].per(1), "approximate": results},
    )


if __name__ == "__main__":
    main()
