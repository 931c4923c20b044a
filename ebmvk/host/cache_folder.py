"""The folder for what is made once and kept between runs, and can be made again at any time:
compiled programs and pipelines."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EBMVK_CACHE_DIR"
OFF = "off"


def cache_folder() -> Path | None:
    """The folder, which needn't exist; None if nothing is to be kept.

    `EBMVK_CACHE_DIR` names it, or is `off`. Otherwise it is `ebmvk` in `XDG_CACHE_HOME` or in
    `~/.cache`; without a home folder there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == OFF else Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebmvk"
    except RuntimeError:
        return None
