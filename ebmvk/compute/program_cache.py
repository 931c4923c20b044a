"""Planned programs on disk, so that another process needn't plan them again.

A step is traced in each process, and its graph is part of the key: a function's text doesn't say
what it will do. What comes after the trace is saved. A file is written whole or not at all, several
processes may use the folder at once, and a damaged file is deleted and made again.
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
"""The size that the files may have together. Those that nobody has read for the longest time go
first."""
FORGOTTEN_SECONDS = 3600.0
"""The age from which on a file that is still being written belongs to a process that has ended."""
_SUFFIX, _PART = ".program", ".part"


def key_of(recorder: Recorder, graph: str, **settings: Any) -> str:
    """The key of a program: all that it depends on.

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
    """A hash of this package: all of its Python, since models and operations say what they are
    compiled to, and its kernels."""
    root = Path(ebmvk.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.glob("_vulkan.*"))):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ProgramCache:
    """Files KEY.program in a folder, which is made at the first one. most: bytes of all of them."""

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
            os.utime(path)  # it was used: others are older
        return made

    def store(self, key: str, made: Plan) -> None:
        """Keeps a program. Nothing happens if the folder can't be written, or if the program is
        larger than all of the cache may be."""
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
        """Other processes may do the same at the same time."""
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
