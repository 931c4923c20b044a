"""Checkpoints: safetensors and JSON, written beside and renamed, so that a kill or a full disk loses nothing.

A run folder holds checkpoints/step-N/ (model.safetensors, state.safetensors, soc.safetensors where splats are
consolidated during training, state.json) and two small files beside it, `latest` and `best`, that name one of them.
state.json is written last and carries the size and SHA-256 of the others, so a folder with a valid state.json is
complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from ebmvk.errors import CheckpointError, StorageError

FORMAT = 1
MODEL, STATE, SOC, MANIFEST = "model.safetensors", "state.safetensors", "soc.safetensors", "state.json"
STEP = re.compile(r"step-(\d+)")
_TENSOR = "$tensor"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, verified. `state` is JSON-able; `optimizer` is a tree of tensors and numbers;
    `soc` is empty where the run consolidates no splats."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: Any
    state: dict[str, Any]
    soc: dict[str, Tensor]


# ---- writing -------------------------------------------------------------------------------------------------------


def save(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: Any,
    state: Mapping[str, Any],
    soc: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write checkpoints/step-N and let `latest` name it.

    Args:
        optimizer: nested dicts and lists of tensors and JSON-able values.
        state: JSON-able values to come back from `load`.
        soc: tensors of the consolidation, a file of their own.

    Raises:
        StorageError: nothing that was there before is touched, and the unfinished folder is removed.
    """
    target = run / "checkpoints" / f"step-{step}"
    unfinished = target.with_name(f".{target.name}.unfinished")
    tensors: dict[str, Tensor] = {}
    tree = pack(optimizer, tensors)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        files = {
            MODEL: _describe(unfinished / MODEL, dump_tensors(weights)),
            STATE: _describe(unfinished / STATE, dump_tensors(tensors)),
        }
        if soc is not None:
            files[SOC] = _describe(unfinished / SOC, dump_tensors({k: v.contiguous() for k, v in soc.items()}))
        manifest = {"format": FORMAT, "step": step, "files": files, "optimizer": tree, "state": dict(state)}
        write_file(unfinished / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False).encode())
        sync_folder(unfinished)
        _swap(unfinished, target)
        point(run, "latest", target.name)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise storage_error(target, error, "saving the checkpoint") from error
    return target


def _swap(unfinished: Path, target: Path) -> None:
    """Rename into place; an older folder of the same step is moved aside first, as rename can't replace a full one."""
    aside = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    unfinished.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _describe(path: Path, content: bytes) -> dict[str, Any]:
    write_file(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_file(path: Path, content: bytes) -> None:
    """Write and fsync one file. OSError when the disk is full or the folder read-only."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Replace one file so that a reader sees the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(beside, content)
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise storage_error(path, error, "writing") from error


def storage_error(path: Path, error: OSError, doing: str) -> StorageError:
    """A typed error for a failed write to `path`."""
    return StorageError(
        f"{doing}: {path} could not be written: {error.strerror or error}",
        why="the disk is full or the folder is read-only; what was saved before is intact",
        hint="free some space or make the folder writable, then continue with --resume",
    )


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point(run: Path, name: str, step_folder: str) -> None:
    """Let the file `name` ('latest' or 'best') of a run folder name one checkpoint."""
    write_atomic(run / name, (f"checkpoints/{step_folder}\n").encode())


def prune(run: Path, keep_last: int) -> list[Path]:
    """Delete all but the `keep_last` newest checkpoints, never the ones `best` and `latest` name."""
    kept = {_pointed(run, "best"), _pointed(run, "latest")}
    gone = [path for path in step_folders(run)[keep_last:] if path.name not in kept]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def supersede(run: Path, step: int) -> list[Path]:
    """Set aside the checkpoints after `step`, from which a run continues: they belong to another future.

    They stay on the disk as step-N.superseded and can still be evaluated by path.
    """
    later = [path for path in step_folders(run) if int(path.name[5:]) > step]
    for path in later:
        aside = path.with_name(f"{path.name}.superseded")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        except OSError as error:
            raise storage_error(path, error, "setting a later checkpoint aside") from error
    return later


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "o") -> Any:
    """The tree with each tensor moved to `tensors` and replaced by its key; the rest must be JSON-able."""
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        # JSON has only string keys, while optimisers key their states by number: keep (key, value) pairs.
        return {"$items": [[key, pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]
    return tree


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack` (tuples come back as lists)."""
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    return {key: unpack(value, tensors) for key, value in tree["$items"]}


# ---- reading -------------------------------------------------------------------------------------------------------


def step_folders(run: Path) -> list[Path]:
    """The finished checkpoint folders of a run, newest first."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _pointed(run: Path, name: str) -> str | None:
    """The step folder's name that `latest` or `best` holds; None when the file is missing or not one of ours."""
    try:
        text = (run / name).read_text(encoding="ascii").strip().removeprefix("checkpoints/")
    except (OSError, UnicodeDecodeError):
        return None
    return text if STEP.fullmatch(text) else None


def locate(path: Path, flag: str) -> tuple[Path, Path]:
    """(run folder, checkpoint folder) of a checkpoint argument: a run folder (its latest) or one checkpoint folder.

    Raises:
        CheckpointError: naming the flag and the path.
    """
    path = path.resolve()
    if path.is_dir() and ((path / MANIFEST).is_file() or STEP.match(path.name)):
        return path.parent.parent, path
    if path.is_dir() and (folders := step_folders(path)):
        named = [path / "checkpoints" / name for name in [_pointed(path, "latest")] if name]
        return path, next((folder for folder in named if folder.is_dir()), folders[0])
    reason = "it holds no checkpoint" if path.is_dir() else "there is no such folder"
    raise CheckpointError(
        f"{flag} {path}: {reason}", hint="give a run folder such as runs/NAME, or one of its checkpoints/step-N"
    )


def newest_complete(run: Path, flag: str, say: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint of a run that verifies; `say` is told of each one that was skipped, and why.

    Args:
        flag: what named the run, for messages.

    Raises:
        CheckpointError: when the run has none.
    """
    reason: CheckpointError | None = None
    for path in step_folders(run):
        try:
            found = load(path)
        except CheckpointError as error:
            reason = error
            say(f"skipped {path.name}: {error.what}")
            continue
        if reason is not None:
            say(f"continuing from {found.path.name}, the newest usable checkpoint")
        return found
    raise CheckpointError(
        f"{flag} {run}: no usable checkpoint",
        why=reason.what if reason else "the run was stopped before its first checkpoint",
        hint="start a new run with another --run-dir",
    )


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        CheckpointError: naming the file or the tensor that is missing, truncated, changed or not finite.
    """
    manifest = _manifest(path)
    model = _tensors(path, MODEL, manifest["files"])
    state = _tensors(path, STATE, manifest["files"])
    soc = _tensors(path, SOC, manifest["files"]) if SOC in manifest["files"] else {}
    for file, tensors in ((MODEL, model), (STATE, state), (SOC, soc)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise _bad(path / file, f"tensor '{name}' is not finite")
    try:
        optimizer = unpack(manifest["optimizer"], state)
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(path / MANIFEST, f"the optimiser's state does not fit {STATE}: {error}") from None
    return Checkpoint(path, manifest["step"], model, optimizer, manifest["state"], soc)


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise _bad(file, "the file is missing, so the checkpoint is incomplete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(file, f"not valid JSON ({error})") from None
    wanted = {"format": int, "step": int, "files": dict, "state": dict}
    if not isinstance(manifest, dict) or any(not isinstance(manifest.get(k), t) for k, t in wanted.items()):
        raise _bad(file, f"not a checkpoint's manifest: it needs {', '.join(wanted)}")
    if manifest["format"] != FORMAT:
        raise _bad(file, f"format {manifest['format']}, this version reads {FORMAT}")
    if path.name != f"step-{manifest['step']}" and STEP.fullmatch(path.name):
        raise _bad(file, f"says step {manifest['step']}, the folder is {path.name}")
    return manifest | {"optimizer": manifest.get("optimizer")}


def _tensors(path: Path, name: str, files: Mapping[str, Any]) -> dict[str, Tensor]:
    file = path / name
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _bad(file, error.strerror or str(error)) from None
    entry = files.get(name)
    said = entry if isinstance(entry, dict) else {}
    if len(content) != said.get("bytes"):
        raise _bad(file, f"{len(content)} bytes where {said.get('bytes')} were saved: truncated or replaced")
    if hashlib.sha256(content).hexdigest() != said.get("sha256"):
        raise _bad(file, "its SHA-256 is not the saved one: corrupt")
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _bad(file, f"not valid safetensors ({error})") from None


def _bad(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {what}",
        why="the file was cut short, changed or written by something else",
        hint=f"use an older checkpoint of {file.parent.parent}, or --resume, which takes the newest usable one",
    )


def restore(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights after checking that names, shapes and dtypes are the model's.

    Raises:
        CheckpointError: naming the first tensor that does not fit; the model is unchanged.
    """
    own = model.state_dict()
    for name in [*own, *checkpoint.model]:
        have, want = checkpoint.model.get(name), own.get(name)
        if have is None or want is None:
            raise _misfit(checkpoint, f"tensor '{name}' is {'missing' if have is None else 'not in the model'}")
        if have.shape != want.shape or have.dtype != want.dtype:
            raise _misfit(
                checkpoint,
                f"tensor '{name}' is {tuple(have.shape)} {have.dtype}, the model has {tuple(want.shape)} {want.dtype}",
            )
    model.load_state_dict(checkpoint.model)


def _misfit(checkpoint: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path / MODEL}: {what}",
        why="the checkpoint belongs to another configuration than the run's config.toml",
        hint="put back the config.toml that this checkpoint was trained with",
    )
