"""Without the Vulkan tools the rest is built with a note; EBMVK_VULKAN=ON makes it an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
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


def _fake_tools(folder: Path) -> list[str]:
    """Options for a Vulkan header of an unknown generation, and everything else that is needed."""
    header, kompute = folder / "include/vulkan/vulkan.hpp", folder / "kompute/src/Sequence.cpp"
    for file in (header, kompute):
        file.parent.mkdir(parents=True)
    header.write_text("#error of another generation\n")
    kompute.write_text("#include <vulkan/vulkan.hpp>\n")
    (folder / "include/fmt").mkdir()
    (folder / "include/fmt/format.h").touch()
    return [
        *(f"-D{name}={folder / 'include'}" for name in ("VULKAN_HPP_DIR", "FMT_DIR")),
        f"-DGLSLC={shutil.which('true')}",
        f"-DKOMPUTE_SOURCE_DIR={folder / 'kompute'}",
    ]


def _try_vulkan(build: Path) -> subprocess.CompletedProcess[str]:
    """The build step that EBMVK_VULKAN=AUTO adds, without the rest of the build."""
    settings = {
        "source": ROOT, "folder": build / "vulkan", "generator": "Ninja", "built": build / "_built.py",
        "Python_VERSION": "3", "highway_found": "TRUE",
    }  # fmt: skip
    given = [f"-D{name}={value}" for name, value in settings.items()]
    command = [str(shutil.which("cmake")), *given, "-P", str(ROOT / "csrc/try_vulkan.cmake")]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)


def test_without_usable_headers_the_rest_is_built_and_the_reason_is_noted(tmp_path: Path) -> None:
    build, tools = tmp_path / "build", _fake_tools(tmp_path)
    result = configure(build, *tools)
    assert result.returncode == 0, result.stderr
    stale = build / "vulkan/module/_vulkan.so"
    stale.touch()  # of an earlier build
    tried = _try_vulkan(build)
    assert tried.returncode == 0, tried.stderr  # so that the build goes on
    (line,) = [line for line in tried.stderr.splitlines() if "built without the Vulkan engine" in line]
    assert "it failed to build" in line
    log = Path(line.rpartition("(log: ")[2].rstrip(")"))
    assert "of another generation" in log.read_text()
    names: dict[str, object] = {}
    exec((build / "_built.py").read_text(), names)  # noqa: S102
    assert "it failed to build" in str(names["VULKAN_LEFT_OUT"])
    assert names["SIMD"] is True
    assert not stale.exists()


@pytest.mark.slow
def test_headers_that_do_not_compile_fail_a_build_with_vulkan_on(tmp_path: Path) -> None:
    build, tools = tmp_path / "build", _fake_tools(tmp_path)
    assert configure(build, *tools, "-DEBMVK_VULKAN=ON").returncode == 0
    done = subprocess.run(
        ["cmake", "--build", str(build), "--target", "ebmvk_kompute"], check=False, capture_output=True, timeout=200
    )
    assert done.returncode != 0


def test_each_build_reads_the_environment_again() -> None:
    """Otherwise a build folder would keep the answer of an earlier build."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["cmake"]["define"]
    assert settings["EBMVK_VULKAN"] == {"env": "EBMVK_VULKAN", "default": "AUTO"}
    assert settings["EBMVK_WERROR"] == {"env": "EBMVK_WERROR", "default": "OFF"}


def test_an_unknown_value_of_ebmvk_vulkan_is_refused(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DEBMVK_VULKAN=yes")
    assert result.returncode != 0
    assert "EBMVK_VULKAN=yes isn't AUTO, ON or OFF" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="ldd and readelf are Linux's")
@pytest.mark.parametrize("name", ["_cpu", "_vulkan"])
def test_an_installed_extension_brings_its_libraries(name: str) -> None:
    """The machine's libhwy isn't used: Highway is in the extension or beside it."""
    pytest.importorskip("ebmvk._built", reason="not installed, but run from a source folder with copied extensions")
    extension = Path(str(pytest.importorskip(f"ebmvk.{name}").__file__))
    said = subprocess.run(["ldd", str(extension)], check=True, capture_output=True, text=True).stdout
    assert "not found" not in said
    for line in said.splitlines():
        if "libhwy" in line:
            assert Path(line.split("=>")[1].split()[0]).parent == extension.parent, line


@pytest.mark.slow
def test_without_vulkan_tools_everything_else_is_built(tmp_path: Path) -> None:
    result = configure(tmp_path)
    said = " ".join(result.stderr.split())
    assert result.returncode == 0, result.stderr
    assert "built without the Vulkan engine: the header vulkan/vulkan.hpp is missing. To have it: apt install" in said


@pytest.mark.slow
def test_vulkan_on_fails_without_the_tools(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DEBMVK_VULKAN=ON")
    assert result.returncode != 0
    assert "EBMVK_VULKAN=ON" in result.stderr


@pytest.mark.slow
def test_vulkan_off_searches_for_nothing(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DEBMVK_VULKAN=OFF")
    assert result.returncode == 0, result.stderr
    assert "vulkan.hpp" not in result.stderr
