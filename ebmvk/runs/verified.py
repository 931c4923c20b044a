"""Reads JSON and tensor files without trusting them.

A file must be a regular file of the recorded size and SHA-256. Its tensors must have a known dtype
and finite values. Anything else raises CheckpointError, which names the file and the tensor.
"""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ebmvk.errors import CheckpointError

_JSON_LIMIT = 1 << 28  # bytes; a manifest has a few bytes per tensor
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def describe(content: bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file's content, for a manifest and for `read_tensors`."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read_content(file: Path, *, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises OSError for another kind of file (a pipe never ends) or a larger one.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes; expected at most {limit}")
    return file.read_bytes()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or {} if the file holds another JSON value. Raises CheckpointError."""
    try:
        found = json.loads(read_content(file, limit=_JSON_LIMIT))
    except FileNotFoundError:
        raise damaged(file, "the file is missing, so the checkpoint is incomplete") from None
    except OSError as error:
        raise damaged(file, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"not valid JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def read_tensors(file: Path, entry: Any) -> dict[str, Tensor]:
    """The tensors of one file.

    entry: its size and digest, as `describe` gave them.

    Raises:
        CheckpointError: the file or one of its tensors isn't what was saved.
    """
    recorded = entry if isinstance(entry, dict) else {}
    size = recorded.get("bytes")
    try:
        if type(size) is not int or file.stat().st_size != size:
            raise damaged(file, f"it has {file.stat().st_size} bytes, but {size} were saved: truncated or replaced")
        content = read_content(file, limit=size)
    except OSError as error:
        raise damaged(file, error.strerror or str(error)) from None
    except MemoryError:
        raise damaged(file, f"not enough memory for its {size} bytes") from None
    if hashlib.sha256(content).hexdigest() != recorded.get("sha256"):
        raise damaged(file, "its SHA-256 differs from the saved one: the file is corrupt")
    return _parsed(content, file)


def _parsed(content: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors in safetensors bytes.

    file: where they come from, for messages. Raises CheckpointError.
    """
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise damaged(file, f"not valid safetensors ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise damaged(file, f"tensor '{name}' has dtype {tensor.dtype}, which checkpoints don't use")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise damaged(file, f"tensor '{name}' is not finite")
    return tensors


def damaged(
    file: Path, what: str, why: str = "the file was cut short, changed or written by something else"
) -> CheckpointError:
    """The error to raise for a bad file of a checkpoint or an exported model. file: resolved."""
    older = file.parent.parent
    return CheckpointError(
        f"{file}: {what}",
        why=why,
        hint=f"use an older checkpoint of {older}, or --resume, which takes the newest usable one"
        if older.name == "checkpoints"
        else "export, copy or download that folder again",
    )
