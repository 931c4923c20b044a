"""The checkpoints of a run: lists them, finds those that `latest` and `best` name, and deletes or
sets aside others.

A run folder holds checkpoints/step-N/ and two small files beside it, `latest` and `best`, that each
name a step.
"""

from __future__ import annotations

import contextlib
import shutil
from itertools import count
from pathlib import Path

from ebmvk.errors import CheckpointError
from ebmvk.runs.atomic import storage_error, write_atomic
from ebmvk.runs.manifest import MANIFEST, STEP, is_kept
from ebmvk.runs.verified import read_content

POINTERS = {"latest": "latest", "best": "best", "ckpt_last": "latest", "ckpt_best": "best"}
"""{name: file of a run folder that names a checkpoint}; the last two are older names."""


def step_folders(run: Path) -> list[Path]:
    """The finished checkpoint folders of a run, newest first.

    Raises CheckpointError if they can't be listed.
    """
    folder = run / "checkpoints"
    try:
        recover(folder)
        found = [path for path in folder.iterdir() if STEP.fullmatch(path.name)] if folder.is_dir() else []
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error.strerror or error}", hint="make it readable, or name another run"
        ) from None
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def point(run: Path, name: str, step_folder: str) -> None:
    """Make the file `name` ('latest' or 'best') of a run folder name one checkpoint.

    Raises StorageError.
    """
    write_atomic(run / name, (f"checkpoints/{step_folder}\n").encode())


def _pointed(run: Path, name: str) -> str | None:
    """The step folder that `latest` or `best` names; None if the file is missing or invalid."""
    try:
        text = read_content(run / name, limit=1000).decode("ascii").strip().removeprefix("checkpoints/")
    except (OSError, ValueError):
        return None
    return text if STEP.fullmatch(text) else None


# ---- finding one ---------------------------------------------------------------------------------


def locate(path: Path, flag: str) -> tuple[Path, Path]:
    """(run folder, checkpoint folder) that a checkpoint argument means.

    The argument is a run folder (its latest checkpoint), one checkpoint folder, or RUN/best,
    RUN/latest and their older names. The run folder equals the argument only in the first case.

    Raises:
        CheckpointError: the checkpoint does not exist; the message names the flag and the path.
    """
    try:
        path = path.resolve()
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # the name is too long, links form a circle, a NUL character
        raise _not_found(flag, path, f"it cannot be looked up ({error})") from None
    if is_folder and is_checkpoint(path):
        return path.parent.parent, path
    if is_folder and (folders := step_folders(path)):
        named = [path / "checkpoints" / name for name in [_pointed(path, "latest")] if name]
        return path, next((folder for folder in named if folder.is_dir()), folders[0])
    if names_checkpoint(path) and (name := _pointed(path.parent, POINTERS[path.name])):
        if (at := path.parent / "checkpoints" / name).is_dir():
            return path.parent, at
        raise _not_found(flag, path, f"it names {name}, which does not exist")
    raise _not_found(flag, path, "it holds no checkpoint" if is_folder else "there is no such folder")


def names_checkpoint(path: Path) -> bool:
    """True for RUN/best, RUN/latest or an older name of one, unless it is a folder. path:
    resolved."""
    return path.name in POINTERS and not path.is_dir()


def is_checkpoint(path: Path) -> bool:
    """True if a folder is one checkpoint, even a damaged one. path: resolved."""
    named = STEP.fullmatch(path.name) is not None and path.parent.name == "checkpoints"
    return named or (path / MANIFEST).is_file()


def _not_found(flag: str, path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{flag} {path}: {what}",
        hint="give a run folder such as runs/NAME, runs/NAME/best, or one of its checkpoints/step-N",
    )


# ---- deleting and setting aside ------------------------------------------------------------------


def prune(run: Path, keep_last: int) -> list[Path]:
    """Delete all but the `keep_last` newest checkpoints, and return the deleted ones.

    Checkpoints that `best` or `latest` names, or that were saved to be kept, always stay.
    """
    named = {_pointed(run, "best"), _pointed(run, "latest")}
    gone = [path for path in step_folders(run)[keep_last:] if path.name not in named and not is_kept(path)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def supersede(run: Path, step: int) -> list[Path]:
    """Set aside the checkpoints after `step`, because the run now continues differently from there.

    They stay on the disk as step-N.superseded and can still be evaluated by path. A folder of that
    name is deleted first; if it was saved to be kept, the new one becomes step-N.superseded-2
    instead.

    Raises:
        StorageError: a folder cannot be renamed.
    """
    later = [path for path in step_folders(run) if int(path.name[5:]) > step]
    sweep(run / "checkpoints")  # otherwise `recover` would put back what a later step had replaced
    for path in later:
        names = (f"{path.name}.superseded{f'-{n}' if n > 1 else ''}" for n in count(1))
        aside = next(aside for name in names if not is_kept(aside := path.with_name(name)))
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        except OSError as error:
            raise storage_error(path, error, "setting a later checkpoint aside") from error
    return later


# ---- saves that were killed ----------------------------------------------------------------------


def recover(folder: Path) -> None:
    """Put back steps that a save had moved aside when it was killed."""
    for aside in folder.glob(".step-*.replaced"):
        with contextlib.suppress(OSError):  # in a read-only folder it stays aside
            if not _replaced_by(aside).exists():
                aside.rename(_replaced_by(aside))


def sweep(folder: Path) -> None:
    """Delete what killed saves have left behind and nothing needs."""
    replaced = (aside for aside in folder.glob(".step-*.replaced") if _replaced_by(aside).exists())
    for left in (*folder.glob(".step-*.unfinished"), *replaced):
        shutil.rmtree(left, ignore_errors=True)


def _replaced_by(aside: Path) -> Path:
    return aside.with_name(aside.name.removeprefix(".").removesuffix(".replaced"))
