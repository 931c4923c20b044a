"""What a checkpoint's state.json says: format, step, files with their digests, training state.

The manifest is written last and carries the SHA-256 of its own content. A folder with a valid
manifest is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebmvk.data.tokenizer import WEIGHTS_FILE
from ebmvk.errors import CheckpointError
from ebmvk.runs.verified import damaged, read_json

FORMAT = 1
MODEL, STATE, SOC, MANIFEST = WEIGHTS_FILE, "state.safetensors", "soc.safetensors", "state.json"
STEP = re.compile(r"step-(\d+)")
"""Name of a checkpoint's folder."""


def manifest_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its own digest. values: JSON values; the manifest has them in the form in
    which they will be read back.
    """
    manifest: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **values}, allow_nan=False))
    return manifest | {"sha256": _digest(manifest)}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder. Raises CheckpointError if it is missing or invalid."""
    file = path / MANIFEST
    manifest = read_json(file)
    wanted = {"format": int, "step": int, "files": dict, "state": dict}
    if any(type(manifest.get(k)) is not t for k, t in wanted.items()):
        raise damaged(file, f"not a checkpoint's manifest: it needs {', '.join(wanted)}")
    try:
        whole = manifest.get("sha256", "") in ("", _digest(manifest))  # older checkpoints have no digest
    except RecursionError:
        whole = False
    if not whole:
        raise damaged(file, "its content doesn't match its own SHA-256: the file is corrupt")
    if manifest["format"] != FORMAT:
        raise damaged(file, f"it has format {manifest['format']}; this version reads format {FORMAT}")
    if path.name != f"step-{manifest['step']}" and (manifest["step"] < 0 or STEP.fullmatch(path.name)):
        raise damaged(file, f"it says step {manifest['step']}, but the folder is {path.name}")
    for name in manifest["files"].keys() - {MODEL, STATE, SOC}:
        raise damaged(file, f"it names a file {name!r}, which checkpoints don't have")
    return {"optimizer": None} | manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything in a manifest but the digest itself."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def files_of(path: Path) -> dict[str, Any]:
    """Sizes and digests of a checkpoint's files; {} if it has no valid manifest."""
    with contextlib.suppress(CheckpointError):
        return dict(read_manifest(path)["files"])
    return {}


def is_kept(path: Path) -> bool:
    """True if a checkpoint was saved to be kept, or if damage to its manifest hides that.

    Damage must never delete weights that should be kept, so the answer is False only if the
    manifest is valid or missing.
    """
    try:
        (path / MANIFEST).lstat()
        return read_manifest(path).get("keep") is True
    except FileNotFoundError:
        return False
    except (OSError, CheckpointError):
        return True
