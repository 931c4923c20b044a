"""How to start a command of ebmvk from the shell that started this process."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

WRAPPER = "EBMVK_RUN"
"""The environment variable where the script `./run` leaves its own path."""


def invocation(command: str) -> str:
    """The words that start `command`, to be pasted into the shell: './run train', 'ebmvk
    train', …"""
    if wrapper := os.environ.get(WRAPPER):
        return f"{shlex.quote(wrapper)} {command}"
    here = Path(sys.executable).parent
    if _found("ebmvk") == here:
        return f"ebmvk {command}"
    python = "python" if _found("python") == here else shlex.quote(sys.executable)
    return f"{python} -m ebmvk {command}"


def _found(program: str) -> Path | None:
    """The folder where the shell finds a program."""
    path = shutil.which(program)
    return Path(path).parent if path else None
