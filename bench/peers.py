"""`python -m bench.peers`: the engine compared with other libraries on the same work, on all cores.

Ratios are the peer's seconds per unit of work over ours: above 1 means that the engine is faster.
Peers on CUDA keep arguments and results on the device; ours come from the host and return to it in
every call.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import torch_chains
from bench.measure import Sizes, Work, chain_problem, facts, interleaved, introduce, sizes, table, unit, write
from ebmvk.engine import Backend, select

PEER_STEPS = 20
"""The number of steps that peers run: few, because peers are slow. Their time per step is the
same."""

LENGTHS = (1, 10, 200)
"""Numbers of steps of a run, to separate the gathering of candidates from the steps."""

Record = dict[str, Any]


class Peers:
    """Works to be timed side by side.

    A work that isn't installed, or fails when it is made, is skipped; the reason is kept.
    """

    def __init__(self, ours: Work, units: int) -> None:
        self.works: dict[str, Work] = {"ours": ours}
        self.units = {"ours": units}
        self.missing: dict[str, str] = {}

    def add(self, name: str, make: Callable[[], Work], units: int) -> None:
        try:
            self.works[name] = make()
        except Exception as error:  # noqa: BLE001  # other libraries raise anything
            self.missing[name] = f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}"
        self.units[name] = units

    def seconds(self, repeats: int) -> Record:
        timings = interleaved(self.works, repeats)
        return {name: timing.per(self.units[name]) for name, timing in timings.items()}


def topk(backend: Backend, of: Sizes, repeats: int, cuda: str | None) -> Record:
    """Exact top-k of all points for a batch of queries."""
    rows, queries = unit(of.n, of.d, 1), unit(of.b, of.d, 2)
    points = backend.points(rows)
    peers = Peers(lambda: backend.topk(queries, points, of.k), 1)
    peers.add("faiss", lambda: faiss_topk(rows, queries, of.k), 1)
    if cuda:
        peers.add("torch_cuda", lambda: torch_topk(rows, queries, of.k, cuda), 1)
    result: Record = {"seconds": peers.seconds(repeats), "missing": peers.missing}
    if "faiss" in peers.works:
        result.update(agreement(backend.topk(queries, points, of.k).ids.cpu(), peers.works["faiss"](), queries, rows))
    return result


def faiss_topk(rows: Tensor, queries: Tensor, k: int) -> Callable[[], Tensor]:
    """faiss's IndexFlatIP: ids (B, k)."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    return lambda: torch.as_tensor(index.search(queries.numpy(), k)[1])


def torch_topk(rows: Tensor, queries: Tensor, k: int, device: str) -> Callable[[], Tensor]:
    """A float32 product (TF32 off) and torch.topk: ids (B, k), left on the device."""
    torch.set_float32_matmul_precision("highest")
    there, asked = rows.to(device), queries.to(device)
    return lambda: torch.topk(asked @ there.T, k).indices


def agreement(ids: Tensor, found: Any, queries: Tensor, rows: Tensor) -> dict[str, float]:
    """Checks ids. Float32 sums may order ties differently; such ids must have the same scores."""
    truth = queries.double() @ rows.double().T
    gap = float((truth.gather(1, ids) - truth.gather(1, found)).abs().max())
    if gap > 1e-6:
        raise AssertionError(f"topk and FAISS disagree by {gap:g}")
    return {"same_ids": float((ids == found).double().mean()), "largest_score_difference": gap}


def langevin(backend: Backend, of: Sizes, repeats: int, cuda: str | None) -> Record:
    """Seconds per chain-step of each sampler."""
    rows, p = unit(of.n, of.d, 1), chain_problem(of.b, of.k, of.n, of.d)
    points = backend.points(rows)
    few, all_ = of.b * PEER_STEPS, of.b * of.steps
    peers = Peers(lambda: p.run(backend, points, of.steps), all_)
    peers.add("torch_regather", lambda: torch_chains.runner(p, rows, PEER_STEPS, regather=True), few)
    peers.add("torch_once", lambda: torch_chains.runner(p, rows, PEER_STEPS, regather=False), few)
    peers.add("torch_compile", lambda: torch_chains.compiled_runner(p, rows, PEER_STEPS), few)
    peers.add("torchebm", lambda: torch_chains.torchebm_runner(p, rows, PEER_STEPS), few)
    peers.add("torchebm_einsum", lambda: torch_chains.torchebm_runner(p, rows, PEER_STEPS, einsum=True), few)
    peers.add("torchebm_shared", lambda: torch_chains.torchebm_shared_runner(p, rows, PEER_STEPS), few)
    if cuda:
        for name, regather in (("torch_cuda_once", False), ("torch_cuda_regather", True)):
            make = partial(torch_chains.runner, p, rows, of.steps, regather=regather, device=cuda)
            peers.add(name, make, all_)
    return {"seconds": peers.seconds(repeats), "missing": peers.missing}


def chain_counts(backend: Backend, of: Sizes, repeats: int) -> Record:
    """Seconds per chain-step by number of chains, and seconds of runs of several lengths.

    The first has the same number of steps for each number of chains; the second shows the cost of
    gathering candidates.
    """
    whole = chain_problem(max(of.counts), of.k, of.n, of.d)
    points = backend.points(unit(of.n, of.d, 1))
    counts: dict[str, Work] = {
        str(chains): partial(whole.rows(chains).run, backend, points, of.steps) for chains in of.counts
    }
    batch = whole.rows(of.b) if of.b <= max(of.counts) else whole
    lengths: dict[str, Work] = {str(steps): partial(batch.run, backend, points, steps) for steps in LENGTHS}
    return {
        "steps": of.steps,
        "seconds_per_chain_step": {
            chains: timing.per(int(chains) * of.steps) for chains, timing in interleaved(counts, repeats).items()
        },
        "run_chains": len(batch.x),
        "seconds_of_run": {steps: timing.per(1) for steps, timing in interleaved(lengths, repeats).items()},
    }


def topk_over_points(backend: Backend, of: Sizes, repeats: int) -> list[Record]:
    """Seconds of a top-k by number of points, and the bytes that the backend holds for each."""
    queries = unit(of.b, of.d, 2)
    results = []
    for n in (*of.stores, *of.large):
        # The backend copies the rows, so they are freed at once
        points = backend.points(unit(n, of.d, 1))
        work = partial(backend.topk, queries, points, of.k)
        timing = interleaved({"ours": work}, min(repeats, 3))["ours"]
        results.append(
            {
                "n": n,
                "b": of.b,
                "seconds": timing.per(1),
                "ns_per_pair": 1e9 * timing.median / (n * of.b),
                "bytes_per_point": points.nbytes / n,
            }
        )
    return results


def ratios(top: Record, chains: Record) -> dict[str, float]:
    def against(result: Record, *peers: str) -> float | None:
        times = [result["seconds"][peer]["median"] for peer in peers if peer in result["seconds"]]
        return min(times) / result["seconds"]["ours"]["median"] if times else None

    found = {
        "topk_vs_faiss": against(top, "faiss"),
        "langevin_vs_torch_regather": against(chains, "torch_regather"),
        "langevin_vs_torch_best": against(chains, "torch_regather", "torch_once", "torch_compile"),
        "langevin_vs_torchebm": against(chains, "torchebm"),
        "topk_vs_torch_cuda": against(top, "torch_cuda"),
        "langevin_vs_torch_cuda_once": against(chains, "torch_cuda_once"),
        "langevin_vs_torch_cuda_regather": against(chains, "torch_cuda_regather"),
    }
    return {name: value for name, value in found.items() if value is not None}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--device", default="cpu", help="as for the commands: cpu, cuda, vulkan, vulkan:1, ...")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds; medians are reported")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; only tests that it runs")
    options = parser.parse_args(argv)
    start = time.monotonic()
    backend = select(options.device)
    where = facts(backend, "bench.peers", argv)
    introduce(where)
    of, repeats = sizes(backend, quick=options.quick), options.repeats
    cuda = "cuda" if torch.cuda.is_available() else None
    top = topk(backend, of, repeats, cuda)
    chains = langevin(backend, of, repeats, cuda)
    found = ratios(top, chains)
    print(table([["ratio", "peer / ours"], *([name, f"{value:.2f}"] for name, value in found.items())]))
    report_peers(of, top, chains)
    counts = chain_counts(backend, of, repeats)
    report_counts(counts)
    scaling = topk_over_points(backend, of, repeats)
    report_scaling(scaling)
    seconds = time.monotonic() - start
    print(f"{seconds:.0f} s in all")
    result = {"ratios": found, "device": where, "sizes": of.name, "topk": top, "langevin": chains}
    write(options.json, {**result, "chains": counts, "topk_over_points": scaling, "seconds_in_all": seconds})


def report_peers(of: Sizes, top: Record, chains: Record) -> None:
    for name, reason in {**top["missing"], **chains["missing"]}.items():
        print(f"without {name}: {reason}")
    same = f", ids as FAISS {top['same_ids']:.4%}" if "same_ids" in top else ""
    print(f"top-{of.k} of {of.n:,} x {of.d} for {of.b}: {1e3 * top['seconds']['ours']['median']:.1f} ms{same}")
    rate = 1 / chains["seconds"]["ours"]["median"]
    print(f"Langevin, {of.b} chains, {of.k} candidates, {of.steps} steps: {rate:,.0f} chain-steps/s")
    for name, words in {
        "torchebm_einsum": "with its energy written as an einsum",
        "torchebm_shared": "on one mixture shared by all chains, an easier problem",
    }.items():
        if other := chains["seconds"].get(name):
            print(f"TorchEBM {words}: {other['median'] / chains['seconds']['ours']['median']:.2f} times our time")


def report_counts(counts: Record) -> None:
    each = [f"{n}: {1e6 * s['median']:.2f}" for n, s in counts["seconds_per_chain_step"].items()]
    print(f"us per chain-step by number of chains, {counts['steps']} steps each: " + ", ".join(each))
    runs = [f"{n}: {1e3 * s['median']:.1f}" for n, s in counts["seconds_of_run"].items()]
    print(f"ms of a run of {counts['run_chains']} chains by number of steps: " + ", ".join(runs), flush=True)


def report_scaling(scaling: Sequence[Record]) -> None:
    head = ["points", "top-k ms", "ns per query x point", "bytes per point"]
    rows = [
        [f"{r['n']:,}", f"{1e3 * r['seconds']['median']:.1f}", f"{r['ns_per_pair']:.3f}", f"{r['bytes_per_point']:.0f}"]
        for r in scaling
    ]
    print(table([head, *rows]))


if __name__ == "__main__":
    main()
