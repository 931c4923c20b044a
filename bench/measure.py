"""Shared by the benchmarks: timing, device facts, sizes and problems."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmvk.engine import Backend, Points, Schedule
from ebmvk.engine.vulkan import Vulkan
from ebmvk.engine.vulkan_devices import survey

Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """The seconds of each repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The largest minus the smallest time, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def per(self, units: int) -> dict[str, float]:
        """Seconds per unit of work, as stored in JSON."""
        return {"median": self.median / units, "spread": self.spread}


def interleaved(works: Mapping[str, Work], repeats: int) -> dict[str, Timing]:
    """Times each work once per round, so that other load on the machine affects all alike.

    One unmeasured round comes first. Work that leaves something running on a CUDA device is timed
    to its end.
    """
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


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure.

    d: dimension. k: neighbours or candidates. stores: numbers of points N; n: the number of points
    for chains and peers. large: more values of N. batches: numbers of queries B. sphere: (B, d).
    chains, counts: numbers of chains; `counts` show if the time per chain depends on their number.
    steps: of a run.
    """

    name: str
    d: int
    k: int
    n: int
    stores: tuple[int, ...]
    large: tuple[int, ...]
    batches: tuple[int, ...]
    sphere: tuple[tuple[int, int], ...]
    chains: tuple[int, ...]
    counts: tuple[int, ...]
    steps: int

    @property
    def b(self) -> int:
        return self.batches[-1]


FULL = Sizes(
    name="full",
    d=640,
    k=64,
    n=50_000,
    stores=(5_000, 50_000),
    large=(150_000, 1_000_000),
    batches=(1, 64, 1024),
    sphere=((1024, 640), (16_384, 256)),
    chains=(64, 1024),
    counts=(64, 256, 1024, 4096),
    steps=200,
)
SLOW = Sizes(
    name="slow",
    d=640,
    k=64,
    n=5_000,
    stores=(1_000, 5_000),
    large=(10_000,),
    batches=(1, 64),
    sphere=((256, 640),),
    chains=(16, 64),
    counts=(16, 64),
    steps=20,
)
QUICK = Sizes(
    name="quick",
    d=64,
    k=8,
    n=500,
    stores=(300, 500),
    large=(1000,),
    batches=(1, 8),
    sphere=((8, 64),),
    chains=(4,),
    counts=(4, 8),
    steps=4,
)


def sizes(backend: Backend, *, quick: bool) -> Sizes:
    """Chooses sizes for the device; prints which and why."""
    if quick:
        size, why = QUICK, "--quick: only to see that it runs"
    elif isinstance(backend, Vulkan) and backend.capabilities.type == "cpu":
        size, why = SLOW, "the Vulkan device is a CPU in disguise, whose speed means nothing"
    else:
        size, why = FULL, "those of the stated physical limits"
    print(f"sizes: {size.name} ({why})", flush=True)
    return size


def facts(backend: Backend, module: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """The facts about the figures: machine, versions and command (`module` with `argv`)."""
    return {
        "device": backend.device,
        "backend": backend.name,
        **_backend_facts(backend),
        "processor": _cpuinfo("model name") or platform.processor(),
        "vector_extensions": [
            flag for flag in _cpuinfo("flags").split() if flag.startswith(("avx", "amx", "fma")) or "vnni" in flag
        ],
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        # If it isn't set, torch's threads spin between operations, which disturbs other processes.
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
        "cuda": _cuda_facts(),
        "command": command_line(module, argv),
        "commit": commit(),
    }


def _backend_facts(backend: Backend) -> dict[str, Any]:
    if isinstance(backend, Vulkan):
        found = survey()
        return {"vulkan": {"loader": found.loader, **asdict(found.devices[backend.capabilities.index])}}
    if backend.name == "cpu":
        from ebmvk import _cpu

        return {"kernels": _cpu.target(), "threads": _cpu.threads()}
    return {}


def _cuda_facts() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "version": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _cpuinfo(key: str) -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def command_line(module: str, argv: Sequence[str] | None) -> str:
    """The command line that calls `module`'s main(argv)."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])


def commit() -> str | None:
    """The commit: EBMVK_COMMIT for a tree without history, else git's; `-dirty` if files differ."""
    if "EBMVK_COMMIT" in os.environ:
        return os.environ["EBMVK_COMMIT"]
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def introduce(where: Mapping[str, Any]) -> None:
    load = where["load_average"]
    print(f"{where['device']}; {where['processor']}" + (f", load {load:.1f}" if load is not None else ""), flush=True)


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def unit(rows: int, d: int, seed: int) -> Tensor:
    """Uniform unit rows, whose scores lie close together. They are made piece by piece, in
    place."""
    x, g = torch.empty(rows, d), torch.Generator().manual_seed(seed)
    for part in torch.split(x, 1 << 16):
        part.normal_(generator=g)
        part.div_(part.norm(dim=1, keepdim=True))
    return x


@dataclass(frozen=True)
class ChainProblem:
    """Chains, each in its own mixture of K candidates: arguments of `Backend.langevin`."""

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
"""One level near the separation of modes at d = 640 (model section 7); all candidates matter."""


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
