"""Continuing from a checkpoint: which of its figures can still be compared, and what happens to
later checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ebmvk.config.schema import Config
from ebmvk.errors import CheckpointError
from ebmvk.model import dropout
from ebmvk.runs import steps
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.manifest import STEP
from ebmvk.runs.metrics import read_history
from ebmvk.runs.progress import Progress
from ebmvk.training.streams import Streams


def comparable(
    found: Checkpoint, progress: Progress, folder: Path, streams: Streams, say: Callable[[str], None]
) -> Progress:
    """The progress of a checkpoint, without figures that can't be compared with evaluations to
    come.

    If the best evaluation used another validation text, it is dropped, and `say` reports that. If
    an earlier version didn't count the evaluations since the best one, they are counted in
    metrics.jsonl.
    """
    if _validation_changed(found, folder, streams):
        say(
            "validation  the text has changed, and losses on two texts cannot be compared: the best checkpoint and "
            "--patience start again"
        )
        return dataclasses.replace(progress, best_step=None, best_nats=None, best_tokens=None, since_best=None)
    if progress.best_step is None or progress.since_best is not None:
        return progress
    evaluated = {row["step"] for row in read_history(folder).evals}
    since = len([step for step in evaluated if progress.best_step < step <= progress.step])
    return dataclasses.replace(progress, since_best=since)


def _validation_changed(found: Checkpoint, folder: Path, streams: Streams) -> bool:
    """True if the checkpoint was saved with another validation text.

    Digests are compared. Checkpoints of earlier versions have none; for these, the numbers of
    tokens are compared.
    """
    if saved := (found.state.get("text") or {}).get("validation"):
        return bool(saved != streams.text.get("validation"))
    now = len(streams.validation) - 1
    sizes = read_history(folder).facts.get("text", {}).get("validation", {})
    return bool(sizes.get("tokens", now) != now)


def compare_masks(found: Checkpoint, config: Config, say: Callable[[str], None]) -> None:
    """Say so if a resumed run draws other dropout masks than its first steps did.

    A resumed run always draws the masks of this version. Masks of other versions have the same rate
    and the same law, but not the same bits.

    Raises:
        CheckpointError: the checkpoint is of a version whose masks this one doesn't know.
    """
    kept = found.state.get("masks")
    version = kept if type(kept) is int else 1
    if version > dropout.VERSION:
        raise CheckpointError(
            f"{found.path}: it was trained with dropout masks of version {version}; this program draws version "
            f"{dropout.VERSION}",
            why="a newer version of ebmvk wrote it",
            hint="resume with that version, or update this one",
        )
    if version < dropout.VERSION and config.model.dropout > 0:
        say(
            f"dropout     an earlier version drew the masks up to step {found.step}; this version draws them from "
            "here on: it drops as many elements, but different ones"
        )


def take_over(found: Checkpoint, progress: Progress, folder: Path) -> tuple[Progress, list[Path]]:
    """Make a checkpoint the newest of its run: set later ones aside, and update `latest` and
    `best`.

    Returns the progress, without its best step if that checkpoint is gone; and the folders that
    were set aside.
    """
    aside = steps.supersede(folder, found.step)
    if STEP.fullmatch(found.path.name):  # not one that was itself set aside
        steps.point(folder, "latest", found.path.name)
    best = f"step-{progress.best_step}"
    if (folder / "checkpoints" / best).is_dir():
        steps.point(folder, "best", best)
    else:  # set aside or pruned, so the next evaluation will be the best one
        (folder / "best").unlink(missing_ok=True)
        progress = dataclasses.replace(progress, best_step=None, best_nats=None, best_tokens=None)
    return progress, aside
