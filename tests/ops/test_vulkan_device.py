"""Missing, lost, hung or full devices raise typed errors, and the process survives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vulkan_open import open_vulkan, unit

from ebmvk.engine import vulkan_devices
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError, DeviceError, OutOfMemory


def test_a_missing_device_is_refused() -> None:
    open_vulkan()
    with pytest.raises(DeviceError, match="no Vulkan device 99"):
        Vulkan(99)


def test_devices_are_described() -> None:
    open_vulkan()
    for device in vulkan_devices.devices():
        assert device.name
        assert device.type in {"cpu", "integrated", "discrete", "virtual", "other"}
        assert device.memory_bytes > 0


def test_the_memory_limit_holds_and_old_workspaces_make_room() -> None:
    backend = open_vulkan(memory_limit=16 << 20)
    with pytest.raises(OutOfMemory, match="limit"):
        backend.points(unit(40_000, 128, 1))
    for d in range(236, 257, 4):  # 4 MiB each, of which the limit leaves room for four at most
        assert backend.projx(unit(1000, d, 1)).shape == (1000, d)


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    backend = open_vulkan(shard_bytes=4096)
    with pytest.raises(ArgumentError, match="1024 floats"):
        backend.points(unit(20, 1024, 1))
    backend = open_vulkan()
    points = backend.points(unit(20_000, 8, 1))
    with pytest.raises(ArgumentError, match="workgroup memory"):
        backend.topk(unit(1, 8, 1), points, 20_000)


def test_points_of_another_backend_are_refused() -> None:
    first, second = open_vulkan(), open_vulkan()
    with pytest.raises(ArgumentError, match="another backend"):
        first.topk(unit(1, 8, 1), second.points(unit(4, 8, 2)), 1)


def test_calls_dispatches_and_time_are_counted() -> None:
    backend = open_vulkan()
    points = backend.points(unit(20, 8, 1))
    for _ in range(3):
        backend.topk(unit(2, 8, 2), points, 3)
    count = backend.counts()["topk"]
    assert count.calls == 3
    assert count.dispatches == 6  # one scoring and one selection per call
    assert count.seconds > 0


def test_pipelines_are_kept_on_disk(tmp_path: Path) -> None:
    backend = open_vulkan(cache_dir=str(tmp_path))
    backend.projx(unit(2, 8, 1))
    del backend
    (kept,) = tmp_path.glob("pipelines-*.bin")
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"damaged", b"", whole[:-1], bytes(flipped), whole[:24] + b"x" * 100):
        kept.write_bytes(damaged)
        backend = open_vulkan(cache_dir=str(tmp_path))
        assert backend.projx(unit(2, 8, 1)).shape == (2, 8)
        del backend
        assert kept.read_bytes()[:8] == whole[:8]  # written again, complete
        assert list(tmp_path.iterdir()) == [kept]


def test_without_a_home_folder_only_the_cache_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EBMVK_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert open_vulkan().projx(unit(2, 8, 1)).shape == (2, 8)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_a_driver_the_reason_is_given() -> None:
    open_vulkan()
    code = """
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError
try:
    Vulkan()
except DeviceError as error:
    print(error)
"""
    result = run_python(code, VK_ICD_FILENAMES="/nonexistent.json", VK_DRIVER_FILES="/nonexistent.json")
    assert result.returncode == 0, result.stderr
    assert "Vulkan" in result.stdout
    assert "try:" in result.stdout


def test_importing_needs_no_vulkan() -> None:
    """Package and extension open the loader only when a device is requested."""
    open_vulkan()
    code = "import ebmvk.engine.vulkan, ebmvk._vulkan; print('libvulkan' in open('/proc/self/maps').read())"
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc to look into")
    result = run_python(code)
    assert result.stdout.strip() == "False", result.stderr


WRITE_CACHE = """
import sys
from op_table import OPERATIONS, same_bits
from ebmvk.engine.vulkan import Vulkan
for _ in range(6):
    for names in (["projx"], ["dist", "logmap"], list(OPERATIONS)[:6]):
        backend = Vulkan(options={"cache_dir": sys.argv[1]})
        for name in names: OPERATIONS[name].run(backend)
        del backend
"""


def test_many_processes_share_one_cache(tmp_path: Path) -> None:
    """All read and write it at once; in the end it is intact and nothing lies beside it."""
    open_vulkan()
    paths = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent)))
    command = [sys.executable, "-c", WRITE_CACHE, str(tmp_path)]
    processes = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    (kept,) = tmp_path.iterdir()
    size = int.from_bytes(kept.read_bytes()[8:16], "little")
    assert kept.stat().st_size == 24 + size


def test_an_unwritable_cache_does_no_other_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none"), Path("/dev/null")):
        backend = open_vulkan(cache_dir=str(place))
        assert backend.projx(unit(2, 8, 1)).shape == (2, 8)
        del backend
    assert (tmp_path / "file").read_text() == "in the way"
