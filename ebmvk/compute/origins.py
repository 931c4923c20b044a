"""Finds the line of a step that made an operation of its graph."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)


class Lines(TorchFunctionMode):
    """Notes the line of the step that calls an operation on each node that the operation makes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        meta = fx_traceback.current_meta
        before = meta.get("stack_trace")
        meta["stack_trace"] = _here() or before
        try:
            return func(*args, **(kwargs or {}))
        finally:
            meta.pop("stack_trace", None)
            if before:
                meta["stack_trace"] = before


class Gradients(TorchDispatchMode):
    """Gives the operations of a gradient the line of the forward operation. Autograd numbers both
    alike."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lines: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        meta = fx_traceback.current_meta
        before = meta.get("stack_trace")
        within = torch._C._current_autograd_node()
        line = before if within is None else self._lines.get(within._sequence_nr(), before)
        if line:
            meta["stack_trace"] = line
            # Autograd has counted the operation already, if it has a gradient.
            self._lines.setdefault(torch._C._autograd._get_sequence_nr() - 1, line)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            if line and not before:
                del meta["stack_trace"]
            elif before:
                meta["stack_trace"] = before


def user_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The last frame that is neither torch's nor the compiler's, as "file:line: code"."""
    for frame in reversed(frames):
        if not _inside(frame.filename):
            return f"{frame.filename}:{frame.lineno}: {(frame.line or '').strip()}"
    return "an unknown line"


def origin_of(node: fx.Node) -> str:
    """The operation of a node and the line of the step that called it."""
    name = str(node.target) if node.op == "call_function" else node.name
    frames = []
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith('File "'):
            file, rest = text[6:].split('"', 1)
            code = lines[number + 1] if number + 1 < len(lines) else ""
            digits = rest.removeprefix(", line ").split(",")[0]
            frames.append(traceback.FrameSummary(file, int(digits), "", line=code))
    return f"{name} at {user_line(frames)}" if frames else name


def _here() -> str:
    frame = sys._getframe(2)
    while frame is not None and _inside(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return ""
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f'File "{file}", line {line}, in {frame.f_code.co_name}\n    {linecache.getline(file, line).strip()}'


def _inside(file: str) -> bool:
    return file.startswith((_TORCH, _OWN, "<eval_with_key", "<frozen"))
