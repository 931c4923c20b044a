"""`ebmvk doctor`: what it reports, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmvk.cli import doctor
from ebmvk.engine import Backend, reference_math, select, selftest
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.reference import Reference
from ebmvk.model.language import LanguageModel

from .conftest import Command

OPERATIONS = {
    *("projx", "proju", "expmap", "logmap", "transp", "dist", "topk", "energy_score", "energy_score_backward"),
    *("topk (float16)", "langevin", "langevin (float16)", "vmf_sample", "accumulate"),
    *(f"langevin ({name})" for name in INTEGRATORS if name != "gbaoab"),
}


def test_every_operation_is_right_on_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Every device found runs every operation; on a machine whose engine works that is status 0."""
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


def test_one_device_is_described_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "reference"]) == 0
    said = capsys.readouterr().out
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


def test_a_failing_device_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A backend whose every result is not a number."""
    monkeypatch.setitem(reference_math.ROWS, "dist", lambda x, y: x.new_full((len(x),), torch.nan))
    checks = {check.operation: check for check in selftest.run(Reference())}
    assert not checks["dist"].ok
    assert checks["projx"].ok


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
