"""A catalogue of damaged checkpoints. Each entry damages a good checkpoint folder, and has words of
the error that it causes.

Unless an entry says otherwise, reading the checkpoint finds the damage, and a run falls back to the
one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as dump_tensors

from ebmvk.runs.manifest import MANIFEST, MODEL, SOC, STATE

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Damage:
    """resume: True if only resuming the training finds the damage."""

    to: Callable[[Path], object]
    words: str
    resume: bool = False


# ---- tools ---------------------------------------------------------------------------------------


def edit(path: Path, **changes: Any) -> None:
    """Change entries of the manifest and remove its digest."""
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    manifest.pop("sha256", None)
    (path / MANIFEST).write_text(json.dumps(manifest | changes), encoding="utf-8")


def describe(path: Path, file: str, **changes: Any) -> None:
    """Change what the manifest says about one file."""
    files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    edit(path, files=files | {file: files[file] | changes})


def forge(path: Path, content: bytes, file: str = MODEL) -> None:
    """Replace a file and make its digest right."""
    (path / file).write_bytes(content)
    describe(path, file, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def rewrite(path: Path, change: Callable[[Tensors], object], file: str = MODEL) -> None:
    tensors = load_file(path / file)
    change(tensors)
    forge(path, dump_tensors(tensors), file)


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _one(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"bias": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def _link(file: Path, target: str | Path) -> None:
    file.unlink()
    file.symlink_to(target)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _sparse(file: Path, size: int) -> None:
    with file.open("wb") as opened:
        opened.truncate(size)


def _set(name: str, value: float, *place: int) -> Callable[[Tensors], object]:
    """Set one entry, or all, of a tensor."""
    return lambda tensors: tensors[name][place].fill_(value) if place else tensors[name].fill_(value)


def _swap(one: str, two: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({one: tensors[two].clone(), two: tensors[one].clone()})


def _model_record(path: Path, **changes: Any) -> None:
    state = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["state"]
    edit(path, state=state | {"model": state["model"] | changes})


def _threads(value: object) -> Damage:
    def damage(path: Path) -> None:
        state = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["state"]
        edit(path, state=state | {"threads": value})

    return Damage(damage, f"`threads` is {value!r}")


def _write(text: str | bytes) -> Callable[[Path], object]:
    return lambda path: (path / MANIFEST).write_bytes(text.encode() if isinstance(text, str) else text)


def _no_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder", encoding="utf-8")


def _slot(kind: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], object]:
    """Change the first tensor of the optimiser's state whose name has this ending."""

    def damage(path: Path) -> None:
        def first(tensors: Tensors) -> None:
            name = min(name for name in tensors if name.endswith(kind))
            tensors[name] = change(tensors[name]).contiguous()

        rewrite(path, first, STATE)

    return damage


def _another_digit(path: Path) -> None:
    text = (path / MANIFEST).read_text(encoding="utf-8")
    assert '"windows": 32' in text
    (path / MANIFEST).write_text(text.replace('"windows": 32', '"windows": 36'), encoding="utf-8")


def _nested(path: Path) -> None:
    """Nested lists, as deep as this Python reads JSON: 12,000 levels from 3.12 on, fewer before."""
    deep = next(text for depth in (12_000, 9_000, *range(950, 500, -50)) if _is_json(text := "[" * depth + "]" * depth))
    edit(path, optimizer="deep")
    text = (path / MANIFEST).read_text(encoding="utf-8")
    (path / MANIFEST).write_text(text.replace('"deep"', deep), encoding="utf-8")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return False
    return True


CATALOGUE: dict[str, Damage] = {
    # the manifest
    "manifest missing": Damage(lambda p: (p / MANIFEST).unlink(), "incomplete"),
    "manifest cut": Damage(lambda p: _cut(p / MANIFEST, -9), "not valid JSON"),
    "one digit of the progress": Damage(_another_digit, "its own SHA-256"),
    "manifest empty": Damage(_write(""), "not valid JSON"),
    "manifest not UTF-8": Damage(_write(b"\xff\xfe{}\x80"), "not valid JSON"),
    "manifest nested without end": Damage(_write("[" * 100_000), "not valid JSON"),
    "manifest with a number of 5,000 digits": Damage(_write('{"step": ' + "9" * 5000 + "}"), "not valid JSON"),
    "manifest a list": Damage(_write("[1, 2]"), "not a checkpoint's manifest"),
    "manifest a number": Damage(_write("7"), "not a checkpoint's manifest"),
    "manifest null": Damage(_write("null"), "not a checkpoint's manifest"),
    "manifest a folder": Damage(lambda p: _folder(p / MANIFEST), "not a regular file"),
    "manifest a link to nowhere": Damage(lambda p: _link(p / MANIFEST, "nowhere"), "incomplete"),
    "manifest a link to itself": Damage(lambda p: _link(p / MANIFEST, MANIFEST), "symbolic links"),
    "manifest a pipe": Damage(lambda p: _pipe(p / MANIFEST), "not a regular file"),
    "manifest of a terabyte": Damage(lambda p: _sparse(p / MANIFEST, 1 << 40), "at most"),
    "manifest of a later format": Damage(lambda p: edit(p, format=99), "format 99"),
    "manifest of format true": Damage(lambda p: edit(p, format=True), "not a checkpoint's manifest"),
    "manifest without files": Damage(lambda p: edit(p, files={}), "None were saved"),
    "manifest whose files are a list": Damage(lambda p: edit(p, files=[MODEL]), "not a checkpoint's manifest"),
    "manifest of another step": Damage(lambda p: edit(p, step=4), "says step 4"),
    "manifest of a step in words": Damage(lambda p: edit(p, step="8"), "not a checkpoint's manifest"),
    "manifest of step true": Damage(lambda p: edit(p, step=True), "not a checkpoint's manifest"),
    "manifest of a step below 0": Damage(lambda p: edit(p, step=-8), "says step -8"),
    "threads in words": _threads("many"),
    "no threads": _threads(0),
    "threads a list": _threads([]),
    "threads true": _threads(True),
    "2^40 threads": _threads(1 << 40),
    "manifest whose state is a list": Damage(lambda p: edit(p, state=[]), "not a checkpoint's manifest"),
    "manifest whose entry is a list": Damage(lambda p: edit(p, files={MODEL: [1], STATE: {}}), "None were saved"),
    "manifest naming a file outside": Damage(
        lambda p: edit(p, files={"../../secret": {"bytes": 1, "sha256": ""}}), "'../../secret'"
    ),
    "manifest naming an absolute path": Damage(lambda p: edit(p, files={"/etc/passwd": {}}), "'/etc/passwd'"),
    "a size in words": Damage(lambda p: describe(p, MODEL, bytes="many"), "many were saved"),
    "a size of true": Damage(lambda p: describe(p, MODEL, bytes=True), "True were saved"),
    "a size below 0": Damage(lambda p: describe(p, MODEL, bytes=-1), "-1 were saved"),
    "a size of 2^62": Damage(lambda p: describe(p, MODEL, bytes=1 << 62), "were saved"),
    "no digest": Damage(lambda p: describe(p, MODEL, sha256=None), "SHA-256"),
    "the digest of another file": Damage(lambda p: describe(p, MODEL, sha256="0" * 64), "SHA-256"),
    # files
    "weights missing": Damage(lambda p: (p / MODEL).unlink(), MODEL),
    "weights empty": Damage(lambda p: _cut(p / MODEL, 0), "truncated"),
    "weights cut by a byte": Damage(lambda p: _cut(p / MODEL, -1), "truncated"),
    "weights cut in the header": Damage(lambda p: _cut(p / MODEL, 6), "truncated"),
    "weights and a byte more": Damage(lambda p: (p / MODEL).open("ab").write(b"x"), "replaced"),
    "one bit of the weights": Damage(lambda p: _flip(p / MODEL), "SHA-256"),
    "weights a folder": Damage(lambda p: _folder(p / MODEL), MODEL),
    "weights a link to nowhere": Damage(lambda p: _link(p / MODEL, "nowhere"), "No such file"),
    "weights a link to themselves": Damage(lambda p: _link(p / MODEL, MODEL), "symbolic links"),
    "weights a pipe": Damage(lambda p: _pipe(p / MODEL), MODEL),
    "weights a device without end": Damage(lambda p: _link(p / MODEL, "/dev/zero"), MODEL),
    "weights a pipe of the size that was saved": Damage(
        lambda p: (_pipe(p / MODEL), describe(p, MODEL, bytes=0)), "not a regular file"
    ),
    "weights of a terabyte": Damage(lambda p: _sparse(p / MODEL, 1 << 40), "replaced"),
    "weights of the step before": Damage(lambda p: shutil.copy(p.parent / "step-4" / MODEL, p / MODEL), "SHA-256"),
    "weights are the state": Damage(lambda p: forge(p, (p / STATE).read_bytes()), "is missing"),
    "state missing": Damage(lambda p: (p / STATE).unlink(), STATE),
    "state cut": Damage(lambda p: _cut(p / STATE, -4), "truncated"),
    "one bit of the state": Damage(lambda p: _flip(p / STATE), "SHA-256"),
    "splats missing": Damage(lambda p: (p / SOC).unlink(), SOC),
    "one bit of the splats": Damage(lambda p: _flip(p / SOC), "SHA-256"),
    "folder empty": Damage(lambda p: (shutil.rmtree(p), p.mkdir()), "incomplete"),
    "a file instead of the folder": Damage(_no_folder, "step-8"),
    # headers, signed
    "signed: no header": Damage(lambda p: forge(p, b""), "not valid safetensors"),
    "signed: a header of 2^63 bytes": Damage(lambda p: forge(p, _header({}, length=1 << 63)), "not valid safetensors"),
    "signed: a header longer than the file": Damage(
        lambda p: forge(p, _header({}, length=99)), "not valid safetensors"
    ),
    "signed: a header that is no JSON": Damage(lambda p: forge(p, _header(b"{bias")), "not valid safetensors"),
    "signed: a header that is a list": Damage(lambda p: forge(p, _header([])), "not valid safetensors"),
    "signed: a header nested without end": Damage(lambda p: forge(p, _header(b"[" * 9999)), "not valid safetensors"),
    "signed: offsets below 0": Damage(lambda p: forge(p, _header(_one([1], [-4, 0]))), "not valid safetensors"),
    "signed: offsets beyond the end": Damage(
        lambda p: forge(p, _header(_one([9], [0, 36]), bytes(4))), "not valid safetensors"
    ),
    "signed: offsets the wrong way round": Damage(
        lambda p: forge(p, _header(_one([1], [4, 0]), bytes(4))), "not valid safetensors"
    ),
    "signed: a hole before the data": Damage(
        lambda p: forge(p, _header(_one([1], [4, 8]), bytes(8))), "not valid safetensors"
    ),
    "signed: tensors that overlap": Damage(
        lambda p: forge(p, _header(_one([1], [0, 4]) | {"b": _one([1], [0, 4])["bias"]}, bytes(4))),
        "not valid safetensors",
    ),
    "signed: a shape of 2^80": Damage(
        lambda p: forge(p, _header(_one([1 << 40, 1 << 40], [0, 4]), bytes(4))), "not valid safetensors"
    ),
    "signed: an unknown dtype": Damage(
        lambda p: forge(p, _header(_one([1], [0, 4], "F33"), bytes(4))), "not valid safetensors"
    ),
    "signed: a dtype of 8 bits": Damage(
        lambda p: forge(p, _header(_one([4], [0, 4], "F8_E4M3"), bytes(4))), "which checkpoints don't use"
    ),
    "signed: a name that leaves the folder": Damage(
        lambda p: rewrite(p, lambda t: t.update({"../../x": torch.ones(1)})), "'../../x' is not in the model"
    ),
    # tensors, signed
    "signed: a tensor missing": Damage(lambda p: rewrite(p, lambda t: t.pop("bias")), "'bias' is missing"),
    "signed: a tensor too many": Damage(
        lambda p: rewrite(p, lambda t: t.update(x=torch.ones(1))), "'x' is not in the model"
    ),
    "signed: a transposed tensor": Damage(
        lambda p: rewrite(p, lambda t: t.update(points=t["points"].T.contiguous())), "'points' is (32, 300)"
    ),
    "signed: two tensors exchanged": Damage(
        lambda p: rewrite(p, _swap("bias", "points")), "tensor 'bias' is (300, 32)"
    ),
    "signed: double precision": Damage(lambda p: rewrite(p, lambda t: t.update(bias=t["bias"].double())), "float64"),
    "signed: whole numbers": Damage(lambda p: rewrite(p, lambda t: t.update(bias=t["bias"].long())), "int64"),
    "signed: a NaN": Damage(lambda p: rewrite(p, _set("bias", float("nan"), 3)), "'bias' is not finite"),
    "signed: an infinity": Damage(lambda p: rewrite(p, _set("bias", float("-inf"), 3)), "'bias' is not finite"),
    "signed: a point without direction": Damage(lambda p: rewrite(p, _set("points", 0.0, 5)), "'points': row 5"),
    "signed: a point beyond float32": Damage(lambda p: rewrite(p, _set("points", 1e30, 7)), "'points': row 7"),
    "signed: kappa 0": Damage(lambda p: rewrite(p, _set("log_kappa", -1e4, 2)), "kappa 0"),
    "signed: kappa without bound": Damage(lambda p: rewrite(p, _set("log_kappa", 1e4, 2)), "kappa inf"),
    "signed: scale 0": Damage(lambda p: rewrite(p, _set("energy.log_scale", -1e4)), "'energy.log_scale'"),
    "signed: a NaN of the optimiser": Damage(_slot("/exp_avg", lambda t: t * float("nan")), "is not finite"),
    # whose it is
    "of another model": Damage(lambda p: _model_record(p, model="plain"), "model.model was 'plain'"),
    "of another width": Damage(lambda p: _model_record(p, latent_dim=64), "model.latent_dim was 64"),
    "of another tokenizer": Damage(lambda p: _model_record(p, tokenizer="0" * 64), "model.tokenizer"),
    "of no model": Damage(lambda p: edit(p, state={"progress": {"step": 8}}), "model.model was None"),
    # the optimiser's tree
    "optimiser naming a tensor that is not there": Damage(lambda p: edit(p, optimizer={"$tensor": "gone"}), "gone"),
    "optimiser of another shape": Damage(lambda p: edit(p, optimizer={"other": 1}), "optimiser"),
    "optimiser whose items aren't pairs": Damage(lambda p: edit(p, optimizer={"$items": [[1, 2, 3]]}), "optimiser"),
    "optimiser whose key is a list": Damage(lambda p: edit(p, optimizer={"$items": [[[], 1]]}), "optimiser"),
    "optimiser nested as deep as JSON is read": Damage(_nested, "state.json"),
    "optimiser null": Damage(lambda p: edit(p, optimizer=None), "optimiser state is missing", resume=True),
    "optimiser a number": Damage(lambda p: edit(p, optimizer=3), "optimiser state is missing", resume=True),
    "optimiser of numbers": Damage(
        lambda p: edit(p, optimizer={"$items": [["bias/step", 1]]}), "optimiser state", resume=True
    ),
    "optimiser of another precision": Damage(_slot("/exp_avg", torch.Tensor.double), "float64", resume=True),
    "optimiser's second moment below 0": Damage(_slot("/exp_avg_sq", lambda t: t - 1), "is negative", resume=True),
    "optimiser's moment of another shape": Damage(
        _slot("/exp_avg", lambda t: t.reshape(-1)[:1]), "does not fit", resume=True
    ),
    # consolidation
    "splats: a state off the sphere": Damage(
        lambda p: rewrite(p, _set("history.states", 2.0, 0), SOC), "states: row 0 isn't a unit vector", resume=True
    ),
    "splats: a token below 0": Damage(
        lambda p: rewrite(p, _set("history.tokens", -1, 0), SOC), "negative", resume=True
    ),
    "splats: a share above 1": Damage(lambda p: rewrite(p, _set("history.left", 1.5, 0), SOC), "left", resume=True),
    "splats: more to come than came": Damage(
        lambda p: rewrite(p, _set("history.pending", 1 << 40, 0), SOC), "pending", resume=True
    ),
    "splats: no history": Damage(
        lambda p: rewrite(p, lambda t: t.pop("history.states"), SOC), "states is missing", resume=True
    ),
    "splats: no counter": Damage(
        lambda p: rewrite(p, lambda t: t.pop("counter.phase"), SOC), "lacks 'counter.phase'", resume=True
    ),
    "splats: an unknown phase": Damage(lambda p: rewrite(p, _set("counter.phase", 9.0), SOC), "phase 9", resume=True),
    "splats: kappa 0": Damage(lambda p: rewrite(p, _set("store.kappa_min", 0.0), SOC), "kappa bounds", resume=True),
    "splats: mass 0": Damage(lambda p: rewrite(p, _set("store.mass", 0.0, 0), SOC), "masses", resume=True),
    "splats: a resultant longer than its mass": Damage(
        lambda p: rewrite(p, _set("store.resultant", 1e6, 0), SOC), "longer than its mass", resume=True
    ),
}
