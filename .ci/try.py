"""Imports both extensions and compares a small top-k with numpy in float64. Needs no torch."""

from __future__ import annotations

import numpy as np

from ebmvk import _built, _cpu, _vulkan

generator = np.random.default_rng(7)
queries, points = (generator.normal(size=(rows, 24)).astype(np.float32) for rows in (9, 300))
scale, bias = np.ones(300, np.float32), np.zeros(300, np.float32)
exact = queries.astype(np.float64) @ points.astype(np.float64).T
best = np.argsort(-exact, axis=1)[:, :5]


def check(name: str, scores: object, ids: object) -> None:
    assert (np.asarray(ids) == best).all(), f"{name}: its points differ from numpy's"
    difference = np.abs(np.asarray(scores) - np.take_along_axis(exact, best, 1)).max()
    assert difference < 1e-4, f"{name}: scores differ by {difference}"
    print(f"{name}: same top-k as numpy, scores differ by {difference:.1e}")


assert _built.SIMD, "built without SIMD"
assert _cpu.targets()[-1] == "plain", f"the loops that run on any processor are missing from {_cpu.targets()}"
assert not _built.VULKAN_LEFT_OUT, _built.VULKAN_LEFT_OUT
scores, ids, _ = _cpu.topk(queries, points, 5, scale, bias, None)
check(f"_cpu ({', '.join(_cpu.targets())})", scores, ids)

usable = [device for device in _vulkan.devices() if not device.missing]
assert usable, "no Vulkan device, though a driver is installed"
options = _vulkan.Options()
options.validate = True
engine = _vulkan.Engine(usable[0].index, options)
found = engine.topk(queries, engine.points(points, _vulkan.Storage.float32), 5, scale, bias)
check(f"_vulkan ({usable[0].name}, under validation)", *found)
said = engine.take_messages()
assert not said, "\n".join(said)
