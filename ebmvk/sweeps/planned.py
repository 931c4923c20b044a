"""Trains a run in its own process, once: a finished run is kept, a stopped one is continued."""

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
    """A training run and how to start it.

    folder: its run folder. arguments: flags of `ebmvk.train`, without --run-dir. about: JSON values
    that its note keeps.
    """

    folder: Path
    arguments: tuple[str, ...]
    about: dict[str, Any]

    @property
    def note(self) -> Path:
        """The file beside the run's folder that records its arguments."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def command(self) -> str:
        """The command that starts the run in a shell."""
        return shlex.join(["python", "-m", "ebmvk.train", "--run-dir", str(self.folder), *self.arguments])

    def started_with(self) -> dict[str, Any]:
        """The content of the note. Raises OSError if it doesn't exist."""
        found: dict[str, Any] = json.loads(self.note.read_text(encoding="utf-8"))
        return found

    def finished(self) -> bool:
        """True if the run is finished.

        Raises:
            ConfigError: the folder holds a run with other arguments, or one that this command
                didn't start.
        """
        if not self.note.is_file():
            if self.folder.exists():
                raise ConfigError(f"{self.folder} was not made by this command", hint="use another --folder")
            return False
        arguments = self.started_with()["arguments"]
        if arguments != list(self.arguments):
            raise ConfigError(f"{self.folder} was trained with {shlex.join(arguments)}", hint="use another --folder")
        return bool(self.events("end"))

    def train(self, threads: int | None) -> None:
        """Train what is left of the run.

        threads: of torch, through OMP_NUM_THREADS; None leaves it as it is.

        Raises:
            ConfigError: as `finished`. FolderInUse: another process is training it. RunFailed: the
                run ended with an error, which it has printed. RunStopped: the run was interrupted
                or killed.
        """
        if self.finished():
            return
        with locked(self.folder, lambda _: None):  # refuses if another process is training it
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
        quiet = subprocess.DEVNULL  # its lines would mix with the caller's; errors are still shown
        done = subprocess.run([sys.executable, *command], env=environment, check=False, stdout=quiet)  # noqa: S603
        status = done.returncode
        if status:
            what = f"python {shlex.join(command)} ended with status {status}"
            if status < 0 or status == INTERRUPTED:
                raise RunStopped(what, hint="run this command again; the run continues from its last checkpoint")
            raise RunFailed(what, hint="fix the cause and run this command again; finished runs are kept")

    def events(self, event: str) -> list[dict[str, Any]]:
        """The rows of the run's metrics with one event, such as "step" or "end"."""
        path = self.folder / METRICS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if f'"event": "{event}"' in line[:40] and line.endswith("}")]
