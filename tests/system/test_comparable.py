"""Only evaluations of one text are compared, patience counts them, and jumps of the rate are
reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ebmvk.runs import checkpoint, steps
from ebmvk.runs.folder import read_config
from ebmvk.runs.metrics import read_history
from ebmvk.training import trainer
from ebmvk.training.optim import lr_at

from .conftest import Command, Said, made_up_text, rows
from .damage import edit

pytestmark = pytest.mark.usefixtures("no_pictures")

PLAIN = ("--model", "plain", "--no-enable-soc", "--sample-tokens", 0)
# Nothing is learned: the first evaluation stays the best one.
STILL = (*PLAIN, "--lr", 1e-12, "--save-every", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "text"
    found.mkdir()
    (found / "train.txt").write_text(made_up_text(), encoding="utf-8")
    (found / "valid.txt").write_text(made_up_text(60, seed=3), encoding="utf-8")
    return found


def _progress(run: Path) -> dict[str, Any]:
    newest = steps.step_folders(run)[0]
    found: dict[str, Any] = json.loads((newest / "state.json").read_text(encoding="utf-8"))["state"]["progress"]
    return found


def test_evaluations_of_two_texts_are_not_compared(train: Command, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *STILL, "--eval-every", 1, "--dataset", folder, "--steps", 9, "--stop-after", 3, "--patience", 5)
    assert (_progress(run)["best_step"], _progress(run)["since_best"]) == (1, 2)
    harder = made_up_text(60, seed=3).translate(str.maketrans("aeiou", "uoiea"))  # costs more, so that none is better
    (folder / "valid.txt").write_text(harder, encoding="utf-8")
    said = train(run, "--resume", "--stop-after", 2)
    assert "losses on two texts cannot be compared: the best checkpoint and --patience start again" in said.out
    assert (_progress(run)["best_step"], _progress(run)["since_best"]) == (4, 1)
    assert (run / "best").read_text(encoding="ascii") == "checkpoints/step-4\n"
    assert read_history(run).best["step"] == 4  # type: ignore[index]
    said = train(run, "--resume", "--stop-after", 1)
    assert "losses on two texts" not in said.out
    assert (_progress(run)["best_step"], _progress(run)["since_best"]) == (4, 2)


def test_another_validation_text_is_noticed_without_a_digest_from_an_earlier_version(
    train: Command, folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, *STILL, "--eval-every", 1, "--dataset", folder, "--steps", 9, "--stop-after", 3)
    for step in steps.step_folders(run):
        state = json.loads((step / "state.json").read_text(encoding="utf-8"))["state"]
        state.pop("text")
        edit(step, state=state)
    (folder / "valid.txt").write_text(made_up_text(80, seed=5), encoding="utf-8")
    said = train(run, "--resume", "--stop-after", 1)
    assert "losses on two texts cannot be compared" in said.out


def test_patience_counts_evaluations_not_steps(train: Command, text: Path, tmp_path: Path) -> None:
    """Three evaluations without a better one count as three, whether one step apart or two."""
    run = tmp_path / "run"
    train(run, *STILL, "--dataset", text, "--eval-every", 2, "--steps", 30, "--stop-after", 4, "--patience", 3)
    assert (_progress(run)["best_step"], _progress(run)["since_best"]) == (2, 1)
    train(run, "--resume", "--eval-every", 1)
    assert rows(run, "end")[0]["step"] == 6
    assert [row["step"] for row in rows(run, "eval")] == [2, 4, 5, 6]


def test_evaluations_without_a_count_in_the_checkpoint_are_counted_from_the_metrics(
    train: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = tmp_path / "run", checkpoint.save

    def old(*args: Any, **how: Any) -> Path:
        run, step, model, optimizer, state, soc = args
        progress = {name: value for name, value in state["progress"].items() if name != "since_best"}
        state = {name: value for name, value in state.items() if name != "text"} | {"progress": progress}
        return save(run, step, model, optimizer, state, soc, **how)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.checkpoint, "save", old)
        train(run, *STILL, "--dataset", text, "--eval-every", 2, "--steps", 30, "--stop-after", 6, "--patience", 4)
    assert "since_best" not in _progress(run)
    train(run, "--resume", "--eval-every", 5)
    assert [row["step"] for row in rows(run, "eval")] == [2, 4, 6, 10, 15]


def test_a_jump_of_the_learning_rate_is_reported_with_both_values(train: Command, text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, *PLAIN, "--dataset", text, "--steps", 6)
    before = read_config(run).training

    def resumed(*flags: object) -> Said:
        return train(run, "--resume", "--stop-after", 1, *flags)

    said = resumed("--steps", 60)
    jump = f"the learning rate jumps from {lr_at(6, before):.2g} to {lr_at(6, read_config(run).training):.2g} at step 7"
    assert f"{jump}: --steps 6, now 60" in said.out
    assert "jumps" not in resumed().out
    assert "jumps" in resumed("--lr", before.learning_rate / 2).out
