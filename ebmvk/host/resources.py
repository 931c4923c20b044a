"""Memory and disk space that this process uses, and how much of them is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import torch

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_PROC = Path("/proc/self")
_CGROUP = Path("/sys/fs/cgroup")


def memory(device: torch.device) -> dict[str, int]:
    """Bytes in use by the process: `resident` (if the system tells) and `peak`; on a CUDA device
    also those of torch's tensors, `device` and `device_peak`.

    Vulkan buffers aren't counted, unless the Vulkan device is a CPU: then they are resident.
    """
    found = {"peak": _peak()}
    with contextlib.suppress(OSError):  # only Linux has /proc
        found["resident"] = int((_PROC / "statm").read_text(encoding="ascii").split()[1]) * _PAGE
        found["peak"] = max(found.values())  # the kernel updates its peak a little later
    if device.type == "cuda":
        found |= {
            "device": torch.cuda.memory_allocated(device),
            "device_peak": torch.cuda.max_memory_allocated(device),
        }
    return found


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in (_PROC / "status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0


def reset_peak(device: torch.device) -> None:
    """Reset the peaks to the memory in use now, if the system can do that."""
    with contextlib.suppress(OSError):
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def step_peak(device: torch.device) -> int:
    """Peak bytes of the memory in which training keeps its tensors: that of the CUDA device, or
    else of the process.
    """
    found = memory(device)
    return found.get("device_peak", found["peak"])


def obtainable(device: torch.device) -> int | None:
    """Bytes that this process can use, including those in use; None if the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = [value for value in (_system_free(), _group_free()) if value is not None]
    return min(free) + memory(device).get("resident", 0) if free else None


def _system_free() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group_free() -> int | None:
    """Bytes that the limit of a container (cgroup 2) leaves; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, limit - used + int(counts.get("inactive_file", 0)))  # cached files can be dropped
    return None


def disk_free(path: Path) -> int:
    """Bytes free where `path` is or will be."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The nearest folder at or above `path` that exists."""
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.is_dir())


def amount(size: float) -> str:
    """A number of bytes for people to read, such as '3.2 MB'."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
