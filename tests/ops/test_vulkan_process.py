"""Engines in a process that forks, has many threads or engines, hangs, or ends while they work."""

from __future__ import annotations

import os

import pytest
from test_vulkan_faults import run_python
from vulkan_open import open_pretended

PRELUDE = """
import os, sys, threading, torch
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceLost
from op_table import same_bits
from test_vulkan_faults import WORK
x = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
backend = Vulkan()
points = backend.points(x)
backend.topk(x, points, 3)
"""

LIVES = {
    "left open at exit": "import builtins; builtins.kept = (backend, points)",
    "hung at exit": """
backend._extension.inject_fault("vkWaitForFences", 1, 2)
try:
    backend.topk(x, points, 3)
except DeviceLost:
    pass
""",
    "threads, then many at once, in any order": """
def use():
    for _ in range(20):
        backend.topk(x, points, 3); backend.points(x); backend.counts()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
many = [Vulkan() for _ in range(6)]
held = [one.points(x) for one in many]
del many[::2], held[1::2], backend
for one in held: one.update(x)
""",
    "used and dropped after a fork, and opened anew": """
want = {name: work(backend) for name, work in WORK.items()}
def says_lost(work):
    try:
        work()
    except DeviceLost as error:
        return "forked" in str(error)
child = os.fork()
if child == 0:
    assert all(says_lost(lambda: work(backend)) for work in WORK.values())
    assert says_lost(backend.counts)
    assert says_lost(lambda: points.update(x))
    del points, backend
    own = Vulkan()
    assert all(same_bits(work(own), want[name]) for name, work in WORK.items())
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert all(same_bits(work(backend), want[name]) for name, work in WORK.items())
""",
    "a daemon at work at the end": """
import time
from vulkan_open import schedule, tangent, mixture, unit
class Sleep:
    def __del__(self, sleep=time.sleep): sleep(1.5)
x = unit(4, 64, 1)
arguments = (x, tangent(x, 2), backend.points(unit(300, 64, 3)), *mixture(4, 32, 300, 4), schedule((100, 9000)))
threading.Thread(target=backend.langevin, args=arguments, kwargs={"seed": 1}, daemon=True).start()
time.sleep(0.1)
sys.last = Sleep()
""",
}


@pytest.mark.parametrize("case", LIVES, ids=str)
def test_an_engine_survives_forks_threads_and_exits(case: str) -> None:
    open_pretended()
    if "fork" in case and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    result = run_python(PRELUDE + LIVES[case])
    assert result.returncode == 0, result.stderr
