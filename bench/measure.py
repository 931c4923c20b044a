"""Timing, device facts and problems that both benchmarks share."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine import Backend, Points, Schedule

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest minus smallest, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def interleaved(works: Mapping[str, Work], repeats: int) -> dict[str, Timing]:
    """Each work once per round, so that what else the machine does falls on all alike; one unmeasured round first."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def facts(backend: Backend) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": backend.device,
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def unit(rows: int, d: int, seed: int) -> Tensor:
    """Uniform unit rows: of all stores the one whose scores lie closest together."""
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
    rows_of_one: Tensor = x / x.norm(dim=1, keepdim=True)
    return rows_of_one


@dataclass(frozen=True)
class ChainProblem:
    """Chains in a mixture of K candidates each at one level; arguments of `Backend.langevin`."""

    x: Tensor
    v: Tensor
    ids: Tensor
    logw: Tensor
    kappa: Tensor
    log_background: Tensor

    def rows(self, count: int) -> ChainProblem:
        parts = (self.x, self.v, self.ids, self.logw, self.kappa, self.log_background)
        return ChainProblem(*(part[:count].contiguous() for part in parts))

    def run(self, backend: Backend, points: Points, steps: int, **more: Any) -> object:
        return backend.langevin(
            *(self.x, self.v, points, self.ids, self.logw, self.kappa, self.log_background, schedule(steps)),
            seed=1,
            **more,
        )


KAPPA, STEP_SIZE, GAMMA = 50.0, 0.005, 7.0
"""One level near where modes separate at d = 640 (model section 7): every candidate counts, none can be skipped."""


def schedule(steps: int) -> Schedule:
    one = torch.ones(1)
    return Schedule(one, torch.zeros(1), STEP_SIZE * one, GAMMA * one, (steps,))


def chain_problem(chains: int, k: int, n: int, d: int) -> ChainProblem:
    g = torch.Generator().manual_seed(3)
    x = unit(chains, d, 4)
    v = torch.randn(chains, d, generator=g)
    return ChainProblem(
        x=x,
        v=v - (v * x).sum(1, keepdim=True) * x,
        ids=torch.randint(0, n, (chains, k), generator=g),
        logw=torch.full((chains, k), -4.0),
        kappa=torch.full((chains, k), KAPPA),
        log_background=torch.full((chains,), -2.0),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
