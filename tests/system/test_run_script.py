"""./run before anything is installed: what it says, and that it changes nothing when it can't go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that ./run reads, in a folder of their own, so that no test touches this installation."""
    for name in ("run", "pyproject.toml", "CMakeLists.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("csrc", "shaders"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def run(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", clone / "run", *arguments],
        env=os.environ | {"PYTHON": sys.executable, "EBMVK_APT": "no"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["tset"], "./run tset: no such command"), (["setup", "--tset"], "./run setup --tset: no such option")],
)
def test_a_misspelt_command_is_refused(clone: Path, arguments: list[str], said: str) -> None:
    done = run(clone, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "try" in done.stderr


def test_help_names_each_command(clone: Path) -> None:
    done = run(clone)
    assert done.returncode == 0
    for command in ("train", "evaluate", "generate", "test", "setup"):
        assert f"./run {command}" in done.stdout
    assert "set -eu" not in done.stdout


def test_a_python_of_another_version_is_refused(clone: Path) -> None:
    old = clone / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")  # what an older Python answers when asked whether it is supported
    old.chmod(0o755)
    done = run(clone, "train", PYTHON=str(old))
    assert done.returncode == 2
    assert f"PYTHON={old} is not a Python 3.11 to 3.13" in done.stderr
    assert not (clone / ".venv").exists()


def test_no_python_at_all_is_said_with_what_to_install(clone: Path) -> None:
    tools = clone / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "mkdir"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    done = run(clone, "train", PYTHON="", PATH=str(tools))
    assert done.returncode == 2
    assert "no Python 3.11 to 3.13" in done.stderr
    assert "sudo apt install python3.11" in done.stderr


def test_missing_system_packages_are_named_when_they_may_not_be_installed(clone: Path) -> None:
    # A compiler that finds no header at all.
    done = run(clone, "test", CXX="false")
    assert done.returncode == 2
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"these system packages are missing: python{version}-dev" in done.stderr
    assert f"sudo apt install python{version}-dev" in done.stderr
    assert not (clone / ".venv").exists()
