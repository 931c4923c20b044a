"""The folder that keeps compiled programs and pipelines between runs. They can be made again at any
time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

VARIABLE = "EBMVK_CACHE_DIR"
OFF = "off"


def cache_folder() -> Path | None:
    """The folder, which needn't exist; None if nothing is kept.

    `EBMVK_CACHE_DIR` names it; `off` keeps nothing. Otherwise it is `ebmvk` in `XDG_CACHE_HOME` or
    in `~/.cache`; without a home folder nothing is kept.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == OFF else Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebmvk"
    except RuntimeError:
        return None


def cached() -> str:
    """One line on the folder and what is in it now, for people."""
    folder = cache_folder()
    if folder is None:
        return (
            f"nothing is kept: {VARIABLE} is {OFF}" if os.environ.get(VARIABLE) else "nothing is kept: no home folder"
        )
    sizes = []
    for pattern in ("pipelines-*", "programs/*"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # another process may delete it
                sizes.append(path.stat().st_size)
    return f"{folder}: {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"
