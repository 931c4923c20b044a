"""Saves and loads checkpoints: safetensors and JSON, without pickle.

A checkpoint is a folder checkpoints/step-N/ with model.safetensors, state.safetensors (the
optimiser's tensors), state.json (the manifest) and, if splats are consolidated during training,
soc.safetensors. It is written beside its place and renamed, so a kill or a full disk loses nothing.
Everything is verified when it is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from ebmvk.errors import CheckpointError
from ebmvk.runs.atomic import make_folder, storage_error, sync_folder, write_file
from ebmvk.runs.manifest import MANIFEST, MODEL, SOC, STATE, files_of, is_kept, manifest_of, read_manifest
from ebmvk.runs.packing import pack, unpack
from ebmvk.runs.steps import point, recover, step_folders, sweep
from ebmvk.runs.verified import damaged, describe, read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    state: JSON values. optimizer: nested dicts and lists of tensors and numbers. soc: empty if
    the run consolidates no splats. settings: the name of the file that holds its configuration.
    """

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: Any
    state: dict[str, Any]
    soc: dict[str, Tensor]
    settings: str = "config.toml"


# ---- saving --------------------------------------------------------------------------------------


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
    """Write checkpoints/step-N and make `latest` name it.

    Args:
        optimizer: nested dicts and lists of tensors and JSON values.
        state: JSON values that `load` gives back.
        soc: tensors of the consolidation, written to a file of their own.
        keep: True if `prune` must never delete it.

    Raises:
        StorageError: the disk is full or read-only. Earlier checkpoints are intact, the unfinished
            one is removed.
    """
    target = run / "checkpoints" / f"step-{step}"
    unfinished = target.with_name(f".{target.name}.unfinished")
    tensors: dict[str, Tensor] = {}
    tree = pack(optimizer, tensors)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        make_folder(target.parent)
        recover(target.parent)
        keep = keep or is_kept(target)
        unfinished.mkdir()
        files = {
            MODEL: _written(unfinished / MODEL, dump_tensors(weights)),
            STATE: _written(unfinished / STATE, dump_tensors(tensors)),
        }
        if soc is not None:
            files[SOC] = _written(unfinished / SOC, dump_tensors({k: v.contiguous() for k, v in soc.items()}))
        manifest = manifest_of({"step": step, "keep": keep, "files": files, "optimizer": tree, "state": {**state}})
        write_file(unfinished / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(unfinished)
        _place(unfinished, target, files)
        point(run, "latest", target.name)
        sweep(target.parent)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise storage_error(target, error, "saving the checkpoint") from error
    return target


def _written(path: Path, content: bytes) -> dict[str, Any]:
    write_file(path, content)
    return describe(content)


def _place(unfinished: Path, target: Path, files: Mapping[str, Any]) -> None:
    """Rename a finished checkpoint into place.

    If the step already has a checkpoint with the same tensors (a resumed run saves the step that it
    begins with), only the manifest is replaced, so there is a valid checkpoint at every moment. One
    with other tensors is moved aside first, because a rename cannot replace a folder that holds
    files. `recover` puts it back if the save dies there.
    """
    was = files_of(target)
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
        recover(target.parent)
        raise
    sync_folder(target.parent)


def _carry_over(old: Path, new: Path) -> None:
    """Copy files that other commands have put beside the same weights, such as a memory."""
    for file in old.iterdir():
        if file.is_file() and file.name not in (MODEL, STATE, SOC, MANIFEST):
            write_file(new / file.name, file.read_bytes())
    sync_folder(new)


# ---- loading -------------------------------------------------------------------------------------


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        CheckpointError: a file or a tensor is missing, truncated, changed or not finite; the
            message names it.
    """
    manifest = read_manifest(path)
    files = manifest["files"]
    tensors = {name: read_tensors(path / name, files.get(name)) for name in (MODEL, STATE, *({SOC} & files.keys()))}
    try:
        optimizer = unpack(manifest["optimizer"], tensors[STATE])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path / MANIFEST, f"the optimiser's state does not fit {STATE}: {error}") from None
    return Checkpoint(path, manifest["step"], tensors[MODEL], optimizer, manifest["state"], tensors.get(SOC, {}))


def newest_complete(
    run: Path, flag: str, say: Callable[[str], None], fits: Callable[[Checkpoint], None] | None = None
) -> Checkpoint:
    """The newest checkpoint of a run that can be used.

    Args:
        flag: the flag that named the run, for messages.
        say: called with a text on the checkpoints that were skipped, and why.
        fits: raises CheckpointError if a complete checkpoint doesn't belong to this run.

    Raises:
        CheckpointError: the run has no usable checkpoint. If complete ones don't fit, the error is
            that of the newest one.
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


# ---- into a model --------------------------------------------------------------------------------


def check_tensors(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Check names, shapes and dtypes of a checkpoint against a model, which may be on the meta
    device.

    Raises:
        CheckpointError: a tensor doesn't fit; the message names the first one.
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
    """Load the weights into a model.

    Raises CheckpointError as `check_tensors`; the model is then unchanged.
    """
    check_tensors(model, checkpoint)
    model.load_state_dict(checkpoint.model)


def misfit(checkpoint: Checkpoint, what: str) -> CheckpointError:
    """The error to raise if weights are complete but don't belong to this model."""
    return CheckpointError(
        f"{checkpoint.path / MODEL}: {what}",
        why=f"the checkpoint doesn't belong to the configuration in the {checkpoint.settings} beside it",
        hint=f"put back the {checkpoint.settings} that this checkpoint was saved with",
    )
