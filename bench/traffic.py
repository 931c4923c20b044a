"""`python -m bench.traffic`: what one call of each operation submits and copies on a Vulkan device.

Each operation is called with arrays on the host, and with tensors on the device. `sampler` is a
call of the Langevin sampler: queries and log probabilities in, tokens out, through the host or with
all chains on the device. No time is measured, so a slow device gives the same counts as a fast one.
Long plans aren't cut into several submissions here, because where they are cut depends on speed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.measure import ChainProblem, Work, chain_problem, facts, introduce, schedule, table, unit, write
from bench.ops import TRAFFIC, traffic
from ebmvk.config.schema import LangevinConfig
from ebmvk.engine import select
from ebmvk.engine.vulkan import Vulkan
from ebmvk.sampling import annealed
from ebmvk.sampling.interface import Options, TokenPoints, decoding_seed

UNSLICED = 1e6
"""Seconds of a slice: no call takes longer."""
WARM = 3
"""Calls before the counted one. They measure the kernels' speed, by which the work is divided."""

Place = Callable[[Any], Any]


@dataclass(frozen=True)
class Shape:
    """rows: B. candidates: K, as many as neighbours. dimension: d. points: N, as many as tokens."""

    rows: int
    candidates: int
    dimension: int
    points: int
    steps: int


FULL = Shape(rows=256, candidates=64, dimension=640, points=2000, steps=20)
QUICK = Shape(rows=8, candidates=8, dimension=16, points=60, steps=10)


def works(backend: Vulkan, of: Shape, place: Place) -> Iterator[tuple[str, Work]]:
    """(operation, a call of it) with arguments where `place` puts them."""
    p = chain_problem(of.rows, of.candidates, of.points, of.dimension)
    points, other = backend.points(unit(of.points, of.dimension, 1)), place(unit(of.rows, of.dimension, 2))
    x, v, ids, logw, kappa, rest = (place(getattr(p, name)) for name in ChainProblem.__dataclass_fields__)
    law, one = (ids, logw, kappa, rest), place(torch.ones(of.rows))
    concentration = torch.full((of.rows,), 300.0)  # on the host, which draws the angles
    shares, tokens = place(p.logw.softmax(1)), place(torch.arange(of.rows))
    yield "projx", lambda: backend.projx(x)
    yield "proju", lambda: backend.proju(x, v)
    yield "expmap", lambda: backend.expmap(x, v)
    yield "logmap", lambda: backend.logmap(x, other)
    yield "transp", lambda: backend.transp(x, other, v)
    yield "dist", lambda: backend.dist(x, other)
    yield "topk", lambda: backend.topk(x, points, of.candidates)
    yield "energy_score", lambda: backend.energy_score(x, points, *law)
    yield "energy_score_backward", lambda: backend.energy_score_backward(x, points, *law, one, v)
    yield "langevin", lambda: backend.langevin(x, v, points, *law, schedule(of.steps), seed=1)
    yield "vmf_sample", lambda: backend.vmf_sample(x, concentration, seed=1)
    yield "accumulate", lambda: backend.accumulate(x, ids, shares, tokens, of.points)


def sampler(backend: Vulkan, of: Shape, *, on_device: bool) -> Work:
    """A call of the sampler `langevin` for a model with as many tokens as points."""
    mu = unit(of.points, of.dimension, 1)
    space = TokenPoints(backend, mu, backend.points(mu), torch.zeros(of.points), None)
    log_p = (4 * torch.randn(of.rows, of.points, generator=torch.Generator().manual_seed(3))).log_softmax(1)
    query = unit(of.rows, of.dimension, 2)
    options = Options(LangevinConfig(knn_k=of.candidates, langevin_steps=of.steps), seed=1)

    def through_host() -> object:
        law = space.law(query, log_p, of.candidates)
        state = annealed.annealed_langevin(law, **annealed.from_settings(options))
        return law.decode(state.x, state.kappa, log_p, seed=decoding_seed(options))

    return (lambda: annealed.tokens(space, query, log_p, options)) if on_device else through_host


def measured(backend: Vulkan, of: Shape) -> list[dict[str, Any]]:
    rows = []
    for where in ("host", "device"):
        place: Place = backend.tensor if where == "device" else lambda value: value
        calls = [*works(backend, of, place), ("sampler", sampler(backend, of, on_device=where == "device"))]
        for name, work in calls:
            for _ in range(WARM):
                work()
            rows.append({"operation": name, "arguments": where, **traffic(backend, work)})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description=__doc__)
    parser.add_argument("--device", default="vulkan", help="vulkan, or vulkan:1, ...")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; only tests that it runs")
    options = parser.parse_args(argv)
    chosen = select(options.device)
    if not isinstance(chosen, Vulkan):
        parser.error(f"--device {options.device}: only a Vulkan device has submissions; use --device vulkan")
    backend = Vulkan(chosen.capabilities.index, options={"slice_seconds": UNSLICED})
    of = QUICK if options.quick else FULL
    where = facts(backend, "bench.traffic", argv)
    introduce(where)
    found = measured(backend, of)
    print(table([("operation", "arguments", *TRAFFIC), *(tuple(f"{cell}" for cell in row.values()) for row in found)]))
    write(options.json, {"device": where, "shape": vars(of), "calls": found})


if __name__ == "__main__":
    main()
