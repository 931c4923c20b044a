"""./run before anything is installed: what it says, and that it changes nothing when it can't go
on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that ./run reads, in a folder of their own, so that no test touches this
    installation."""
    for name in ("run", "pyproject.toml", "CMakeLists.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("csrc", "shaders"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def _outside() -> dict[str, str]:
    """This environment without what says how to build."""
    ours = ("EBMVK_", "CMAKE_", "SKBUILD_", "KOMPUTE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def ran(*command: str | Path, environment: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)


def run(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHON": sys.executable, "EBMVK_APT": "no"}
    return ran("sh", clone / "run", *arguments, environment=_outside() | own | environment)


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
    for command in ("train", "evaluate", "generate", "test", "docs", "setup"):
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


def test_without_python_the_script_says_what_to_install(clone: Path) -> None:
    tools = clone / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "mkdir", "grep", "sort", "id"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    done = run(clone, "train", PYTHON="", PATH=str(tools))
    assert done.returncode == 2
    assert "sudo apt install python3 python3-venv g++ python3-dev" in done.stderr


def test_missing_system_packages_are_named_when_they_may_not_be_installed(clone: Path) -> None:
    # A compiler that finds no header at all.
    done = run(clone, "test", CXX="false")
    assert done.returncode == 2
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"these system packages are missing: python{version}-dev" in done.stderr
    assert f"sudo apt install python{version}-dev" in done.stderr
    assert not (clone / ".venv").exists()


def test_each_package_that_may_stay_away_is_named_with_what_is_lost(clone: Path) -> None:
    done = run(clone, "setup", CXX="false")
    lines = done.stderr.splitlines()
    assert "run:   libhwy-dev: the CPU kernels are built without SIMD, and are slower" in lines
    assert "run:   libvulkan-dev: the Vulkan engine is not built (headers)" in lines
    assert "vulkan-validationlayers" not in done.stderr  # of use to tests only
    (everything,) = [line for line in lines if "sudo apt install" in line]
    assert "-dev" in everything  # what is needed
    assert "libhwy-dev" in everything  # and what is not, in one command
    assert "libvulkan-dev" in everything


def test_vulkan_packages_are_not_asked_for_if_it_is_off(clone: Path) -> None:
    done = run(clone, "setup", CXX="false", EBMVK_VULKAN="OFF")
    assert done.returncode == 2
    assert "vulkan" not in done.stderr
    assert "libhwy-dev" in done.stderr


def test_no_log_is_named_that_is_not_there(clone: Path) -> None:
    done = run(clone, "train", CXX="false")
    named = [word.strip("():;,") for word in done.stderr.split() if ".log" in word]
    assert all(Path(name).is_file() and Path(name).stat().st_size for name in named), done.stderr


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["test", "-h"], ["setup", "--help"], ["evaluate", "--json", "--help"]]
)
def test_help_comes_before_anything_is_refused_or_installed(clone: Path, arguments: list[str]) -> None:
    done = run(clone, *arguments, CXX="false", PYTHON="/no/such/python")
    assert done.returncode == 0, done.stderr
    assert "./run train" in done.stdout
    assert not (clone / ".venv").exists()
    assert not (clone / "build").exists()


def test_an_unknown_extra_is_refused_with_the_names_of_all(clone: Path) -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]) - {"dev"}
    for arguments in (["--extra", "harnes"], ["--extra=harnes"], ["--extra"], ["--extra", "dev"]):
        done = run(clone, "setup", *arguments)
        assert done.returncode == 2
        named = done.stderr.partition("try one of:")[2].split()
        assert set(named) == extras


@pytest.fixture
def installed(clone: Path) -> Path:
    """The clone with an environment whose pip only writes down what it was asked for."""
    python = clone / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/sh
case "$1 $2" in
"-m pip") echo "$*" >>{clone}/pip.txt ;;
"-m ebmvk."*) echo "ran $*" ;;
*"-c from ebmvk"*) ;;
*) exec {sys.executable} "$@" ;;
esac
"""
    )
    python.chmod(0o755)
    packages = clone / ".venv/lib/python3.11/site-packages"
    (packages / "ebmvk-0.1.0.dist-info").mkdir(parents=True)
    (packages / "ebmvk").mkdir()
    (packages / "ebmvk/_cpu.so").touch()
    _record(clone, editable=True)
    return clone


def _record(clone: Path, *, editable: bool) -> None:
    """What pip writes beside an installed package."""
    place = clone / ".venv/lib/python3.11/site-packages/ebmvk-0.1.0.dist-info/direct_url.json"
    place.write_text(json.dumps({"url": clone.as_uri(), "dir_info": {"editable": True} if editable else {}}))


def _asked(clone: Path) -> list[str]:
    """What pip was asked for since the last time."""
    log = clone / "pip.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_extras_are_installed_and_kept_by_later_calls(installed: Path) -> None:
    run(installed, "setup", "--extra", "harness", "--extra=sweep")
    assert _asked(installed)[-1].endswith(f"-e {installed}[harness,sweep]")
    run(installed, "setup")
    assert _asked(installed) == []  # nothing changed
    (installed / "constraints.txt").write_text("torch==2.13.0\n")
    assert "ran -m ebmvk.train" in run(installed, "train").stdout
    assert _asked(installed)[-1].endswith(f"-e {installed}[harness,sweep]")


def test_compiled_modules_of_the_sources_build_nothing_again(installed: Path) -> None:
    """Python writes them when csrc/bindings.py is first imported."""
    run(installed, "setup")
    _asked(installed)
    compiled = installed / "csrc/__pycache__/bindings.cpython-311.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"another")
    run(installed, "setup")
    assert _asked(installed) == []
    (installed / "csrc/bindings.py").write_text("# changed\n")
    run(installed, "setup")
    assert _asked(installed)


def test_a_plain_install_over_the_editable_one_is_noticed_and_mended(installed: Path) -> None:
    run(installed, "setup")
    _asked(installed)
    _record(installed, editable=False)  # pip install ".[harness]"
    done = run(installed, "train")
    assert "is a copy" in done.stderr
    assert _asked(installed)[-1].endswith(f"-e {installed}")
    assert "ran -m ebmvk.train" in done.stdout


@pytest.mark.parametrize(
    "environment", [{"EBMVK_VULKAN": "OFF"}, {"CMAKE_ARGS": "-DEBMVK_VULKAN=OFF"}, {"EBMVK_WERROR": "ON"}]
)
def test_setting_or_unsetting_a_build_variable_builds_again(installed: Path, environment: dict[str, str]) -> None:
    neutral = dict.fromkeys(("EBMVK_VULKAN", "CMAKE_ARGS", "EBMVK_WERROR"), "")
    run(installed, "setup", **neutral)
    _asked(installed)
    run(installed, "setup", **neutral | environment)
    assert _asked(installed)
    run(installed, "setup", **neutral)
    assert _asked(installed)


def test_a_folder_that_was_moved_is_installed_again(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run(installed, "setup")
    _asked(installed)
    moved = tmp_path_factory.mktemp("moved") / "of its own"
    installed.rename(moved)
    python = moved / ".venv/bin/python"
    python.write_text(python.read_text().replace(f">>{installed}", f">>'{moved}'").replace("'/pip.txt", "/pip.txt'"))
    run(moved, "setup")
    assert _asked(moved)[-1].endswith(f"-e {moved}")


def test_the_script_says_why_it_cannot_make_bare_roots(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "id"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    environment = {"PATH": str(tools), "EBMVK_ROOTS": str(tmp_path / "roots")}
    done = ran(tools / "bash", ROOT / ".ci/roots", "build", "trixie", environment=environment)
    assert done.returncode == 77, done.stderr
    assert "skipped: debootstrap is missing" in done.stderr or "skipped: only root" in done.stderr
    assert not (tmp_path / "roots").exists()


def test_the_script_says_why_another_torch_cannot_be_had(tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    own = {"EBMVK_TORCH_PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = ran(ROOT / ".ci/torch", "==2.9.0", environment=os.environ | offline | own, timeout=250)
    assert done.returncode == 77, done.stderr
    assert "torch ==2.9.0: skipped: pip has no such torch" in done.stdout or "GB of disk are free" in done.stdout
    assert not list(tmp_path.iterdir())
