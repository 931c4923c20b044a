"""Errors that people can act on: what happened, the likely cause, and one thing to try.

Every error that bad input or a failing machine can cause is an `EbmvkError`. Commands print it and
end with its `exit_status`. That is 2 for every class here; an error that another process of the run
has raised keeps the status of that process. Ctrl-C ends a command with 130. Any other exception is
a bug; Python prints its traceback and the status is 1.
"""

from __future__ import annotations

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT, as shells expect


class EbmvkError(Exception):
    """Base of all typed errors.

    Args:
        what: what happened, with the flag, file or tensor and its value.
        hint: one thing to try, as an imperative sentence.
        why: the likely cause, if it isn't obvious from `what`.

    Attributes:
        exit_status: the status that a command exits with.
        told: True if another process of the run has printed the error already.
    """

    exit_status = 2
    told = False

    def __init__(self, what: str, *, hint: str, why: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join([self.what, *([f"  why: {self.why}"] if self.why else []), f"  try: {self.hint}"])


class ConfigError(EbmvkError):
    """Raised if a flag, a configuration file or a key is unknown, contradictory or out of range."""


class DataError(EbmvkError):
    """Raised if a text or a tokenizer is missing, empty, binary, not UTF-8 or too short."""


class CheckpointError(EbmvkError):
    """Raised if a checkpoint is missing, truncated or corrupt, or belongs to another
    configuration."""


class StorageError(EbmvkError):
    """Raised if writing failed, because the disk is full or the folder is read-only.

    Older files are intact.
    """


class FolderInUse(EbmvkError):
    """Raised if another process is writing into the run folder."""


class ArgumentError(EbmvkError, ValueError):
    """Raised if an argument has the wrong type, shape, dtype, device or values."""


class UnsupportedOperation(EbmvkError):
    """Raised if a training step uses something that the compiler can't put on a device.

    The message names the operation and the line that called it.
    """


class DeviceError(EbmvkError):
    """Raised if no device can be used, or if the device failed."""


class OutOfMemory(DeviceError):
    """Raised if memory could not be allocated. The message has the sizes."""


class BatchTooLarge(OutOfMemory):
    """Raised if the batch of a training step doesn't fit in memory.

    flags: settings that would make it fit.
    """

    def __init__(self, what: str, *, hint: str, flags: str) -> None:
        super().__init__(what, hint=hint)
        self.flags = flags


class DeviceLost(DeviceError):
    """Raised if the device was lost or hung. Results of the failed call are never returned."""


class RunFailed(EbmvkError):
    """Raised by a sweep if one of its training runs failed. The run, a process of its own, has
    printed the error.
    """


class RunStopped(RunFailed):
    """Raised by a sweep if one of its training runs was interrupted or killed. It can be
    continued."""


class RankLost(EbmvkError):
    """Raised if another process of the same run died or can't be reached."""


class NonFinite(EbmvkError):
    """Raised if a loss, gradient or result is NaN or infinite.

    The message names the first bad tensor.
    """
