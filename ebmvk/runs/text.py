"""Finds the text of a run again, and tells whether a text is the one that the run was trained
on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebmvk.config.schema import Config, DataConfig
from ebmvk.data.corpus import Corpus
from ebmvk.data.datasets import resolve
from ebmvk.data.files import Reading, exists, path_of, shown
from ebmvk.data.published import BUILTIN, FETCHABLE
from ebmvk.errors import CheckpointError, DataError

if TYPE_CHECKING:  # torch takes seconds: report an unreadable text first
    from ebmvk.runs.folder import OpenRun


def reading_of(data: DataConfig) -> Reading:
    """How a run's settings say that its text is to be read."""
    return Reading(tuple(data.include), data.raw, data.keep_bom)


def find_text(data: DataConfig) -> Corpus:
    """The text that the settings name. Raises DataError, ConfigError like `resolve`."""
    return resolve(data.dataset, data.data_dir, reading_of(data))


def own_text(config: Config, dataset: str | None = None, data_dir: Path | None = None) -> Corpus:
    """The text that a run of this configuration was trained on, read from where it is now.

    Args:
        dataset: where the text is now, if it has moved, in the form that --dataset takes. data_dir:
            the same for the folder of data sets.

    Raises:
        DataError: the text no longer exists, or is no longer text. ConfigError: the run's
            `--include` now matches nothing.
    """
    data = config.data
    name = dataset or data.dataset
    try:
        return resolve(name, data_dir or data.data_dir, reading_of(data))
    except DataError as error:
        if dataset or name in (BUILTIN, *FETCHABLE) or _is_there(name):
            raise
        known = bool(error.why) and os.sep not in name
        raise DataError(
            f"--dataset {shown(name)}: the text of this run does not exist",
            why=error.why if known else "it was moved, renamed or deleted, or the run comes from another machine",
            hint="say where it is now: --dataset PATH",
        ) from error


def _is_there(name: str) -> bool:
    """True if the path exists, with or without its ending `:CHARACTERS`."""
    return any(exists(path_of(part)) for part in (name, name.rpartition(":")[0] or name))


@dataclass(frozen=True)
class Comparison:
    """same: True if a text is the run's own; None if the run has no record of it. by: what was
    compared."""

    same: bool | None
    by: str

    def record(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {"own_text": self.same, "own_text_by": self.by}


NOT_ASKED = Comparison(None, "")
TEXT, TOKENS, NOTHING = "the text of the split", "the tokens of the training text", "nothing"


def compared(run: OpenRun, corpus: Corpus, split: str) -> Comparison:
    """Compares a split with that of the text which a run was trained on.

    Runs of earlier versions have no digests of their texts, only one of the tokens of the training
    text.
    """
    state = run.checkpoint.state
    saved = state.get("text")
    if isinstance(saved, dict) and saved:
        return Comparison(saved.get(split) == corpus.digest(split), TEXT)
    if "train" in state:
        from ebmvk.data.windows import encode_split
        from ebmvk.runs.folder import digest

        return Comparison(digest(encode_split(corpus, "train", run.tokenizer)) == state["train"], TOKENS)
    return Comparison(None, NOTHING)


def compared_by_text(run: OpenRun, corpus: Corpus, split: str) -> Comparison:
    """Like `compared`, but only by digests of the texts: without them the answer is unknown."""
    return compared(run, corpus, split) if run.checkpoint.state.get("text") else NOT_ASKED


def say_if_other(run: OpenRun, corpus: Corpus, split: str, say: Callable[[str], None]) -> Comparison:
    """Like `compared`, but warns if the text is a different one or can't be compared."""
    found = compared(run, corpus, split)
    if found.same is False:
        say(
            f"warning: {_named(run)} is not the text that {run.checkpoint.path} was trained on: {found.by} "
            f"differ{'s' * (found.by == TEXT)}. The figures are not for the run's own text."
        )
    elif found.same is None:
        say(f"warning: {run.checkpoint.path} does not record its training text: {_named(run)} may be another")
    return found


def check_own(run: OpenRun, corpus: Corpus, *splits: str) -> None:
    """Raises CheckpointError if a split isn't the text that the run was trained on."""
    if other := next((split for split in splits if compared(run, corpus, split).same is False), None):
        raise CheckpointError(
            f"{run.checkpoint.path}: --dataset {shown(corpus.source)} is not the text this run was trained on: "
            f"its {other} text differs",
            why="the files changed, or a different copy of them was found",
            hint="restore the old text, or say where it is: --dataset PATH",
        )


def _named(run: OpenRun) -> str:
    return f"--dataset {shown(run.config.data.dataset)}"
