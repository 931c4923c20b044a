"""The CPU kernels' threads in a process that forks, can't start threads, or ends while they run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PRELUDE = """
import os, re, resource, sys, threading, time
import torch
from op_problems import schedule
from op_table import OPERATIONS, Shape, same_bits
from ebmvk import _cpu
from ebmvk.engine import select
torch.set_num_threads(1)
backend = select("cpu")
def run(): return {name: op.run(backend) for name, op in OPERATIONS.items()}
want = run()
def check(got): assert all(same_bits(got[name], want[name]) for name in want)
"""

CASES = {
    "forked, then several threads at once": """
child = os.fork()
if child == 0:
    check(run())
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
check(run())
threads = [threading.Thread(target=lambda: check(run())) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    # Room for the stacks of a few threads.
    "denied threads": """
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) << 10
resource.setrlimit(resource.RLIMIT_AS, (size + (60 << 20),) * 2)
_cpu.set_threads(300)
check(run())
""",
    # The thread asks for the interpreter's lock while the interpreter, whose modules are being torn
    # down, sleeps.
    "a daemon at work at the end": """
class Sleep:
    def __del__(self, sleep=time.sleep): sleep(1.5)
op = OPERATIONS["langevin"]
arguments = {**op.arguments(Shape(64, 64, 32, 300)), "schedule": schedule(4000)}
threading.Thread(target=op.run, args=(backend, arguments), daemon=True).start()
time.sleep(0.1)
sys.last = Sleep()
""",
}


@pytest.mark.parametrize("case", CASES)
def test_threads_survive_forks_denied_threads_and_exits(cpu_kernels: Any, case: str) -> None:
    if sys.platform != "linux":
        pytest.skip("asks Linux's /proc for sizes")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + CASES[case]],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(Path(__file__).parent)))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
