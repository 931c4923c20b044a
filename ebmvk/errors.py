"""Errors people can act on: what happened, why it is likely, and one thing to try.

Every error that bad input or a failing machine can cause is an `EbmvkError`. Commands print it in three lines
and end with `exit_status`; nothing else catches it on the way.
"""

from __future__ import annotations

INTERRUPTED = 130  # exit status, 128 + SIGINT, as shells expect


class EbmvkError(Exception):
    """Base of all typed errors.

    Args:
        what: what happened, naming the flag, file or tensor and its value.
        hint: one thing to try, as an imperative sentence.
        why: the likely cause, where it is not obvious from `what`.

    told: another process of the run has printed it.
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
    """A flag, a configuration file or a key in it is unknown, contradictory or out of range."""


class DataError(EbmvkError):
    """A corpus or tokenizer is missing, empty, binary, not UTF-8 or too short."""


class CheckpointError(EbmvkError):
    """A checkpoint is missing, truncated, corrupt, or of another configuration."""


class StorageError(EbmvkError):
    """Writing failed: the disk is full, the folder is read-only. What was there before is intact."""


class FolderInUse(EbmvkError):
    """Another process writes into the run folder."""


class ArgumentError(EbmvkError, ValueError):
    """An operation got an argument of the wrong shape, dtype or device, or with values it must not have."""


class DeviceError(EbmvkError):
    """No usable device, or the device failed."""


class OutOfMemory(DeviceError):
    """An allocation on the device failed. Sizes are in the message."""


class BatchTooLarge(OutOfMemory):
    """A training step's batch does not fit; `flags` say what was seen to."""

    def __init__(self, what: str, *, hint: str, flags: str) -> None:
        super().__init__(what, hint=hint)
        self.flags = flags


class DeviceLost(DeviceError):
    """The device was lost or hung. No result of the failed submission is ever returned."""


class RunFailed(EbmvkError):
    """A training run in a process of its own ended with an error, which it has printed."""


class RunStopped(RunFailed):
    """A training run in a process of its own was interrupted or killed: it can go on."""


class RankLost(EbmvkError):
    """Another process of a run of several died or cannot be reached."""


class NonFinite(EbmvkError):
    """A loss, gradient or result is NaN or infinite; the first bad tensor is named."""
