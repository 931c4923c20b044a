"""Makes curves smoother, and thins out their points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a fortieth of the values, corrected at the start."""
    keep, total, weight, out = 1.0 - 1.0 / max(1, len(values) // 40), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def thin(x: Sequence[float], y: Sequence[float], points: int = 600) -> tuple[list[float], list[float]]:
    """At most `points` points, each the mean of a stretch, so that pictures stay small."""
    if len(x) <= points:
        return list(x), list(y)
    parts = np.array_split(np.arange(len(x)), points)
    return [float(np.mean(np.take(x, part))) for part in parts], [float(np.mean(np.take(y, part))) for part in parts]
