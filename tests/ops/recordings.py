"""Recordings of small kernels, for tests."""

from __future__ import annotations

import functools
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ebmvk.engine import recording
from ebmvk.engine.recording import Recorder, Recording

Words = NDArray[np.uint32]
LOST, HOST_MEMORY, DEVICE_MEMORY = -4, -1, -2  # VkResult

AFFINE = """
#version 450
layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint FACTOR = 1;
layout(push_constant) uniform Push { uint n, add; };
layout(binding = 0) readonly buffer X { uint x[]; };
layout(binding = 1) writeonly buffer Y { uint y[]; };
void main() {
  uint i = gl_GlobalInvocationID.x;
  if (i < n) y[i] = FACTOR * x[i] + add;
}
"""
"""y = FACTOR x + add, for n words."""


@functools.cache
def compiled(source: str) -> bytes:
    compiler = shutil.which("glslc")
    if compiler is None:
        pytest.skip("no glslc to compile the test's shaders: apt install glslc")
    command = [compiler, "--target-env=vulkan1.2", "-O", "-fshader-stage=compute", "-o", "-", "-"]
    return subprocess.run(command, input=source.encode(), check=True, capture_output=True).stdout


def affine(recorder: Recorder, factor: int = 3) -> Any:
    return recorder.module(compiled(AFFINE), "rw", push_words=2, group=64, constants=[factor])


def push(*words: int) -> bytes:
    return np.array(words, np.uint32).tobytes()


def words(n: int, seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, 1 << 32, n, np.uint32)


def chain(recorder: Recorder, links: int, *, dependent: bool, cut: float | None = None) -> tuple[Recording, int, int]:
    """A recording of kernels that each read what the one before wrote; or of independent ones."""
    step = recorder.alignment
    memory = recorder.memory(step * 2 * (links + 1))
    record, kernel = recorder.recording(), affine(recorder)
    source = record.upload((memory, 0, 4))
    for i in range(links):
        at, to = (step * i, step * (i + 1)) if dependent else (0, step * (links + 1 + i))
        record.kernel(kernel, [(memory, at, 4), (memory, to, 4)], push(1, i), (1, 1, 1))
        if cut is not None:
            record.cut(cut)
    target = record.download((memory, step * links if dependent else step * (links + 1), 4))
    record.finish()
    return record, source, target


def result_of(made: tuple[Recording, int, int], value: Words) -> tuple[int, recording.Ran]:
    record, source, target = made
    found = np.empty(1, np.uint32)
    ran = record.run({source: value}, {target: found})
    return int(found[0]), ran
