"""The example of tensors on a device, in the documentation of Python, runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from vulkan_open import open_vulkan

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"


def test_the_example_of_tensors_on_a_device_runs() -> None:
    open_vulkan()
    section = PAGE.read_text(encoding="utf-8").split("## Tensors on a device")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code
    result = subprocess.run([sys.executable, "-c", code[1]], check=True, capture_output=True, text=True, timeout=120)
    said = result.stdout
    assert "DeviceTensor(shape=(4, 16), dtype=torch.float32" in said
    assert "tensor([1.0000, 1.0000, 1.0000, 1.0000])" in said
