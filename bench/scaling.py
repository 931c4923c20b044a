"""Predicts how training scales over processes: what a step communicates, and what time is left.

    python -m bench.scaling --size tiny                                     10 gigabit Ethernet
    python -m bench.scaling --size base --bandwidth 25 --latency 5e-6       a network of 200 gigabit

Nothing is trained or measured here: sizes are counted, and times follow from them. With N
processes, and links of `bandwidth` bytes per second and `latency` seconds per message, a rank

- adds up m bytes of gradients and of the sample of states in a ring: it sends 2 (N-1)/N m bytes in
  2 (N-1) messages per bucket (Patarasuk and Yuan 2009), in 2 (N-1) (latency + m / (N bandwidth))
  seconds;
- receives one message of the first rank per step, through a tree of ceil(log2 N) levels;
- in a look-up among n splats receives (n/N) d float32 rows and 2 n/N weights, receives q queries of
  d numbers, and sends k scores and ids for each; the first rank serves all others one by one.

Work is the time of a step with one process. A share `--serial` of it is done by every rank alike
(the optimiser) or by the first rank alone (consolidation, records); the rest is divided. On one
core of a Xeon, in bfloat16, a step of `tiny` takes 1.0 s, and a tenth of it is the optimiser. Weak
scaling: each rank keeps the size's batch. Strong scaling: all ranks share one batch, as long as
each has a window of it. Communication doesn't overlap with computation. The counts of experts and
PHI, a few numbers per layer, are neglected.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.measure import command_line, commit, write
from ebmvk.config.schema import SIZES, Config, replace
from ebmvk.config.sizes import PRESETS
from ebmvk.memory.while_training import MOST_STATES
from ebmvk.model.build import build_model
from ebmvk.ranks import BUCKET
from ebmvk.splats.soc import FOLD_SHARE, NEAR

NODES = (1, 2, 4, 8, 16, 32, 64)
MESSAGE = 1024  # bytes of a message from the first rank
# Per consolidation: assignment, background before and after, candidates, partners to merge with
LOOKUPS = 5


@dataclass(frozen=True)
class Link:
    """A link between any two ranks: bytes per second one way, seconds per message."""

    bandwidth: float
    latency: float

    def ring(self, size: float, buckets: int, n: int) -> float:
        """Seconds for n ranks to add up `size` bytes."""
        return 2 * (n - 1) * (buckets * self.latency + size / (n * self.bandwidth))

    def tree(self, size: float, n: int) -> float:
        """Seconds until n ranks have `size` bytes from the first one."""
        return math.ceil(math.log2(n)) * (self.latency + size / self.bandwidth)

    def one_by_one(self, size: float, n: int) -> float:
        """Seconds for the first rank to exchange `size` bytes with each other rank."""
        return (n - 1) * (self.latency + size / self.bandwidth)


@dataclass(frozen=True)
class Load:
    """The load of a step.

    windows: in the batch. gradients, sample: bytes to add up. splats: in the store, with `d`
    numbers each. queries: states looked up at a consolidation. interval: steps between
    consolidations.
    """

    windows: int
    parameters: int
    gradients: int
    sample: int
    d: int
    splats: int
    queries: int
    interval: int

    @classmethod
    def of(cls, config: Config) -> Load:
        with torch.device("meta"):
            model = build_model(config.model, config.data.vocab_size)
        splats, d = config.splats, config.model.latent_dim
        parameters = sum(value.numel() for value in model.parameters() if value.requires_grad)
        rows = min(MOST_STATES, splats.soc_history // splats.soc_check_interval)
        seen = min(splats.soc_history, rows * splats.soc_check_interval) + 2 * splats.soc_history // FOLD_SHARE
        return cls(
            config.training.batch_size,
            parameters, 4 * parameters, 4 * rows * (d + 1), d, splats.curriculum_target_splats, seen,
            splats.soc_check_interval,
        )  # fmt: skip


def predicted(load: Load, link: Link, step: float, serial: float, n: int) -> dict[str, float | None]:
    """For n processes: bytes that a rank sends or receives per step, seconds, share of work.

    step: seconds of a step with one process. serial: the share of it that can't be divided.
    """
    m = load.gradients + load.sample
    buckets = 1 + -(-load.parameters // BUCKET)  # plus one for the losses, which are sent first
    rows, weights = 4 * load.splats * load.d / n, 8 * load.splats / n
    asked, found = 4 * load.queries * load.d / LOOKUPS, 12 * load.queries * NEAR / LOOKUPS
    each = rows + weights + asked + found
    seconds = link.ring(m, buckets, n) + link.tree(MESSAGE, n)
    looking = LOOKUPS * (link.tree(asked, n) + link.one_by_one(rows + weights, n) + link.one_by_one(found, n))
    seconds += looking / load.interval
    some = n > 1
    return {
        "processes": n,
        "reduced_bytes": 2 * (n - 1) / n * m,
        "lookup_bytes": some * LOOKUPS * each / load.interval,
        "store_bytes": rows,
        "communication_s": some * seconds,
        "weak": step / (step + some * seconds),
        "strong": step / n / (step * (serial + (1 - serial) / n) + some * seconds) if n <= load.windows else None,
    }


def printed(rows: Sequence[dict[str, Any]]) -> str:
    head = "processes  added up    look-ups    store of a rank  communication    weak  strong"
    lines = (
        f"{row['processes']:>9}  {row['reduced_bytes'] / 1e6:7.2f} MB  {row['lookup_bytes'] / 1e6:7.3f} MB  "
        f"{row['store_bytes'] / 1e6:12.2f} MB  {1000 * row['communication_s']:10.2f} ms  "
        f"{row['weak']:6.1%}  {'-' if row['strong'] is None else format(row['strong'], '.1%'):>6}"
        for row in rows
    )
    return "\n".join((head, *lines))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--model", default="ebm", help="ebm, plain, tinygpt, minillm or infinito")
    parser.add_argument("--bandwidth", type=float, default=1.25, help="GB per second of a link")
    parser.add_argument("--latency", type=float, default=50e-6, help="seconds per message")
    parser.add_argument(
        "--step", type=float, default=1.0, help="seconds of a step with one process; 1.0: tiny on one core"
    )
    parser.add_argument("--serial", type=float, default=0.1, help="the share of a step that can't be divided")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    load = Load.of(replace(Config(), {**PRESETS[options.size], "size": options.size, "model": options.model}))
    link = Link(options.bandwidth * 1e9, options.latency)
    rows = [predicted(load, link, options.step, options.serial, n) for n in NODES]
    print(
        f"{options.size} {options.model}: {load.parameters:,} parameters, {load.splats:,} splats of {load.d}; links of "
        f"{options.bandwidth:g} GB/s and {1e6 * options.latency:g} us; a step of {options.step:g} s, "
        f"{options.serial:.0%} of it serial"
    )
    print(printed(rows))
    command = command_line("bench.scaling", argv)
    found: dict[str, Any] = {"commit": commit(), "command": command, "load": asdict(load), "predicted": rows}
    write(options.json, found)


if __name__ == "__main__":
    main()
