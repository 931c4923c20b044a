"""`ebmvk diagnose` for every model and for several checkpoints, as text, JSON and page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ebmvk.diagnosis.diagnosis import SECTIONS

from .conftest import Command, Page

ALL = {section.name for section in SECTIONS}
SPHERE = {"denoising", "langevin", "lexical"}
SHORT = ("--quiet", "--sample-tokens", 0, "--steps", 2)
LACKING = {
    "ebm": {"external"},
    "plain": SPHERE | {"external", "experts"},
    "tinygpt": SPHERE | {"external"},
    "minillm": SPHERE | {"external", "experts"},
    "infinito": SPHERE | {"experts"},
}


@pytest.fixture
def diagnose(ebmvk: Command, device: str) -> Command:
    """Diagnose quickly; must succeed. The record, as JSON has it."""

    def call(*args: Any) -> dict[str, Any]:
        said = ebmvk("diagnose", "--device", device, "--quick", "--json", *args)
        assert said.status == 0, said.err
        record: dict[str, Any] = json.loads(said.out)
        return record

    return call


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=pytest.mark.slow if model == "minillm" else ()) for model in LACKING]
)  # minillm has the sections of plain
def test_a_diagnosis_of_every_model_has_the_sections_that_apply(
    model: str, train: Command, trained: Path, diagnose: Command, ebmvk: Command, tmp_path: Path, device: str
) -> None:
    run = trained if model == "ebm" else tmp_path / "run"
    if model != "ebm":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ebmvk.report.page.draw", lambda *_: "")  # only the diagnosis is looked at
            train(run, "--model", model, *SHORT, *(("--use-moe",) if model == "tinygpt" else ()))
    (record,) = diagnose("--checkpoint", run, "--report", tmp_path / "page.html")["checkpoints"]
    soc = {"splats", "memory"} if model != "ebm" else set()  # two steps consolidate nothing
    absent = LACKING[model] | soc | ({"splats", "memory"} & set(record["absent"]))
    assert set(record["absent"]) == absent
    assert set(record["sections"]) == (ALL - absent) | {"recommendations"}
    whole = record["sections"]["likelihood"]
    assert sum(bucket["nats"] for bucket in whole["buckets"]) == pytest.approx(whole["validation"]["nats"])
    limit = ("--limit", whole["validation"]["tokens"])
    said = ebmvk("evaluate", "--checkpoint", run, "--device", device, "--json", *limit)
    assert json.loads(said.out)["nats"] == pytest.approx(whole["validation"]["nats"], rel=1e-9)
    page = Page.of(tmp_path / "page.html")
    assert page.outside() == []
    assert page.tags.count("svg") >= 4
    assert all(why[1:].replace("`", "") in page.text for why in record["absent"].values())
    assert "othersamplers)300" in "".join(page.text.split())  # the chains, in the table of how much was looked at


def test_the_page_has_every_figure_of_the_terminal(ebmvk: Command, trained: Path, device: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    said = ebmvk("diagnose", "--checkpoint", run, "--device", device, "--quick", "--report")
    assert said.status == 0, said.err
    page = Page.of(run / "diagnosis.html")
    shown = "".join(page.text.split())
    cells = [cell for line in said.out.splitlines() if line.startswith("  ") for cell in line.split("  ")]
    told = ["".join(cell.split()).replace("`", "") for cell in cells if not cell.startswith("sample ")]
    assert len(told) > 100
    assert [cell for cell in told if cell not in shown] == []


def test_batch_compares_the_checkpoints_of_a_run(trained: Path, diagnose: Command, tmp_path: Path) -> None:
    record = diagnose("--checkpoint", trained, "--batch", "--report", tmp_path / "page.html")
    first, second = record["checkpoints"]
    assert [own["step"] for own in (first, second)] == [4, 8]
    assert first["against_first"] is None
    nats = [own["sections"]["likelihood"]["validation"]["nats_per_token"] for own in (first, second)]
    paired = second["against_first"]
    assert paired["nats_per_token"] == pytest.approx(nats[1] - nats[0])
    assert (paired["method"], paired["low"], paired["high"]) == ("none", None, None)  # one short document
    assert len(first["curves"]["training"]) == 4  # until that step
    assert len(second["curves"]["training"]) == 8
    page = Page.of(tmp_path / "page.html")
    assert page.outside() == []
    assert page.tags.count("details") == 2
    assert "Bits per byte" in page.text


def test_batch_skips_a_damaged_checkpoint(trained: Path, ebmvk: Command, tmp_path: Path, device: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoints" / "step-4" / "model.safetensors").write_bytes(b"")
    said = ebmvk("diagnose", "--batch", run, "--device", device, "--quick", "--json")
    assert said.status == 0, said.err
    assert [own["step"] for own in json.loads(said.out)["checkpoints"]] == [8]
    assert "step-4 is skipped" in said.err
    (run / "checkpoints" / "step-8" / "model.safetensors").write_bytes(b"")
    said = ebmvk("diagnose", "--batch", run, "--device", device, "--quick")
    assert said.status == 2
    assert "  try: " in said.err


@pytest.mark.usefixtures("no_pictures")
def test_a_text_that_changed_since_training_is_refused(
    train: Command, ebmvk: Command, tmp_path: Path, device: str
) -> None:
    run, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the cat\n" * 400, encoding="utf-8")
    train(run, "--dataset", text, "--tokenizer", "char", "--model", "plain", *SHORT)
    text.write_text(text.read_text(encoding="utf-8").replace("cat", "cap"), encoding="utf-8")
    said = ebmvk("diagnose", "--checkpoint", run, "--device", device, "--quick")
    assert said.status == 2
    assert "is not the text this run was trained on" in said.err


def test_runs_with_different_tokens_are_not_paired(
    train: Command, trained: Path, ebmvk: Command, tmp_path: Path, device: str
) -> None:
    train(tmp_path / "other", "--model", "plain", *SHORT, "--vocab-size", 270)
    page = tmp_path / "page.html"
    runs = ("--checkpoint", trained, tmp_path / "other")
    said = ebmvk("diagnose", "--quick", "--device", device, "--report", page, *runs)
    assert said.status == 0, said.err
    table = said.out[said.out.index("Side by side") :]
    assert "bits per byte" in table
    assert "against the first" not in table
    assert Page.of(page).outside() == []


@pytest.mark.usefixtures("little_search", "no_pictures")
def test_the_memory_section_agrees_with_evaluate(
    trained: Path, ebmvk: Command, diagnose: Command, tmp_path: Path, device: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    at = ("--checkpoint", run)
    assert ebmvk("memory", *at, "--splats", 60, "--quiet", "--device", device).status == 0
    (record,) = diagnose(*at, "--report", tmp_path / "page.html")["checkpoints"]
    found = record["sections"]["memory"]
    assert sum(gate["mean"] for gate in found["gate"].values()) == pytest.approx(1, abs=1e-5)
    limit = ("--limit", found["tokens"])
    said = ebmvk("evaluate", *at, *limit, "--memory", "both", "--device", device, "--json")
    evaluated = json.loads(said.out)
    assert found["in_sample_tokens"] == evaluated["in_sample_tokens"] == found["tokens"]
    assert found["fitted_on"] == evaluated["fitted_on"]
    assert "in sample" in Page.of(tmp_path / "page.html").text
    tiers = evaluated["tiers"]
    for mode, nats in found["nats_per_token"].items():
        assert nats == pytest.approx(tiers[mode]["nats_per_token"], rel=1e-5)
    for mode, gain in found["gains"].items():
        difference = found["nats_per_token"][mode] - found["nats_per_token"]["none"]
        assert gain["nats_per_token"] == pytest.approx(difference)
    assert set(found["gains_over_calibrated"]) == {"static", "episodic", "both"}
    for mode, gain in found["gains_over_calibrated"].items():
        difference = found["nats_per_token"][mode] - found["nats_per_token"]["calibrated"]
        assert gain["nats_per_token"] == pytest.approx(difference)
    assert "against calibrated" in Page.of(tmp_path / "page.html").text
    (static,) = [own for own in record["sections"]["splats"]["stores"] if own["name"] == "static memory"]
    assert (static["splats"], static["dead"], static["usage_is"]) == (found["splats"], None, "mass")
    assert 30 < found["splats"] <= 60
    assert 0 < static["coverage"] < 1
    assert "static memory" in Page.of(tmp_path / "page.html").text


@pytest.mark.usefixtures("no_pictures")
def test_a_run_without_metrics_has_no_verdict(trained: Path, diagnose: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "metrics.jsonl").unlink()
    (record,) = diagnose("--checkpoint", run, "--report", tmp_path / "page.html")["checkpoints"]
    assert {"convergence", "energy"} <= set(record["absent"])
    assert "no metrics.jsonl" in Page.of(tmp_path / "page.html").text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "nothing to diagnose"),
        (("--checkpoint", "nowhere"), "there is no such folder"),
        (("--batch",), "--batch takes one run"),
        (("--checkpoint", "a", "b", "--batch"), "--batch takes one run"),
        (("--batch", "nowhere"), "--batch"),
    ],
)
def test_bad_checkpoints_are_refused(args: tuple[str, ...], words: str, ebmvk: Command) -> None:
    said = ebmvk("diagnose", *args)
    assert said.status == 2
    assert words in said.err
    assert "  try: " in said.err
