"""`ebmvk doctor`: what it reports, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmvk.cli import doctor
from ebmvk.engine import Backend, operations, reference_math, select, selftest, workloads
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.reference import Reference
from ebmvk.errors import DeviceError
from ebmvk.model.language import LanguageModel

from .conftest import Command

OPERATIONS = {
    *operations.OPERATIONS,
    *("topk (float16)", "langevin (float16)"),
    *(f"langevin ({name})" for name in INTEGRATORS if name != "gbaoab"),
    *("langevin, resumed", "langevin (ghmc), resumed"),
}


def test_every_operation_is_right_on_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Every device found runs every operation; on a machine whose engine works, the status is then
    0."""
    assert doctor.main(["--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == 0
    usable = [f"vulkan:{device['index']}" for device in record["vulkan"]["devices"] if device["usable"]]
    assert [device["device"] for device in record["devices"] if device["device"] != "cuda"] == ["cpu", *usable]
    for device in record["devices"]:
        assert {operation["operation"] for operation in device["operations"]} == OPERATIONS
        assert all(operation["ok"] and operation["error"] <= 1e-9 for operation in device["operations"])
    for device in record["vulkan"]["devices"]:
        assert device["name"]
        assert device["heaps"][0]["bytes"] > 0
        assert device["limits"]["storage_range"] >= 2**27  # what Vulkan demands of every device
    assert record["auto"].split(":")[0] in {"cpu", "cuda", "vulkan"}


def test_one_device_is_described_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBMVK_CACHE_DIR", str(tmp_path))
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "a.program").write_bytes(bytes(3 << 20))
    assert doctor.main(["--device", "reference"]) == 0
    said = capsys.readouterr().out
    assert f"compiled programs and pipelines: {tmp_path}: 1 files, 3.0 MiB" in said
    assert said.count("  ok ") == len(OPERATIONS)
    assert "--device auto takes" in said
    assert "Vulkan:" in said


@pytest.mark.parametrize("args", [["--device", "vulkan:99"], ["--device", "abacus"], ["--devise", "cpu"]], ids=str)
def test_an_unknown_device_or_flag_is_status_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(args) == 2
    assert "try:" in capsys.readouterr().err


class Liar(Reference):
    """A backend with a small error in one operation, and one that fails."""

    def dist(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 1.0001 * super().dist(x, y)

    def topk(self, queries: torch.Tensor, *rest: Any, **more: Any) -> Any:
        return super().topk(queries[0], *rest, **more)


def test_a_wrong_result_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lie(device: str = "auto") -> Backend:
        return Liar() if device == "cpu" else select(device)

    monkeypatch.setattr("ebmvk.engine.select", lie)
    assert doctor.main(["--device", "cpu", "--json"]) == 1
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    wrong = {operation["operation"]: operation for operation in device["operations"] if not operation["ok"]}
    assert set(wrong) == {"dist", "topk", "topk (float16)"}
    assert "oracle" in wrong["dist"]["failure"]
    assert "queries" in wrong["topk"]["failure"]
    assert doctor.main(["--device", "cpu"]) == 1
    assert capsys.readouterr().out.count("WRONG") == 3


class Peeled(Reference):
    """A backend whose compiler treats the first step of a call differently from the others."""

    def langevin(self, x: torch.Tensor, *rest: Any, **more: Any) -> Any:
        return super().langevin(torch.nextafter(x, torch.zeros_like(x)), *rest, **more)


def test_chains_that_change_when_resumed_are_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ebmvk.engine.select", lambda device="auto": Peeled())
    assert doctor.main(["--device", "cpu", "--json"]) == 1
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    wrong = {operation["operation"]: operation for operation in device["operations"] if not operation["ok"]}
    assert set(wrong) == {"langevin, resumed", "langevin (ghmc), resumed"}
    assert "200 steps differ from 2 x 100" in wrong["langevin, resumed"]["failure"]


def test_a_failing_device_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A backend whose every result is not a number."""
    monkeypatch.setitem(reference_math.ROWS, "dist", lambda x, y: x.new_full((len(x),), torch.nan))
    checks = {check.operation: check for check in selftest.run(Reference())}
    assert not checks["dist"].ok
    assert checks["projx"].ok


TIMED = {*workloads.WORKLOADS}


def _report(path: Path, *more: str, seconds: float = 0.01) -> tuple[int, Any]:
    """A report's status and record; by default times are those of the smallest scale."""
    status = doctor.main(["--report", str(path), "--seconds", str(seconds), *more])
    return status, json.loads(path.read_text(encoding="utf-8"))


def test_a_report_has_every_operation_of_every_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, record = _report(tmp_path / "report.json", seconds=1)
    assert capsys.readouterr().out.endswith(f"send {tmp_path / 'report.json'} with your issue\n")
    assert (status, record["status"], record["failures"], record["running"]) == (0, 0, [], None)
    usable = [f"vulkan:{device['index']}" for device in record["vulkan"]["devices"] if device["usable"]]
    assert [device["device"] for device in record["devices"]] == [*usable, "cpu"]
    for device in record["devices"]:
        assert device["name"]
        assert device["kernels"]
        assert device["ceilings"]["copy_gbs"] > 0
        for part, expected in (("operations", OPERATIONS), ("repeated", OPERATIONS - set(selftest.RESUMED))):
            assert {check["operation"] for check in device[part]} >= expected
            assert all(check["ok"] and check["error"] <= check["tolerance"] for check in device[part])
        assert {row["operation"] for row in device["times"]} >= TIMED
        for row in device["times"]:
            assert len(row["seconds"]) == 3
            assert row["gflops"] > 0
            assert row["roofline_percent"] > 0
            if device["device"] != "cpu":
                assert row["counts"]["dispatches"] >= 1
                assert row["counts"]["submissions"] >= 1


class Broken(Reference):
    """A backend with one operation that the driver refuses, and one that gives other bits each
    time."""

    calls = 0

    def expmap(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"{Path.home()}/driver.so: pipeline refused at {x.shape}; log in /home/somebody/log")

    def projx(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().projx(x) * (1 + 1e-6 * (self.calls % 2))


def test_a_report_with_a_broken_operation_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ebmvk.engine.select", lambda device="auto": Broken())
    status, record = _report(tmp_path / "report.json", "--device", "cpu")
    assert status == record["status"] == 1
    (device,) = record["devices"]
    wrong = {check["operation"]: check["failure"] for check in device["operations"] if not check["ok"]}
    assert list(wrong) == ["expmap"]
    assert "RuntimeError: ~/driver.so: pipeline refused" in wrong["expmap"]
    assert {check["operation"] for check in device["repeated"] if not check["ok"]} == {"expmap", "projx"}
    assert {row["operation"] for row in device["times"]} >= TIMED - {"expmap"}
    (failure,) = record["failures"]
    assert failure["part"].endswith("times: expmap")
    assert any("expmap" in frame for frame in failure["at"])
    assert "something failed" in capsys.readouterr().out


def test_a_report_has_no_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmvk.engine.select", lambda device="auto": Broken())
    _report(tmp_path / "report.json", "--device", "cpu")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert str(Path.home()) + "/" not in text
    assert "somebody" not in text


def test_a_report_without_vulkan_has_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise DeviceError("no Vulkan: the loader is missing", hint="install a driver")

    monkeypatch.setattr("ebmvk.engine.vulkan_devices.survey", none)
    status, record = _report(tmp_path / "report.json")
    assert status == 0
    assert "the loader is missing" in record["vulkan"]["error"]
    assert [device["device"] for device in record["devices"]] == ["cpu"]
    status, record = _report(tmp_path / "report.json", "--device", "vulkan:99")
    assert status == 1
    assert len(record["failures"]) == 4  # each part tries to open the device
    assert all("99" in failure["error"] for failure in record["failures"])


def test_a_report_that_ended_early_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the driver ended the process: what is not an Exception is not caught."""

    def end(backend: Backend) -> Any:
        raise SystemExit(139)

    monkeypatch.setattr(selftest, "repeat", end)
    with pytest.raises(SystemExit):
        doctor.main(["--report", str(tmp_path / "report.json"), "--device", "cpu", "--seconds", "0.01"])
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "twice" in record["running"]
    assert record["devices"][0]["operations"]


@pytest.mark.parametrize("more", [["--json"], ["--seconds", "0"], ["--checkpoint", "runs/x"]], ids=str)
def test_a_report_with_flags_that_do_not_fit_is_status_2(
    tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--report", str(tmp_path / "report.json"), *more]) == 2
    assert more[0] in capsys.readouterr().err
    assert doctor.main(["--report", str(tmp_path / "no-such-folder" / "report.json")]) == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_a_sound_checkpoint_is_status_0(trained: Path, ebmvk: Command) -> None:
    said = ebmvk("doctor", "--checkpoint", trained, "--json")
    record = json.loads(said.out)
    assert said.status == record["status"] == 0
    assert all(check["ok"] and check["error"] <= check["most"] for check in record["checks"])
    assert "sound" in ebmvk("doctor", "--checkpoint", trained).out
    assert ebmvk("doctor", "--checkpoint", trained / "no-such-folder").status == 2


def test_a_model_whose_cache_gives_other_logits_is_status_1(
    trained: Path, ebmvk: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend = LanguageModel.extend
    monkeypatch.setattr(LanguageModel, "extend", lambda self, tokens, *rest: extend(self, tokens // 2, *rest))
    said = ebmvk("doctor", "--checkpoint", trained)
    assert (said.status, said.out.count("WRONG")) == (1, 1)
