"""A command survives a reader that ends, a full disk and any encoding, and a run loses no step."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from ebmvk.cli import commands
from ebmvk.cli.train import _defaults
from ebmvk.config import flags
from ebmvk.errors import INTERRUPTED
from ebmvk.monitoring.monitor import Monitor
from ebmvk.runs import atomic
from ebmvk.runs.steps import step_folders
from ebmvk.training import trainer

from .conftest import Command, rows
from .processes import Process

pytestmark = pytest.mark.usefixtures("no_pictures")
ENDLESS = ("--steps", 10**6, "--eval-every", 10**6, "--save-every", 10**6, "--no-enable-soc", "--sample-tokens", 0)


@pytest.fixture
def begun(tiny: Path, text: Path, tmp_path: Path) -> Sequence[object]:
    return ("train", "--run-dir", tmp_path / "run", "--config", tiny, "--dataset", text, "--device", "cpu")


@pytest.mark.parametrize("encoding", ["latin-1", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_a_command_prints_in_any_encoding(encoding: str, trained: Path, tmp_path: Path) -> None:
    """Greek letters and signs are printed as names; what is written to files is UTF-8."""
    out = tmp_path / "texts.jsonl"
    env = {"PYTHONIOENCODING": encoding}
    args = ("generate", "--checkpoint", trained, "--prompt", "κ €", "--max-tokens", 2, "--output", out)
    for process, told in (
        (Process("evaluate", "--help", env=env, fresh=True), "--checkpoint"),
        (Process(*args, env=env), "kappa"),
    ):
        said, err = process.communicate()
        assert process.returncode == 0, err
        assert told in said
    assert json.loads(out.read_text(encoding="utf-8"))["prompt"] == "κ €"


def test_training_prints_its_evaluations_in_ascii(begun: Sequence[object], tmp_path: Path) -> None:
    process = Process(*begun, "--verbose", env={"PYTHONIOENCODING": "ascii"})
    said, err = process.communicate()
    assert process.returncode == 0, err
    assert said.isascii()
    assert "\N{REPLACEMENT CHARACTER}" not in said
    assert "score matching kappa " in said
    assert "validation loss " in said
    assert len(rows(tmp_path / "run", "end")) == 1


@pytest.mark.parametrize("columns", [80, 40])
def test_progress_on_a_terminal_is_one_line_that_never_wraps(
    columns: int, begun: Sequence[object], tmp_path: Path
) -> None:
    shown = _shown(begun, columns)
    assert shown.count("\x1b[1A") <= 1  # only the end goes back by a line; all that is drawn again is one line
    pieces = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown))
    progress = [piece.rstrip() for piece in pieces if re.match(r"step \d+/8", piece)]
    assert progress
    assert all(len(piece) < columns for piece in progress)
    assert any("loss" in piece for piece in progress)


def test_a_run_on_a_terminal_prints_at_most_fifteen_lines(begun: Sequence[object]) -> None:
    shown = _shown(begun, 250)
    pieces = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).split("\n")
    lines = [line for piece in pieces if (line := piece.rstrip("\r").rpartition("\r")[2].rstrip())]
    kept = [line for line in lines if not line.startswith("step ")]  # the progress line, which is taken away
    labels = ("text", "device", "run folder", "model", "training", "time", "result", "samples", "report", "next")
    assert [label for label in labels if not any(line.startswith(f"{label:<12}") for line in kept)] == []
    assert len(kept) <= 15, "\n".join(kept)


def _shown(args: Sequence[object], columns: int) -> str:
    """All that a command, which must succeed, writes to a terminal of this width."""
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    size = {"COLUMNS": "", "LINES": "", "TERM": "xterm"}
    process = Process(*args, stdout=terminal, stderr=terminal, env=size, closed=(leader,))
    os.close(terminal)
    shown = b"".join(_read(leader)).decode()
    os.close(leader)
    assert process.wait() == 0, shown
    return shown


def _read(leader: int) -> Iterator[bytes]:
    """Everything written to a terminal until its last user closes it."""
    with contextlib.suppress(OSError):  # Linux reports the end as an error
        while part := os.read(leader, 4096):
            yield part


def test_a_closed_pipe_costs_no_step(begun: Sequence[object], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ebmvk", *map(str, (*begun, *ENDLESS))], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    while b"step 2/" not in process.stdout.readline():
        pass
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(60) == 2
    run = tmp_path / "run"
    newest = step_folders(run)[0].name.removeprefix("step-")
    assert said.startswith("error: standard output could not be written: Broken pipe; ")
    assert f"the run is saved as it was after step {newest}" in said
    assert f"--resume --run-dir {run}" in said
    assert int(newest) == rows(run, "step")[-1]["step"] >= 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_for_output_costs_no_step(begun: Sequence[object], tmp_path: Path, trained: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        process = Process(*begun, *ENDLESS, "--quiet", "--stop-after", 3, stdout=full)
        _, said = process.communicate()
        assert (process.returncode, step_folders(tmp_path / "run")[0].name) == (2, "step-3")
        assert said.startswith("error: standard output could not be written: No space left on device\n")
        for args, fresh in ((("evaluate", "--help"), True), (("doctor", "--checkpoint", trained), None)):
            process = Process(*args, stdout=full, fresh=fresh)
            _, said = process.communicate()
            assert (process.returncode, "Traceback" in said) == (2, False)


def _last(run: Path) -> int:
    """The last recorded step, or 0."""
    return max((row["step"] for row in rows(run, "step")), default=0) if (run / "metrics.jsonl").exists() else 0


@pytest.mark.parametrize("what", ["metrics.jsonl", "samples.txt"])
def test_records_that_cannot_be_written_cost_no_step(
    what: str, train: Command, ebmvk: Command, tiny: Path, text: Path, device: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, real = tmp_path / "run", Path.open

    def full(path: Path, mode: str = "r", *args: Any, **how: Any) -> Any:
        if path.name == what and mode == "a" and (what == "samples.txt" or _last(run) == 3):
            raise OSError(28, "No space left on device")
        return real(path, mode, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        said = ebmvk("train", "--run-dir", run, "--config", tiny, "--dataset", text, "--device", device)
    assert said.status == 2
    assert "No space left on device; the run is saved as it was after step 4" in said.err
    assert [path.name for path in step_folders(run)] == ["step-4"]
    train(run, "--resume", "--quiet")
    assert rows(run, "resume")[0]["step"] == 4


def test_the_newest_checkpoint_is_named_if_nothing_can_be_written(
    ebmvk: Command, tiny: Path, text: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real, append = atomic.write_file, Monitor._append
    full = [False]

    def recorded(monitor: Monitor, line: str) -> None:
        full[0] = full[0] or '"event": "step", "step": 7' in line
        if full[0]:
            raise atomic.storage_error(run, OSError(28, "No space left on device"), "recording metrics")
        append(monitor, line)

    def written(path: Path, content: bytes) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(Monitor, "_append", recorded)
    for module in (atomic, trainer.checkpoint):
        monkeypatch.setattr(module, "write_file", written)
    said = ebmvk("train", "--run-dir", run, "--config", tiny, "--dataset", text, "--device", device)
    assert said.status == 2
    assert "a checkpoint of step 7 could not be written either: the newest one is of step 4" in said.err


@contextlib.contextmanager
def _training_on_a_terminal(begun: Sequence[object], run: Path) -> Iterator[tuple[Process, int]]:
    """A process in its first steps, and the other end of its terminal."""
    leader, terminal = pty.openpty()
    process = Process(*begun, *ENDLESS, stdout=terminal, stderr=terminal, new_session=True, closed=(leader,))
    os.close(terminal)
    try:
        while not (run / "metrics.jsonl").exists() or not rows(run, "step"):
            os.read(leader, 1 << 16)
        yield process, leader
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def heeds_hangup() -> Iterator[None]:
    """Processes that are started heed SIGHUP, even if the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeds_hangup")
def test_closing_the_terminal_saves_the_run(begun: Sequence[object], tmp_path: Path) -> None:
    """Hung up while it prints: SIGHUP comes twice, and writing to the terminal fails."""
    run = tmp_path / "run"
    with _training_on_a_terminal(begun, run) as (process, leader):
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        os.close(leader)
        assert process.wait(60) == INTERRUPTED
    assert step_folders(run)[0].name == f"step-{rows(run, 'step')[-1]['step']}"


def test_a_run_outlives_a_terminal_that_closes_without_a_signal(begun: Sequence[object], tmp_path: Path) -> None:
    """As a background job of a shell that has gone: writing fails, and no SIGHUP comes."""
    run = tmp_path / "run"
    with _training_on_a_terminal(begun, run) as (process, leader):
        os.close(leader)
        closed_at = rows(run, "step")[-1]["step"]
        while process.poll() is None and rows(run, "step")[-1]["step"] < closed_at + 20:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == INTERRUPTED
    assert step_folders(run)[0].name == f"step-{rows(run, 'step')[-1]['step']}"


def test_a_run_under_nohup_continues(begun: Sequence[object], tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it to the command
    try:
        process = Process(*begun, "--quiet", "--sample-tokens", 0)
    finally:
        signal.signal(signal.SIGHUP, before)
    run = tmp_path / "run"
    while not (run / "metrics.jsonl").exists() or not rows(run, "step"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(rows(run, "end")) == 1


# ---- the home folder -----------------------------------------------------------------------------


def _path_flags() -> Iterator[str]:
    """The flags of all commands whose values are of type Path."""
    for command in commands.COMMANDS:
        module = importlib.import_module(f"ebmvk.cli.{command.replace('-', '_')}")
        for kind in vars(module).values():
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                for name, hint in get_type_hints(kind).items():
                    if "Path" in str(hint):
                        yield "--" + name.replace("_", "-")


def test_every_flag_with_a_path_expands_the_home_folder() -> None:
    assert set(_path_flags()) - set(flags.PATHS) == set()


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [
        "--run-dir=~/x",
        "--ckpt",
        "~/y",
        "--files",
        "a",
        "~/b",
        "--prompt",
        "~/c",
        "--out=~",
        "--to=~nobody-here/x",
    ]
    home = str(tmp_path)
    wanted = [
        f"--run-dir={home}/x",
        "--ckpt",
        f"{home}/y",
        "--files",
        "a",
        f"{home}/b",
        "--prompt",
        "~/c",
        f"--out={home}",
    ]
    assert flags.at_home(given) == [*wanted, "--to=~nobody-here/x"]


def test_a_run_goes_to_the_home_folder(
    ebmvk: Command, tiny: Path, text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    start = ("--dataset=~/own.txt", "--config", tiny, "--device", "cpu", "--quiet", "--steps", 2)
    (tmp_path / "own.txt").write_bytes(text.read_bytes())
    assert ebmvk("train", "--run-dir=~/x", *start).status == 0
    assert ebmvk("train", "--resume=~/x", "--steps", 3, "--quiet").status == 0
    assert ebmvk("evaluate", "--checkpoint=~/x").status == 0
    names = {path.name for path in tmp_path.iterdir()} - {".cache", ".config"}  # of matplotlib, if it comes here first
    assert names == {"own.txt", "x"}


def test_a_path_in_a_file_of_settings_may_be_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text('[data]\ntokenizer = "~/t.json"\ndata_dir = "~"\n', encoding="utf-8")
    data = _defaults([f"--config={tmp_path}/c.toml"])[0].data
    assert (data.tokenizer, data.data_dir) == (f"{tmp_path}/t.json", tmp_path)
