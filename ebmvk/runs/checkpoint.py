"""Checkpoints: safetensors and JSON, written beside and renamed, so that a kill or a full disk loses nothing.

A run folder holds checkpoints/step-N/ (model.safetensors, state.safetensors, soc.safetensors where splats are
consolidated during training, state.json) and two small files beside it, `latest` and `best`, that name one of them.
state.json is written last and carries the size and SHA-256 of the others, and of its own content, so a folder with a
valid state.json is complete. What is read is not trusted: every file is a regular one of the size and digest that were
saved, every tensor of a known dtype and finite, and nothing outside the folder is named.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from ebmvk.data.tokenizer import WEIGHTS_FILE
from ebmvk.errors import CheckpointError, StorageError

FORMAT = 1
MODEL, STATE, SOC, MANIFEST = WEIGHTS_FILE, "state.safetensors", "soc.safetensors", "state.json"
STEP = re.compile(r"step-(\d+)")
POINTERS = {"latest": "latest", "best": "best", "ckpt_last": "latest", "ckpt_best": "best"}
"""{name: file of a run folder that names a checkpoint}; the last two are older names."""
_TENSOR = "$tensor"
_MANIFEST_LIMIT = 1 << 28  # bytes: ours have a few for each tensor
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, verified. `state` is JSON-able; `optimizer` is a tree of tensors and numbers;
    `soc` is empty where the run consolidates no splats; `settings` is the name of the file with its configuration."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: Any
    state: dict[str, Any]
    soc: dict[str, Tensor]
    settings: str = "config.toml"


# ---- writing -------------------------------------------------------------------------------------------------------


def save(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: Any,
    state: Mapping[str, Any],
    soc: Mapping[str, Tensor] | None = None,
    *,
    keep: bool = False,
) -> Path:
    """Write checkpoints/step-N and let `latest` name it.

    Args:
        optimizer: nested dicts and lists of tensors and JSON-able values.
        state: JSON-able values to come back from `load`.
        soc: tensors of the consolidation, a file of their own.
        keep: `prune` never deletes it.

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
        _make_folder(target.parent)
        _recover(target.parent)
        keep = keep or _is_kept(target)
        unfinished.mkdir()
        files = {
            MODEL: _written(unfinished / MODEL, dump_tensors(weights)),
            STATE: _written(unfinished / STATE, dump_tensors(tensors)),
        }
        if soc is not None:
            files[SOC] = _written(unfinished / SOC, dump_tensors({k: v.contiguous() for k, v in soc.items()}))
        manifest = {"format": FORMAT, "step": step, "keep": keep, "files": files, "optimizer": tree, "state": {**state}}
        manifest = json.loads(json.dumps(manifest, allow_nan=False))  # as it will be read
        manifest["sha256"] = _digest(manifest)
        write_file(unfinished / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(unfinished)
        _place(unfinished, target, files)
        point(run, "latest", target.name)
        _sweep(target.parent)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise storage_error(target, error, "saving the checkpoint") from error
    return target


def _place(unfinished: Path, target: Path, files: Mapping[str, Any]) -> None:
    """Rename into place.

    Where the step has a checkpoint of the same tensors, as when a resumed run saves the step that it begins with, only
    the manifest is replaced: at no moment is there none. One of other tensors is moved aside first, as a rename can't
    replace a folder that holds files; where that is as far as it comes, `_recover` puts it back.
    """
    was = _files_of(target)
    if was == files:
        (unfinished / MANIFEST).replace(target / MANIFEST)
        sync_folder(target)
        return
    if was.get(MODEL) == files[MODEL]:
        _carry_over(target, unfinished)
    aside = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        unfinished.rename(target)
    except OSError:
        _recover(target.parent)
        raise
    sync_folder(target.parent)


def _carry_over(old: Path, new: Path) -> None:
    """Copy what others have put beside the weights, as a memory, which is built for them."""
    for file in old.iterdir():
        if file.is_file() and file.name not in (MODEL, STATE, SOC, MANIFEST):
            write_file(new / file.name, file.read_bytes())
    sync_folder(new)


def _recover(folder: Path) -> None:
    """Put a step back that was moved aside for another to take its place, which none did."""
    for aside in folder.glob(".step-*.replaced"):
        with contextlib.suppress(OSError):  # of a folder that is read-only: it stays aside
            if not _replaced_by(aside).exists():
                aside.rename(_replaced_by(aside))


def _replaced_by(aside: Path) -> Path:
    return aside.with_name(aside.name.removeprefix(".").removesuffix(".replaced"))


def _files_of(path: Path) -> dict[str, Any]:
    """Sizes and digests in a checkpoint's manifest; {} where it has none that is valid."""
    with contextlib.suppress(CheckpointError):
        return dict(_manifest(path)["files"])
    return {}


def _sweep(folder: Path) -> None:
    """Delete what saves that were killed have left, and nothing needs any more."""
    replaced = (aside for aside in folder.glob(".step-*.replaced") if _replaced_by(aside).exists())
    for left in (*folder.glob(".step-*.unfinished"), *replaced):
        shutil.rmtree(left, ignore_errors=True)


def _written(path: Path, content: bytes) -> dict[str, Any]:
    write_file(path, content)
    return describe(content)


def describe(content: bytes) -> dict[str, Any]:
    """What a manifest says of a file, and `read_tensors` asks for."""
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
        _make_folder(path.parent)
        write_file(beside, content)
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise storage_error(path, error, "writing") from error


def _make_folder(folder: Path) -> None:
    """With its parents, each of them synced: a folder whose name a power cut takes back takes all it holds with it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def storage_error(path: Path, error: OSError, doing: str, then: str = "continue with --resume") -> StorageError:
    """A typed error for a failed write to `path`. then: what to do once there is space."""
    return StorageError(
        f"{doing}: {path} could not be written: {error.strerror or error}",
        why="the disk is full or the folder is read-only; what was saved before is intact",
        hint=f"free some space or make the folder writable, then {then}",
    )


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut, where the system can: Windows opens no folder, and some
    network file systems sync none."""
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


def point(run: Path, name: str, step_folder: str) -> None:
    """Let the file `name` ('latest' or 'best') of a run folder name one checkpoint."""
    write_atomic(run / name, (f"checkpoints/{step_folder}\n").encode())


def prune(run: Path, keep_last: int) -> list[Path]:
    """Delete all but the `keep_last` newest checkpoints; never one that `best` or `latest` names, or that was saved to
    be kept."""
    named = {_pointed(run, "best"), _pointed(run, "latest")}
    gone = [path for path in step_folders(run)[keep_last:] if path.name not in named and not _is_kept(path)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def _is_kept(path: Path) -> bool:
    """Only a manifest that is whole, or is not there, says that it is not: no damage costs weights to be kept."""
    try:
        (path / MANIFEST).lstat()
        return _manifest(path).get("keep") is True
    except FileNotFoundError:
        return False
    except (OSError, CheckpointError):
        return True


def supersede(run: Path, step: int) -> list[Path]:
    """Set aside the checkpoints after `step`, from which a run continues: they belong to another future.

    They stay on the disk as step-N.superseded and can still be evaluated by path. One of an earlier future makes way,
    unless it was saved to be kept: the later one is step-N.superseded-2 then.
    """
    later = [path for path in step_folders(run) if int(path.name[5:]) > step]
    _sweep(run / "checkpoints")  # or what such a step replaced would be put back in its place
    for path in later:
        names = (f"{path.name}.superseded{f'-{n}' if n > 1 else ''}" for n in count(1))
        aside = next(aside for name in names if not _is_kept(aside := path.with_name(name)))
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
    try:
        _recover(folder)
        found = [path for path in folder.iterdir() if STEP.fullmatch(path.name)] if folder.is_dir() else []
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be read: {error.strerror or error}", hint="make it readable, or name another run"
        ) from None
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _pointed(run: Path, name: str) -> str | None:
    """The step folder's name that `latest` or `best` holds; None when the file is missing or not one of ours."""
    try:
        text = _content(run / name, limit=1000).decode("ascii").strip().removeprefix("checkpoints/")
    except (OSError, ValueError):
        return None
    return text if STEP.fullmatch(text) else None


def locate(path: Path, flag: str) -> tuple[Path, Path]:
    """(run folder, checkpoint folder) of a checkpoint argument: a run folder (its latest), one checkpoint folder, or
    RUN/best, RUN/latest and their older names. The first is the path itself for a run folder only.

    Raises:
        CheckpointError: naming the flag and the path.
    """
    try:
        path = path.resolve()
        is_folder = path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, links in a circle, a NUL character
        raise _not_found(flag, path, f"it cannot be looked up ({error})") from None
    if is_folder and is_checkpoint(path):
        return path.parent.parent, path
    if is_folder and (folders := step_folders(path)):
        named = [path / "checkpoints" / name for name in [_pointed(path, "latest")] if name]
        return path, next((folder for folder in named if folder.is_dir()), folders[0])
    if names_checkpoint(path) and (name := _pointed(path.parent, POINTERS[path.name])):
        if (at := path.parent / "checkpoints" / name).is_dir():
            return path.parent, at
        raise _not_found(flag, path, f"it names {name}, which is not there")
    raise _not_found(flag, path, "it holds no checkpoint" if is_folder else "there is no such folder")


def names_checkpoint(path: Path) -> bool:
    """Whether a path is RUN/best, RUN/latest, or an older name of one, and no folder. path: resolved."""
    return path.name in POINTERS and not path.is_dir()


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one checkpoint, be it damaged. path: resolved."""
    named = STEP.fullmatch(path.name) is not None and path.parent.name == "checkpoints"
    return named or (path / MANIFEST).is_file()


def _not_found(flag: str, path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{flag} {path}: {what}",
        hint="give a run folder such as runs/NAME, runs/NAME/best, or one of its checkpoints/step-N",
    )


def newest_complete(
    run: Path, flag: str, say: Callable[[str], None], fits: Callable[[Checkpoint], None] | None = None
) -> Checkpoint:
    """The newest checkpoint of a run that verifies; `say` is told of each one that was skipped, and why.

    Args:
        flag: what named the run, for messages.
        fits: raises CheckpointError for a checkpoint that is whole and yet not of this run.

    Raises:
        CheckpointError: when the run has none; that of `fits` for the newest whole one, if there is a whole one.
    """
    broken: CheckpointError | None = None
    foreign: CheckpointError | None = None
    skipped = []
    for path in step_folders(run):
        found = None
        try:
            found = load(path)
            if fits:
                fits(found)
        except CheckpointError as error:
            broken, foreign = (broken or error, foreign) if found is None else (broken, foreign or error)
            skipped.append(f"skipped {path.name}: {error.what}")
            continue
        if skipped:
            say("\n".join([*skipped, f"continuing from {found.path.name}, the newest usable checkpoint"]))
        return found
    raise foreign or CheckpointError(
        f"{flag} {run}: no usable checkpoint",
        why=broken.what if broken else "the run was stopped before its first checkpoint",
        hint="start a new run with another --run-dir",
    )


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        CheckpointError: naming the file or the tensor that is missing, truncated, changed or not finite.
    """
    manifest = _manifest(path)
    files = manifest["files"]
    tensors = {name: read_tensors(path / name, files.get(name)) for name in (MODEL, STATE, *({SOC} & files.keys()))}
    try:
        optimizer = unpack(manifest["optimizer"], tensors[STATE])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path / MANIFEST, f"the optimiser's state does not fit {STATE}: {error}") from None
    return Checkpoint(path, manifest["step"], tensors[MODEL], optimizer, manifest["state"], tensors.get(SOC, {}))


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    manifest = read_json(file)
    wanted = {"format": int, "step": int, "files": dict, "state": dict}
    if any(type(manifest.get(k)) is not t for k, t in wanted.items()):
        raise damaged(file, f"not a checkpoint's manifest: it needs {', '.join(wanted)}")
    try:
        whole = manifest.get("sha256", "") in ("", _digest(manifest))  # older checkpoints have none
    except RecursionError:
        whole = False
    if not whole:
        raise damaged(file, "its content is not of its own SHA-256: corrupt")
    if manifest["format"] != FORMAT:
        raise damaged(file, f"format {manifest['format']}, this version reads {FORMAT}")
    if path.name != f"step-{manifest['step']}" and (manifest["step"] < 0 or STEP.fullmatch(path.name)):
        raise damaged(file, f"says step {manifest['step']}, the folder is {path.name}")
    for name in manifest["files"].keys() - {MODEL, STATE, SOC}:
        raise damaged(file, f"names a file {name!r}, which no checkpoint has")
    return {"optimizer": None} | manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content: a digit of the progress that has flipped is another run."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint; {} for JSON that is no object. Raises CheckpointError."""
    try:
        found = json.loads(_content(file, limit=_MANIFEST_LIMIT))
    except FileNotFoundError:
        raise damaged(file, "the file is missing, so the checkpoint is incomplete") from None
    except OSError as error:
        raise damaged(file, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise damaged(file, f"not valid JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _content(file: Path, *, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit`. Raises OSError for anything else: a pipe would never end."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes where at most {limit} belong")
    return file.read_bytes()


def read_tensors(file: Path, entry: Any) -> dict[str, Tensor]:
    """The tensors of one file, verified. entry: its size and digest as `describe` gave them. Raises CheckpointError."""
    said = entry if isinstance(entry, dict) else {}
    size = said.get("bytes")
    try:
        if type(size) is not int or file.stat().st_size != size:
            raise damaged(file, f"{file.stat().st_size} bytes where {size} were saved: truncated or replaced")
        content = _content(file, limit=size)
    except OSError as error:
        raise damaged(file, error.strerror or str(error)) from None
    except MemoryError:
        raise damaged(file, f"no memory for its {size} bytes") from None
    if hashlib.sha256(content).hexdigest() != said.get("sha256"):
        raise damaged(file, "its SHA-256 is not the saved one: corrupt")
    return _parsed(content, file)


def _parsed(content: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors of safetensors bytes. file: where they are from, for messages.

    Raises:
        CheckpointError: not safetensors, or naming the tensor that is of no known dtype or not finite.
    """
    try:
        tensors = load_tensors(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise damaged(file, f"not valid safetensors ({error})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise damaged(file, f"tensor '{name}' is of {tensor.dtype}, which no checkpoint has")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise damaged(file, f"tensor '{name}' is not finite")
    return tensors


def damaged(
    file: Path, what: str, why: str = "the file was cut short, changed or written by something else"
) -> CheckpointError:
    """What to raise of a file that no checkpoint or exported model has so. file: resolved."""
    older = file.parent.parent
    return CheckpointError(
        f"{file}: {what}",
        why=why,
        hint=f"use an older checkpoint of {older}, or --resume, which takes the newest usable one"
        if older.name == "checkpoints"
        else "export, copy or download that folder again",
    )


def check_tensors(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Names, shapes and dtypes are the model's, which may be on the meta device.

    Raises:
        CheckpointError: naming the first tensor that does not fit.
    """
    own = model.state_dict()
    for name in [*own, *checkpoint.model]:
        have, want = checkpoint.model.get(name), own.get(name)
        if have is None or want is None:
            raise misfit(checkpoint, f"tensor '{name}' is {'missing' if have is None else 'not in the model'}")
        if have.shape != want.shape or have.dtype != want.dtype:
            raise misfit(
                checkpoint,
                f"tensor '{name}' is {tuple(have.shape)} {have.dtype}, the model has {tuple(want.shape)} {want.dtype}",
            )


def restore(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load the weights, checked as `check_tensors` says. Raises CheckpointError; the model is unchanged then."""
    check_tensors(model, checkpoint)
    model.load_state_dict(checkpoint.model)


def misfit(checkpoint: Checkpoint, what: str) -> CheckpointError:
    """What to raise of weights that are whole, but not this model's."""
    return CheckpointError(
        f"{checkpoint.path / MODEL}: {what}",
        why=f"the checkpoint belongs to another configuration than the {checkpoint.settings} beside it",
        hint=f"put back the {checkpoint.settings} that this checkpoint was saved with",
    )
