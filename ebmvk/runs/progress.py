"""How far a run has come, which its checkpoints store along with weights and optimiser."""

from __future__ import annotations

from dataclasses import dataclass

from ebmvk.errors import CheckpointError
from ebmvk.runs.checkpoint import Checkpoint


@dataclass(frozen=True)
class Progress:
    """Counts of a run so far.

    step: number of steps done. windows, tokens: seen so far. seconds: time spent in steps.
    evaluated: the last step that was evaluated. best_step, best_nats, best_tokens: the best
    evaluation, in nats per token over best_tokens tokens. since_best: number of evaluations since
    then; None in checkpoints of an earlier version, which did not count them.
    """

    step: int = 0
    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    best_step: int | None = None
    best_nats: float | None = None
    best_tokens: int | None = None
    since_best: int | None = None

    @classmethod
    def of(cls, found: Checkpoint) -> Progress:
        """The progress in a checkpoint. Raises CheckpointError if its state has no valid one."""
        saved = found.state.get("progress")
        try:
            progress = cls(**saved)  # type: ignore[arg-type]
            counts = (progress.step, progress.windows, progress.tokens, progress.evaluated)
            whole = all(type(count) is int and count >= 0 for count in counts) and progress.step == found.step
            best = {(int, progress.best_step), (float, progress.best_nats), (int, progress.best_tokens)}
            best |= {(int, progress.since_best)}
            whole = whole and all(value is None or type(value) is kind for kind, value in best)
            whole = whole and type(progress.seconds) is float
        except TypeError:
            whole = False
        if not whole:
            raise CheckpointError(
                f"{found.path}: `progress` in its state is {saved!r}; expected that of a training run",
                why="the file was changed or written by something else",
                hint="use an older checkpoint",
            )
        return progress
