"""`python -m bench.peers`: the engine against what people use, on the same work, all cores, in one run.

Ratios are seconds of the peer per unit of work over ours: above 1 means that the engine is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import torch_chains
from bench.measure import ChainProblem, Timing, Work, chain_problem, facts, interleaved, table, unit, write
from ebmvk.engine import Backend, select

N, D, B, K, STEPS = 50_000, 640, 1024, 64, 200
PEER_STEPS = 10
"""The peers' cost per step does not depend on the number of steps, and they are slow."""


def topk(backend: Backend, repeats: int) -> dict[str, Any]:
    """Exact top-64 of 50,000 x 640 for 1,024 queries."""
    import faiss

    rows, queries = unit(N, D, 1), unit(B, D, 2)
    points, index = backend.points(rows), faiss.IndexFlatIP(D)
    index.add(rows.numpy())
    faiss.omp_set_num_threads(torch.get_num_threads())
    works: dict[str, Work] = {
        "ours": lambda: backend.topk(queries, points, K),
        "faiss": lambda: index.search(queries.numpy(), K),
    }
    if torch.cuda.is_available():
        there = rows.cuda(), queries.cuda()
        works["torch_cuda"] = lambda: torch.topk(there[1] @ there[0].T, K)
    timings = interleaved(works, repeats)
    ids, found = backend.topk(queries, points, K).ids.cpu(), torch.as_tensor(index.search(queries.numpy(), K)[1])
    truth = queries.double() @ rows.double().T
    # Two float32 sums may order a tie within rounding differently: such ids must stand for the same scores.
    gap = float((truth.gather(1, ids) - truth.gather(1, found)).abs().max())
    if gap > 1e-6:
        raise AssertionError(f"topk and FAISS disagree by {gap:g}")
    same = float((ids == found).double().mean())
    return {"seconds": _summary(timings, 1), "same_ids": same, "largest_score_difference": gap}


def langevin(backend: Backend, repeats: int) -> dict[str, Any]:
    """Seconds per chain-step, 1,024 chains with 64 candidates each; 200 steps ours, fewer of the peers."""
    rows, p = unit(N, D, 1), chain_problem(B, K, N, D)
    points = backend.points(rows)
    ours: Work = lambda: p.run(backend, points, STEPS)
    peers: dict[str, Work] = {
        "torch_regather": torch_chains.runner(p, rows, PEER_STEPS, regather=True),
        "torch_once": torch_chains.runner(p, rows, PEER_STEPS, regather=False),
    }
    missing: dict[str, str] = {}
    _add(peers, missing, "torch_compile", lambda: torch_chains.compiled_runner(p, rows, PEER_STEPS))
    _add(peers, missing, "torchebm", lambda: torch_chains.torchebm_runner(p, rows, PEER_STEPS))
    if torch.cuda.is_available():
        _add(peers, missing, "torch_cuda", lambda: torch_chains.runner(p, rows, STEPS, regather=False, device="cuda"))
    timings = interleaved({"ours": ours, **peers}, repeats)
    seconds = {
        name: _summary({name: timing}, B * (STEPS if name in ("ours", "torch_cuda") else PEER_STEPS))[name]
        for name, timing in timings.items()
    }
    return {"seconds": seconds, "missing": missing}


def _add(peers: dict[str, Work], missing: dict[str, str], name: str, make: Any) -> None:
    """A peer that is not installed, or whose compiler fails, is named with the reason and left out."""
    try:
        peers[name] = make()
    except Exception as error:  # noqa: BLE001  # whatever another library raises
        missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def flatness(backend: Backend, repeats: int) -> dict[str, float]:
    """Seconds per chain-step over the number of chains."""
    rows, whole = unit(N, D, 1), chain_problem(4096, K, N, D)
    points = backend.points(rows)
    parts: dict[int, ChainProblem] = {chains: whole.rows(chains) for chains in (64, 256, 1024, 4096)}
    steps = {chains: max(10, 20_480 // chains) for chains in parts}
    works: dict[str, Work] = {
        str(chains): lambda part=part, count=steps[chains]: part.run(backend, points, count)  # type: ignore[misc]
        for chains, part in parts.items()
    }
    timings = interleaved(works, repeats)
    return {name: timing.median / (int(name) * steps[int(name)]) for name, timing in timings.items()}


def _summary(timings: dict[str, Timing], units: int) -> dict[str, dict[str, float]]:
    return {name: {"median": t.median / units, "spread": t.spread} for name, t in timings.items()}


def ratios(top: dict[str, Any], chains: dict[str, Any]) -> dict[str, float]:
    def against(result: dict[str, Any], *peers: str) -> float | None:
        times = [result["seconds"][peer]["median"] for peer in peers if peer in result["seconds"]]
        return min(times) / result["seconds"]["ours"]["median"] if times else None

    found = {
        "topk_vs_faiss": against(top, "faiss"),
        "topk_vs_torch_cuda": against(top, "torch_cuda"),
        "langevin_vs_torch_regather": against(chains, "torch_regather"),
        "langevin_vs_torch_best": against(chains, "torch_regather", "torch_once", "torch_compile"),
        "langevin_vs_torchebm": against(chains, "torchebm"),
        "langevin_vs_torch_cuda": against(chains, "torch_cuda"),
    }
    return {name: value for name, value in found.items() if value is not None}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--device", default="cpu", help="as of the commands: cpu, vulkan, vulkan:1, ...")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds; medians are reported")
    options = parser.parse_args(argv)
    backend = select(options.device)
    where = facts(backend)
    print(f"{where['device']}; {where['processor']}, load {where['load_average']:.1f}", flush=True)
    top = topk(backend, options.repeats)
    chains = langevin(backend, options.repeats)
    flat = flatness(backend, options.repeats)
    found = ratios(top, chains)
    print(table([["ratio", "peer / ours"], *([name, f"{value:.2f}"] for name, value in found.items())]))
    for name, reason in chains["missing"].items():
        print(f"without {name}: {reason}")
    rate = 1 / chains["seconds"]["ours"]["median"]
    print(f"top-k {1e3 * top['seconds']['ours']['median']:.0f} ms, ids as FAISS {top['same_ids']:.4%}")
    print(f"Langevin {rate:,.0f} chain-steps/s; per chain-step over 64 .. 4096 chains, in us: " + _microseconds(flat))
    write(options.json, {"ratios": found, "device": where, "topk": top, "langevin": chains, "chain_step": flat})


def _microseconds(flat: dict[str, float]) -> str:
    return ", ".join(f"{chains}: {1e6 * seconds:.2f}" for chains, seconds in flat.items())


if __name__ == "__main__":
    main()
