"""The names of a run folder's files, and finding runs by them. Imports nothing heavy, so every
command can use it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ebmvk.errors import ConfigError

RUNS = Path("runs")
NEWEST = "newest"
"""Stands for the newest run in RUNS, unless a folder has this name."""
CONFIG_FILE, LOCK_FILE = "config.toml", ".lock"
SAMPLES_FILE, REPORT_FILE = "samples.txt", "report.html"
PROFILE_FILE, PROFILE_PAGE, TRACE_FILE = "profile.json", "profile.html", "trace.json"
MEMORY_FILE = "memory.safetensors"  # beside the weights of a checkpoint, or in an exported model


def newest(flag: str, *, trained: bool = False) -> Path:
    """The run in RUNS whose settings were written last. trained: ignore runs without a checkpoint.

    Raises:
        ConfigError: RUNS has no such run; the message names the flag.
    """
    found = [path.parent for path in RUNS.glob(f"*/{CONFIG_FILE}") if not trained or has_checkpoint(path.parent)]
    if not found:
        what = "run with a checkpoint" if trained else "run"
        raise ConfigError(f"{flag}: there is no {what} in {RUNS}/", hint=f"name one: {flag} PATH")
    return max(found, key=lambda path: (path / CONFIG_FILE).stat().st_mtime)


def has_checkpoint(folder: Path) -> bool:
    """True for a run folder with at least one checkpoint, even a damaged one."""
    return any(path.is_dir() for path in folder.glob("checkpoints/step-*"))


def refuse_existing(folder: Path) -> None:
    """Raises ConfigError if the folder for a new run already holds a run."""
    if (folder / CONFIG_FILE).exists() or has_checkpoint(folder):
        raise ConfigError(
            f"--run-dir {folder} already holds a run",
            why="a new run there would mix its files with those of the old run",
            hint=f"continue it with --resume --run-dir {shlex.quote(str(folder))}, or use another folder",
        )
