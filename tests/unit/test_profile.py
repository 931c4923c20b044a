"""The page, the trace and the figures that are made of a profile."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from ebmvk.compute.profile import Block, Kernel, Profile, by, origin
from ebmvk.engine.ceilings import Ceilings
from ebmvk.report.profile import Measured, in_use, line, parts, record, trace, write

LIMITS = Ceilings(copy_gbs=2.0, product_gflops=10.0, arithmetic_gflops=None, source="a test")
PASS = Profile(
    kernels=[
        Kernel("matmul", "aten.mm.default", "model/layers.py:3: x @ <w>", 0.004, 2e7, 1e6, 1),
        Kernel("loop", "aten.gelu.default", "model/layers.py:4: gelu(x)", 0.001, 1e6, 1.5e6, 1),
        Kernel("matmul", "aten.mm.default", "model/layers.py:5: x @ v", 0.002, 2e7, 1e6, 2),
    ],
    blocks=[Block("", 0, 2**20, 0, 1), Block("", 2**20, 2**21, 1, 2), Block("", 0, 2**19, 2, 2)],
    nbytes={"arena": 3 * 2**20},
    seconds=0.006,
)
UPDATE = Profile([Kernel("loop", "aten.mul.Tensor", "", 0.003, 1e6, 4e6, 1)], [], {"arena": 0}, 0.003)
FOUND = Measured({"pass": (4, PASS), "update": (1, UPDATE)}, LIMITS, "a run", "a device", "1.0")


def test_programs_that_run_several_times_count_as_often() -> None:
    assert FOUND.busy == pytest.approx(4 * 0.007 + 0.003)
    assert FOUND.seconds == pytest.approx(4 * 0.006 + 0.003)
    kinds = next(part for part in parts(FOUND) if part.title == "Kernels by kind").shown.tables[0]
    assert [row[:4] for row in kinds.rows] == [
        ("matmul", "8", "24.000", "77.4 %"), ("loop", "5", "7.000", "22.6 %"),
    ]  # fmt: skip
    # The products do 1.6e8 operations in 24 ms: 6.7 of 10 GFLOP/s.
    assert kinds.rows[0][4:] == ("6.7", "0.3", "67 %")
    # The loops move 10 MB in 7 ms: 1.4 of 2 GB/s.
    assert kinds.rows[1][4:] == ("0.7", "1.4", "71 %")
    assert line(FOUND) == "0.031 s of kernels a step on the device: matmul 77%, loop 23%"


def test_groups_have_each_kernel_once_and_the_slowest_first() -> None:
    groups = by(PASS.kernels, "kind")
    assert list(groups) == ["matmul", "loop"]
    assert [kernel for group in groups.values() for kernel in group] == [PASS.kernels[i] for i in (0, 2, 1)]


def test_a_file_is_named_without_most_of_its_folders() -> None:
    text = "aten.mm.default at /home/ann/x y/ebmvk/model/layers.py:31: return x @ w: Tensor  # at 3:4: z"
    assert origin(text) == ("aten.mm.default", "model/layers.py:31: return x @ w: Tensor  # at 3:4: z")
    assert origin("node 3") == ("node 3", "")


def test_bytes_in_use_are_those_of_tensors_that_live() -> None:
    assert in_use(PASS.blocks, 3) == [2**20, 3 * 2**20, 2**21 + 2**19]


def test_files_are_written(tmp_path: Path) -> None:
    page = write(FOUND, tmp_path).read_text(encoding="utf-8")
    assert "x @ &lt;w&gt;" in page
    assert page.count("<svg") == 1, "the update has no intermediate results"
    assert json.loads((tmp_path / "profile.json").read_text()) == record(FOUND)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert events == trace(FOUND)["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert sum(event["dur"] for event in spans) == pytest.approx(1e6 * (PASS.busy + UPDATE.busy))
    for one, other in pairwise(spans):
        assert one["ts"] + one["dur"] == pytest.approx(other["ts"])
