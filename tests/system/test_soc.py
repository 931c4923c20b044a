"""Consolidation in training changes no weight, resumes bit for bit, and gives usable splats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ebmvk.runs.layout import MEMORY_FILE

from .conftest import Command, rows

pytestmark = pytest.mark.usefixtures("no_pictures")

SPLATS = (
    "--soc-check-interval", 2, "--curriculum-target-splats", 40, "--n-splats-init", 20, "--max-splats", 60,
    "--soc-history", 400, "--soc-threshold", 0.01,
)  # fmt: skip
STEADY = ("--deterministic", "--quiet", "--sample-tokens", 0)


def _files(run: Path, step: int) -> dict[str, Any]:
    folder = run / "checkpoints" / f"step-{step}"
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "state", "soc")}


@pytest.fixture(scope="module")
def consolidated(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path, device: str) -> Path:
    """A finished run with splats; read only."""
    import importlib

    folder = tmp_path_factory.mktemp("soc") / "run"
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", device, *STEADY, *SPLATS]
    assert importlib.import_module("ebmvk.train").main([str(arg) for arg in args]) == 0
    return folder


# Within an interval, before and after the curriculum's first step
@pytest.mark.parametrize("stop", [3, 5])
def test_resuming_a_run_with_splats_is_exact_bit_for_bit(
    train: Command, consolidated: Path, tmp_path: Path, stop: int
) -> None:
    parts = tmp_path / "parts"
    train(parts, *STEADY, *SPLATS, "--stop-after", stop)
    train(parts, "--resume", "--quiet")
    one, two = _files(consolidated, 8), _files(parts, 8)
    for file, tensors in one.items():
        assert tensors.keys() == two[file].keys()
        assert [name for name, value in tensors.items() if not value.equal(two[file][name])] == []
    assert "store.mass" in one["soc"]
    told = [
        [
            {name: value for name, value in row.items() if name not in ("time", "seconds", "share")}
            for row in rows(run, "soc")
        ]
        for run in (consolidated, parts)
    ]
    assert told[0] == told[1]


def test_consolidation_does_not_change_the_weights(train: Command, consolidated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, "--no-enable-soc")
    assert not (run / "checkpoints" / "step-8" / "soc.safetensors").exists()
    assert rows(run, "soc") == []
    with_it = _files(consolidated, 8)
    for file in ("model", "state"):
        own = load_file(run / "checkpoints" / "step-8" / f"{file}.safetensors")
        assert [name for name, value in own.items() if not value.equal(with_it[file][name])] == []


def test_metrics_and_report_show_every_check(consolidated: Path) -> None:
    checks = rows(consolidated, "soc")
    assert [row["step"] for row in checks] == [2, 4, 6, 8]
    assert any(row["growth"] for row in checks)
    for row in checks:
        assert row["splats"] <= row["capacity"] <= 40
        assert 0 <= row["phi"] <= 1
        assert row["coverage"] == 1 - row["phi"]
        assert 0 < row["share"] <= 1
    for row in rows(consolidated, "eval"):
        assert row["splats"]["splats"] > 0
        assert row["splats"]["nearest_angle"] > 0
        assert {"phi", "coverage", "rate", "kappa_quantiles", "usage_gini", "dead"} <= row["splats"].keys()
    gain = rows(consolidated, "end")[0]["soc"]
    assert gain["splats"] == checks[-1]["splats"]
    # After only eight steps, memory can help a lot
    assert gain["with"] < min(gain["without"], gain["calibrated"])
    page = (consolidated / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("Memory splats", "Uncovered share", "Consolidation events"))


def test_old_checkpoints_resume_with_an_empty_store_and_a_note(
    train: Command, consolidated: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, *STEADY, *SPLATS, "--stop-after", 4)
    folder = run / "checkpoints" / "step-4"
    (folder / "soc.safetensors").unlink()
    manifest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    del manifest["files"]["soc.safetensors"]
    del manifest["sha256"]  # old checkpoints had none, either
    (folder / "state.json").write_text(json.dumps(manifest), encoding="utf-8")
    said = train(run, "--resume")
    assert "step-4 has none: consolidation begins with an empty store" in said.out
    assert rows(run, "soc")[-1]["splats"] > 0
    one, two = _files(consolidated, 8)["model"], _files(run, 8)["model"]
    assert all(value.equal(two[name]) for name, value in one.items())


def test_a_damaged_file_of_splats_is_skipped_like_any_other(train: Command, consolidated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(consolidated, run)
    file = run / "checkpoints" / "step-8" / "soc.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    said = train(run, "--resume", "--stop-after", 1)
    assert "skipped step-8" in said.out
    assert "continuing from step-4" in said.out


@pytest.mark.usefixtures("little_search")
def test_splats_from_training_become_the_static_memory(
    ebmvk: Command, consolidated: Path, device: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(consolidated, run)
    said = ebmvk("memory", "--checkpoint", run, "--from-training", "--device", device)
    assert said.status == 0, said.err
    splats = rows(consolidated, "soc")[-1]["splats"]
    assert f"{splats:,} splats" in said.out
    assert (run / "checkpoints" / "step-8" / MEMORY_FILE).is_file()
    said = ebmvk("evaluate", "--checkpoint", run, "--device", device, "--memory", "static", "--json")
    found = json.loads(said.out)
    assert found["splats"] == {"static": splats}
    assert found["tiers"]["static"]["nats"] < found["tiers"]["none"]["nats"]


def test_from_training_is_refused_without_splats(
    ebmvk: Command, trained: Path, consolidated: Path, device: str
) -> None:
    said = ebmvk("memory", "--checkpoint", trained, "--from-training", "--device", device)
    assert said.status == 2
    assert "has no splats from training" in said.err
    said = ebmvk("memory", "--checkpoint", consolidated, "--from-training", "--splats", 50)
    assert said.status == 2
    assert "--splats 50 doesn't work with --from-training" in said.err
