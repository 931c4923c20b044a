"""Planned programs on disk, so that another process needn't plan them again.

Each process traces a step, and the graph is part of the key, because a function's source alone
doesn't say what it does. The result of all later stages is saved. A file is written whole or not at
all, several processes may use the folder at once, and a damaged file is deleted and made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import ebmvk
from ebmvk.compute.codec import Unreadable, pack, unpack
from ebmvk.compute.plan import Plan
from ebmvk.host.cache_folder import cache_folder

if TYPE_CHECKING:
    from ebmvk.engine.recording import Recorder

MOST_BYTES = 256 << 20
"""The most bytes of all files together. The least recently read files are deleted first."""
FORGOTTEN_SECONDS = 3600.0
"""An unfinished file older than this belongs to a process that has ended."""
_SUFFIX, _PART = ".program", ".part"


def key_of(recorder: Recorder, graph: str, **settings: Any) -> str:
    """The key of a program, a hash of everything that the program depends on.

    Args:
        recorder: the device: its driver, its features and its limits.
        graph: the key of the traced graph.
        settings: of the compiler, as JSON values.
    """
    capabilities = recorder.backend.capabilities
    names = [name for name in dir(capabilities) if not name.startswith("_") and name not in {"index", "heaps"}]
    parts = {
        "graph": graph,
        "settings": settings,
        "code": code(),
        "versions": [ebmvk.__version__, torch.__version__, np.__version__, platform.python_version()],
        "torch": [str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()],
        "device": {name: str(own) for name in names if not callable(own := getattr(capabilities, name))},
        "limits": asdict(recorder.limits),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def code() -> str:
    """A hash of this package's kernels and of all its Python files, because models and operations
    define what they are compiled to."""
    root = Path(ebmvk.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.glob("_vulkan.*"))):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ProgramCache:
    """Files KEY.program in a folder, which is made with the first file. most: the most bytes of all
    files together."""

    folder: Path
    most: int = MOST_BYTES

    @staticmethod
    def default() -> ProgramCache | None:
        """The cache of this user; None if nothing is kept."""
        folder = cache_folder()
        return None if folder is None else ProgramCache(folder / "programs")

    def load(self, key: str) -> Plan | None:
        """The program of a key, if it is there. Warns if its file is damaged, and deletes it."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        try:
            made = unpack(key, data)
        except Unreadable as error:
            with suppress(OSError):
                path.unlink()
            warnings.warn(f"{path}: {error}; the program is compiled again", RuntimeWarning, stacklevel=2)
            return None
        with suppress(OSError):
            os.utime(path)  # marks the file as just used
        return made

    def store(self, key: str, made: Plan) -> None:
        """Saves a program, unless the folder can't be written or the program is larger than the
        whole cache may be."""
        data = pack(key, made)
        if len(data) > self.most:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(_PART, dir=self.folder)
        except OSError:
            return
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            part.replace(self._path(key))
        except OSError:
            with suppress(OSError):
                part.unlink()
            return
        self._make_room(key)

    def sizes(self) -> Iterator[tuple[Path, float, int]]:
        """The files of programs with the time of their last use and their size."""
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                found = path.stat()
                yield path, found.st_mtime, found.st_size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self, newest: str) -> None:
        """Deletes the oldest files, but not `newest`, until the cache is small enough. Other
        processes may do the same at the same time."""
        files = sorted(self.sizes(), key=lambda file: (file[0] != self._path(newest), -file[1]))
        room = self.most
        for path, _, size in files:
            room -= size
            if room < 0:
                with suppress(OSError):
                    path.unlink()
        for path in self.folder.glob(f"*{_PART}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS:
                    path.unlink()
