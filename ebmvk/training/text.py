"""The text of a run: found again, and compared with what the run was trained on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebmvk.config import Config, DataConfig
from ebmvk.data.datasets import BUILTIN, FETCHABLE, Corpus, path_of, resolve
from ebmvk.data.files import Reading, exists, shown
from ebmvk.errors import CheckpointError, DataError

if TYPE_CHECKING:  # torch takes seconds, and a text that cannot be read is said before
    from ebmvk.training.workspace import OpenRun


def reading_of(data: DataConfig) -> Reading:
    """How the settings of a run say that its text is read."""
    return Reading(tuple(data.include), data.raw, data.keep_bom)


def find_text(data: DataConfig) -> Corpus:
    """The text that settings name. Raises DataError, ConfigError: as `resolve`."""
    return resolve(data.dataset, data.data_dir, reading_of(data))


def own_text(config: Config, dataset: str | None = None, data_dir: Path | None = None) -> Corpus:
    """The text that a run of this configuration was trained on, where it lies now.

    Args:
        dataset: where, if it has moved; as --dataset. data_dir: the same of the folder of data sets.

    Raises:
        DataError: it is no longer there, or no longer text. ConfigError: `--include` of the run matches nothing now.
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
            f"--dataset {shown(name)}: the text of this run is not there",
            why=error.why if known else "it was moved, renamed or deleted, or the run comes from another machine",
            hint="say where it lies now: --dataset PATH",
        ) from error


def _is_there(name: str) -> bool:
    """A path, or one with `:CHARACTERS` behind it."""
    return any(exists(path_of(part)) for part in (name, name.rpartition(":")[0] or name))


@dataclass(frozen=True)
class Comparison:
    """same: whether a text is the run's own; None where the run does not say. by: what was compared."""

    same: bool | None
    by: str

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return {"own_text": self.same, "own_text_by": self.by}


NOT_ASKED = Comparison(None, "")
TEXT, TOKENS, NOTHING = "the text of the split", "the tokens of the training text", "nothing"


def compared(run: OpenRun, corpus: Corpus, split: str) -> Comparison:
    """Whether a split is that of the text which a run was trained on.

    A run of an earlier version has no digests of its texts, but one of the tokens of its training text.
    """
    state = run.checkpoint.state
    saved = state.get("text")
    if isinstance(saved, dict) and saved:
        return Comparison(saved.get(split) == corpus.digest(split), TEXT)
    if "train" in state:
        from ebmvk.data.windows import encode_split
        from ebmvk.training.workspace import digest

        return Comparison(digest(encode_split(corpus, "train", run.tokenizer)) == state["train"], TOKENS)
    return Comparison(None, NOTHING)


def compared_by_text(run: OpenRun, corpus: Corpus, split: str) -> Comparison:
    """`compared`, where the run has digests of its texts; otherwise unknown, without a look at the tokens."""
    return compared(run, corpus, split) if run.checkpoint.state.get("text") else NOT_ASKED


def say_if_other(run: OpenRun, corpus: Corpus, split: str, say: Callable[[str], None]) -> Comparison:
    """`compared`, and a line for people where it is another text, or cannot be compared."""
    found = compared(run, corpus, split)
    if found.same is False:
        say(
            f"warning: {_named(run)} is not the text that {run.checkpoint.path} was trained on: {found.by} "
            f"differ{'s' * (found.by == TEXT)}. Figures are of another text than the run's own."
        )
    elif found.same is None:
        say(f"warning: {run.checkpoint.path} does not say which text it was trained on: {_named(run)} may be another")
    return found


def check_own(run: OpenRun, corpus: Corpus, *splits: str) -> None:
    """Raises CheckpointError where one of the splits is not that of the text which a run was trained on."""
    if other := next((split for split in splits if compared(run, corpus, split).same is False), None):
        raise CheckpointError(
            f"{run.checkpoint.path}: --dataset {shown(corpus.source)} is not the text this run was trained on: "
            f"its {other} text differs",
            why="the files changed, or another version of them was found",
            hint="bring the old text back, or say where it lies: --dataset PATH",
        )


def _named(run: OpenRun) -> str:
    return f"--dataset {shown(run.config.data.dataset)}"
