"""Settings of a process for threads and memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from ebmvk.host import process

HAS_GLIBC = hasattr(ctypes.CDLL(None), "mallopt")
# Peaks and page faults of a process that uses large arrays again and again.
AGAIN = """
import resource, ebmvk
size = 16 << 20
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first, second = bytearray(b"1") * size, bytearray(b"1") * size
    del first, second
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize() / (2 * size))
"""
PINNED = """
import ctypes, resource, ebmvk
malloc = ctypes.CDLL(None).malloc
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(10):
    large = b"1" * (48 << 20)
    del large
    malloc(100_000)  # is placed where the large array was, and stays
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (48 << 10))
"""
# Were torch's threads told to sleep soon? If torch is imported after ebmvk, and before it.
SPINS = "import ebmvk, os; print(os.environ['GOMP_SPINCOUNT'])"
TOO_LATE = """
import os, torch, ebmvk
from ebmvk.engine.device import open_device
before = len(os.listdir("/proc/self/task"))
open_device("reference"), open_device("reference")
print(len(os.listdir("/proc/self/task")) - before - (os.cpu_count() + 1))
"""


def _said(program: str, **more: str) -> str:
    names = ("MALLOC_", "GLIBC_TUNABLES", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, env=clean | more, text=True).stdout.strip()


@pytest.mark.skipif(not HAS_GLIBC, reason="the C library is not glibc")
def test_pages_of_a_freed_array_are_used_for_the_next_one() -> None:
    assert float(_said(AGAIN)) < 0.1


@pytest.mark.skipif(not HAS_GLIBC, reason="the C library is not glibc")
def test_a_small_array_behind_a_large_one_doesnt_keep_its_pages() -> None:
    assert float(_said(PINNED)) < 2  # of the large array's size


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(process, "keep_freed_memory", lambda: pytest.fail("malloc was set"))
    monkeypatch.setenv(name, "")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    process.tune()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_importing_ebmvk_first_lets_threads_spin_briefly() -> None:
    assert _said(SPINS) == process.SPINS
    assert _said(SPINS, GOMP_SPINCOUNT="7") == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_one_sleeping_team_lets_threads_spin_briefly_if_torch_was_imported_first() -> None:
    assert _said(TOO_LATE) == "0"
    assert int(_said(TOO_LATE, GOMP_SPINCOUNT="7")) < 0  # no team: the environment said what to do
