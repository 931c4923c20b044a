"""What `ebmvk train` makes of its flags, without training."""

from __future__ import annotations

from ebmvk.cli import train
from ebmvk.training.job import Job


def job(*args: str) -> Job:
    """The job that `ebmvk train` makes of these flags."""
    return train.asked(args)[1]
