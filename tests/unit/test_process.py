"""How a process's memory is run."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys

import pytest

from ebmvk import process

PAGES = (1 << 27) // resource.getpagesize()
AGAIN = """
import resource
from ebmvk import process
process.tune()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = b"1" * (1 << 27)
    del array
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_pages_of_a_freed_array_serve_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    found = subprocess.run([sys.executable, "-c", AGAIN], stdout=subprocess.PIPE, check=True).stdout
    assert int(found) < PAGES / 10


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_sets_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(process, "keep_freed_memory", lambda: pytest.fail("malloc was set"))
    monkeypatch.setenv(name, "")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    process.tune()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
