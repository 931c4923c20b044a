"""Errors that end a run: each says what is saved and how to continue."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ebmvk.config.schema import Config
from ebmvk.errors import (
    ArgumentError,
    BatchTooLarge,
    DeviceError,
    NonFinite,
    OutOfMemory,
    RankLost,
    StorageError,
)
from ebmvk.monitoring.advice import lower_rate, why_it_diverged
from ebmvk.runs import steps
from ebmvk.training import lines
from ebmvk.training.passes import smaller_batches


@dataclass(frozen=True)
class Recovery:
    """Makes the errors of one run. folder: its run folder."""

    config: Config
    folder: Path

    def saved(self, error: RankLost | DeviceError, step: int, newest: int, save: Callable[[], object]) -> None:
        """Save the run after another process or the device has failed in the step after `step`, and
        let the error say so.

        newest: the step of the newest checkpoint. save: writes a checkpoint.
        """
        try:
            save()
        except DeviceError:  # the device has lost the weights
            kept = f"the newest checkpoint is of step {newest}" if newest else "the run has no checkpoint yet"
            error.what += f"; the weights of step {step} were on the device and are lost: {kept}"
            error.hint = self._resume() if newest else "start again in another --run-dir"
            return
        if isinstance(error, BatchTooLarge):
            error.what += "; what was learned before is saved"
        elif isinstance(error, RankLost):
            self.rank_lost(error, step)
        elif not isinstance(error, OutOfMemory):
            error.what += f"; the run is saved as it was after step {step}"
            error.hint = self._resume()

    def rank_lost(self, lost: RankLost, step: int) -> RankLost:
        """The error about a lost process; the run was saved after `step`."""
        lost.what += f"; the run is saved as it was after step {step}"
        lost.hint = f"{self._resume()}, with any number of processes"
        return lost

    def not_written(
        self, error: StorageError | OSError, step: int, newest: int, save: Callable[[], object]
    ) -> StorageError:
        """The error to raise if something could not be written after `step`.

        newest: the step of the newest checkpoint. save: writes a checkpoint; it is called if steps
        would be lost.
        """
        what, why, hint = str(error), "", "free some space"
        if isinstance(error, StorageError):
            what, why, hint = error.what, error.why, error.hint
        try:
            if step != newest:
                save()
            what += f"; the run is saved as it was after step {step}"
        except StorageError:
            saved = f"the newest one is of step {newest}" if newest else "the run has none yet"
            what += f"; a checkpoint of step {step} could not be written either: {saved}"
        hint = "free some space" if "--resume" in hint else hint
        return StorageError(what, why=why, hint=f"{hint}, then {self._resume()}")

    def out_of_memory(self, step: int, flags: str) -> BatchTooLarge:
        """The error if `step`, counted from 0, runs out of memory. flags: for a batch that fits."""
        what = f"step {step + 1}: out of memory with --batch-size {self.config.training.batch_size}"
        if not step:
            return BatchTooLarge(what, hint=f"start again in another --run-dir with {flags}", flags=flags)
        return BatchTooLarge(what, hint=f"{self._resume()} {flags}", flags=flags)

    def flags_that_fit(self, ranks: int, fits: Callable[[int], bool]) -> str:
        """Flags for smaller batches with the same number of windows per step.

        ranks: the number of processes. fits: tries a batch with a given number of windows. It isn't
        called with several processes, because the others can't take part.
        """
        windows = self.config.training.windows_per_step
        for rows in smaller_batches(self.config.training.batch_size, windows, ranks):
            flags = f"--batch-size {rows} --accumulation-steps {windows // rows}"
            if ranks > 1:
                return flags
            if fits(rows):
                return f"{flags}: a batch of {rows} has just fitted"
        twice = "" if self.config.model.gradient_checkpointing else "--gradient-checkpointing, or "
        return f"{twice}a new run with --seq-length {max(2, self.config.data.seq_length // 2)}"

    def non_finite(self, bad: str, step: int) -> NonFinite:
        """The error if something isn't finite in the step after `step`.

        bad: the name of a tensor, or the engine's message about a tensor that it refused.
        """
        # With the weights before this step, any rate gives the same result; with earlier ones
        # another rate may help.
        lr = lower_rate(self.config)
        older = [path for path in steps.step_folders(self.folder) if path.name != f"step-{step}"]
        return NonFinite(
            f"step {step + 1}: {lines.not_finite(bad)}; the weights are as they were after step {step}",
            why=why_it_diverged(self.config),
            hint=f"go back before it: --resume {shlex.quote(str(older[0]))} {lr}"
            if older
            else f"start again in another --run-dir with {lr}",
        )

    def diverged(self, error: ArgumentError, step: int) -> NonFinite:
        """The error if the engine refuses values of the model outside of a step, such as in an
        evaluation.
        """
        found = self.non_finite(error.what, step)
        found.what = f"step {step}: training diverged ({error.what}); what was saved before is intact"
        return found

    def _resume(self) -> str:
        return f"continue with --resume --run-dir {shlex.quote(str(self.folder))}"
