"""What a newcomer sees: the help of train, and the beginning and end of a run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ebmvk.training.summary import samples

from .conftest import Command

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_help_of_train_shows_common_flags_in_groups_and_names_the_page_with_the_rest(ebmvk: Command) -> None:
    said = ebmvk("train", "--help").out
    flags = re.findall(r"^  --(?:\[no-\])?([a-z-]+)", said, re.MULTILINE)
    assert {"dataset", "size", "model", "device", "steps", "learning-rate", "resume", "quiet"} <= set(flags)
    assert len(flags) <= 24
    titles = ["Size and machine", "Text", "Model", "Training", "This run"]
    assert re.findall(r"^[A-Z][a-z ]+$", said, re.MULTILINE) == titles
    assert "`ebmvk train --help-all` shows" in said
    assert "Memory splats" in ebmvk("train", "--help-all").out


def test_a_run_ends_with_samples_a_comparison_and_commands_that_work(
    ebmvk: Command, train: Command, tmp_path: Path, device: str
) -> None:
    run = tmp_path / "a run"
    told = train(run, "--no-enable-soc").out.splitlines()
    assert len(told) <= 25
    first = next(i for i, line in enumerate(told) if line.startswith("samples "))
    assert [line[12] for line in told[first : first + 3]] == ["1", "2", "3"]
    results = [line for line in told if line.startswith("result ")]
    assert len(results) == 1
    assert "too short to compare: " in results[0]
    assert "beats" not in results[0]
    names = ["generate", "evaluate", "diagnose"]
    # The words before the name depend on how this process was started (python -m, ebmvk, ./run).
    commands = [(words := shlex.split(line))[words.index(name) :] for name, line in zip(names, told[-3:], strict=True)]
    for name, *args in commands:
        found = ebmvk(name, *args, "--device", device, *(("--quick",) if name == "diagnose" else ()))
        assert found.status == 0, found.err
    assert (run / "diagnosis.html").is_file()


def test_a_quiet_run_ends_with_paths_only(train: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = train(run, "--no-enable-soc", "--quiet", "--steps", 2)
    assert said.out.splitlines() == [f"run folder  {run}", f"report      {run / 'report.html'}"]


def test_quiet_and_verbose_exclude_each_other(ebmvk: Command) -> None:
    said = ebmvk("train", "--quiet", "--verbose")
    assert (said.status, "--verbose and --quiet are both given" in said.err) == (2, True)


def test_samples_are_the_newest_ones_and_cannot_control_the_terminal(tmp_path: Path) -> None:
    assert list(samples(tmp_path)) == []
    (tmp_path / "samples.txt").write_text(
        "--- step 1, sample 1, exact\nold\n\n--- step 2, sample 1, exact\nred \x1b[31m\nline\n\n--- step 2, sample 2\nb"
    )
    assert list(samples(tmp_path)) == ["samples     1  red \\x1b[31m line", "            2  b"]


def test_a_dry_run_says_that_nothing_is_written(ebmvk: Command, text: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = ebmvk("train", "--dataset", text, "--config", tiny, "--run-dir", run, "--dry-run", "--device", "cpu")
    assert f"run folder  {run} (--dry-run: nothing is written there)" in said.out
    assert not run.exists()
