"""For runs of earlier versions, `evaluate`, `diagnose` and the card tell which figures are
wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Command, rows
from .damage import edit

pytestmark = pytest.mark.usefixtures("no_pictures")

SHORT = ("--steps", 4, "--no-enable-soc", "--sample-tokens", 0, "--quiet")
WINDOWS, BATCHES, PADDING = "mean over 2 accumulated", "for each accumulated batch", "padding after short documents"
PHI, BYTES, CUT, INSIDE, TWO = (
    "PHI in its",
    "Bits per byte",
    "truncates or pads texts",
    "in the folder of its text",
    "of two texts",
)


def aged(run: Path) -> Path:
    """The run as an earlier version would have left it."""
    for folder in (run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))["state"]
        assert state.pop("revision") == 2
        edit(folder, state=state)
    return run


def faults(ebmvk: Command, run: Path) -> list[str]:
    said = ebmvk("evaluate", "--checkpoint", run, "--limit", 50, "--json")
    assert said.status == 0, said.err
    found: list[str] = json.loads(said.out)["known_faults"]
    assert said.err.count("was made by an earlier version") == len(found)
    return found


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "plain"), []),
        (("--model", "plain", "--accumulation-steps", 2), []),
        (("--model", "plain", "--accumulation-steps", 2, "--windows", "document"), [WINDOWS]),
        (("--model", "ebm", "--accumulation-steps", 2, "--windows", "document"), [WINDOWS, BATCHES, PADDING]),
        (("--model", "ebm", "--accumulation-steps", 2, "--decoder", "none"), []),
        (("--model", "infinito", "--accumulation-steps", 2), [BATCHES, PHI]),
        (("--model", "plain", "--tokenizer", "char"), [BYTES]),
    ],
)
def test_only_faults_that_affect_the_run_are_reported(
    flags: tuple[object, ...], words: list[str], train: Command, ebmvk: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, *SHORT, *flags)
    assert faults(ebmvk, run) == []
    found = faults(ebmvk, aged(run))
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_a_tokenizer_that_cuts_texts_is_reported(train: Command, ebmvk: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *SHORT, "--model", "plain")
    file = run / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    said = ebmvk("evaluate", "--checkpoint", run)
    assert said.status == 2
    assert "tokenizer" in said.err  # its digest is another now
    from ebmvk.data.tokenizer import Tokenizer

    digest = Tokenizer.load(file).digest()
    for folder in (run / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))["state"]
        edit(folder, state=state | {"model": state["model"] | {"tokenizer": digest}})
    (found,) = faults(ebmvk, aged(run))
    assert CUT in found


def test_diagnosis_and_card_report_faults_even_after_resuming(
    train: Command, ebmvk: Command, text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, *SHORT, "--model", "plain", "--accumulation-steps", 2, "--windows", "document")
    train(aged(run), "--resume", "--steps", 5, "--quiet")
    assert len(faults(ebmvk, run)) == 1
    assert rows(run, "end")[-1]["step"] == 5
    page = tmp_path / "page.html"
    said = ebmvk("diagnose", "--checkpoint", run, "--quick", "--report", page)
    assert said.status == 0, said.err
    assert WINDOWS in said.out
    assert WINDOWS in page.read_text(encoding="utf-8")
    assert ebmvk("export", "--checkpoint", run, "--to", tmp_path / "model").status == 0
    assert WINDOWS in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    said = ebmvk("evaluate", "--checkpoint", tmp_path / "model", "--dataset", text, "--limit", 50)
    assert said.status == 0, said.err
    assert WINDOWS in said.err


def test_runs_inside_their_text_or_with_two_validation_texts_are_reported(
    train: Command, ebmvk: Command, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "train.txt").write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "valid.txt").write_text("the cat sees fish. " * 20, encoding="utf-8")
    run = folder / "run"
    train(run, *SHORT, "--model", "plain", "--dataset", folder)
    (folder / "valid.txt").write_text("a dog likes it. " * 30, encoding="utf-8")
    train(run, "--resume", "--steps", 5, "--quiet")
    inside, two = faults(ebmvk, aged(run))
    assert INSIDE in inside
    assert TWO in two
