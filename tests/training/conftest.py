"""Tests of training on a device use the helpers of tests/ops."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "ops"))
