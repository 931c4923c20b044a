"""Writes files so that a crash or a full disk leaves the old content or the new, never a part.

New content is written beside its target, synced to the disk, and renamed into place. A failed write
raises StorageError, which says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from ebmvk.errors import StorageError


def write_file(path: Path, content: bytes) -> None:
    """Write one file and sync it. Raises OSError if the disk is full or the folder is read-only."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Replace one file.

    A reader sees the old content or the new, never a part. Raises StorageError.
    """
    beside = path.with_name(f".{path.name}.unfinished")
    try:
        make_folder(path.parent)
        write_file(beside, content)
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise storage_error(path, error, "writing") from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Each is synced, because a power cut could otherwise undo it
    with all its files.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, if the system can.

    Windows cannot open a folder, and some network file systems cannot sync one.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError, doing: str, then: str = "continue with --resume") -> StorageError:
    """The error to raise when `path` could not be written.

    doing: what failed, such as "saving the checkpoint"; then: what to do once there is space.
    """
    return StorageError(
        f"{doing}: {path} could not be written: {error.strerror or error}",
        why="the disk is full or the folder is read-only; what was saved before is intact",
        hint=f"free some space or make the folder writable, then {then}",
    )
