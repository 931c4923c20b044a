"""Building where the Vulkan tools are missing works and says what was left out; EBMVK_VULKAN=ON makes it an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HIDE_TOOLS = [
    f"-D{name}=OFF" for name in ("CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH", "CMAKE_FIND_USE_CMAKE_SYSTEM_PATH")
]


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    cmake, ninja, compiler = (shutil.which(tool) for tool in ("cmake", "ninja", "c++"))
    if None in (cmake, ninja, compiler) or not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("no cmake, ninja or C++ compiler on the path, or no source tree")
    # The tools are hidden by hiding the system's folders, so what the build itself needs is named.
    needed = ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    needed.append(f"-DPython_EXECUTABLE={sys.executable}")
    command = [str(cmake), "-S", str(ROOT), "-B", str(folder), *needed, *HIDE_TOOLS, *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_without_vulkan_tools_the_rest_is_built(tmp_path: Path) -> None:
    result = configure(tmp_path)
    said = " ".join(result.stderr.split())
    assert result.returncode == 0, result.stderr
    assert "built without the Vulkan engine: the header vulkan/vulkan.hpp is missing. To have it: apt install" in said


@pytest.mark.slow
def test_vulkan_on_is_a_demand(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DEBMVK_VULKAN=ON")
    assert result.returncode != 0
    assert "EBMVK_VULKAN=ON" in result.stderr


@pytest.mark.slow
def test_vulkan_off_looks_for_nothing(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DEBMVK_VULKAN=OFF")
    assert result.returncode == 0, result.stderr
    assert "vulkan.hpp" not in result.stderr
