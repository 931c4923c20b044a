"""Training runs as processes of their own, each only once: a finished one is kept, a stopped one goes on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebmvk.errors import INTERRUPTED, ConfigError, RunFailed, RunStopped
from ebmvk.runs.atomic import write_atomic
from ebmvk.runs.lock import locked
from ebmvk.runs.metrics import METRICS_FILE


@dataclass(frozen=True)
class PlannedRun:
    """A run to be. arguments: of `ebmvk.train`, without those that say where; about: kept beside it, as JSON."""

    folder: Path
    arguments: tuple[str, ...]
    about: dict[str, Any]

    @property
    def note(self) -> Path:
        """Beside the run's folder: what it was started with."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def command(self) -> str:
        """What a person would type for it."""
        return shlex.join(["python", "-m", "ebmvk.train", "--run-dir", str(self.folder), *self.arguments])

    def started_with(self) -> dict[str, Any]:
        """What the note says. Raises OSError where there is none."""
        found: dict[str, Any] = json.loads(self.note.read_text(encoding="utf-8"))
        return found

    def finished(self) -> bool:
        """Whether the run is done.

        Raises:
            ConfigError: the folder has a run of other arguments, or of none of ours: figures must not mix.
        """
        if not self.note.is_file():
            if self.folder.exists():
                raise ConfigError(f"{self.folder} was not made by this command", hint="take another --folder")
            return False
        arguments = self.started_with()["arguments"]
        if arguments != list(self.arguments):
            raise ConfigError(f"{self.folder} was trained with {shlex.join(arguments)}", hint="take another --folder")
        return bool(self.events("end"))

    def train(self, threads: int | None) -> None:
        """Train what is left of the run. threads: of torch, by OMP_NUM_THREADS.

        Raises:
            ConfigError: as `finished`. FolderInUse: another process trains it. RunFailed: it ended with an error, which
                it has printed. RunStopped: it was interrupted or killed.
        """
        if self.finished():
            return
        with locked(self.folder, lambda _: None):  # or another process trains it
            if not any(self.folder.glob("checkpoints/step-*")):
                shutil.rmtree(self.folder, ignore_errors=True)  # stopped before its first checkpoint
        arguments: tuple[str, ...] = ("--resume", "--quiet")
        if not self.folder.exists():
            arguments = self.arguments
            self.note.parent.mkdir(parents=True, exist_ok=True)
            note = {"arguments": list(arguments), **self.about}
            write_atomic(self.note, (json.dumps(note, indent=1) + "\n").encode())
        command = ["-m", "ebmvk.train", "--run-dir", str(self.folder), *arguments]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        quiet = subprocess.DEVNULL  # where it wrote is known, and what is printed here is the caller's; errors are seen
        done = subprocess.run([sys.executable, *command], env=environment, check=False, stdout=quiet)  # noqa: S603
        status = done.returncode
        if status:
            what = f"python {shlex.join(command)} ended with status {status}"
            if status < 0 or status == INTERRUPTED:
                raise RunStopped(what, hint="run this again: it goes on from its last checkpoint")
            raise RunFailed(what, hint="once mended, run this again: what is done is kept")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Rows of its metrics, of one kind."""
        path = self.folder / METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if f'"event": "{event}"' in line[:40] and line.endswith("}")]
