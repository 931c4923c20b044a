"""Runs a model's layers as programs on a Vulkan device, to read texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebmvk.compute.function import CompiledFunction, Function, compile_function
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.engine.vulkan import Vulkan
from ebmvk.model.language import Context, LanguageModel
from ebmvk.model.reading import TOKENS_AT_ONCE

LOGITS_AT_ONCE = 1 << 23
"""Logits of a chunk: 32 MiB, a quarter of the range that every device can bind."""
DID = ("dispatches", "copies", "submissions", "bytes_up", "bytes_down", "seconds")


class DeviceLayers:
    """Reads texts with compiled programs; see `ebmvk.model.reading.Layers`. A program is made when
    it is first needed, and windows are padded to its shape.

    Args:
        model: says how the layers work. The programs use weights of their own, which may be newer
            than the model's.
        compiled: makes a program of a function.
        rows: how many windows are read at once; by default, as many as on a processor, or all of a
            text that has fewer.
        doing: called before something that takes long, with a line that says what it is.
    """

    def __init__(
        self,
        model: LanguageModel,
        compiled: Callable[[Function], CompiledFunction],
        rows: int | None = None,
        doing: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.rows = model, rows
        self._log_p, self._states = compiled(log_p_of(model)), compiled(states_of(model))
        self._doing = doing
        self._did: Counter[str] = Counter()

    @classmethod
    def open(cls, model: LanguageModel, backend: Vulkan) -> DeviceLayers:
        """The layers with the model's own weights, which are copied to the device at first use."""
        parameters = {name: own.detach() for name, own in model.named_parameters()}

        def compiled(function: Function) -> CompiledFunction:
            made = compile_function(function, device=backend)
            made.start(parameters)
            return made

        return cls(model, compiled)

    def log_p(self, stream: TokenStream, *, context: int, stride: int) -> Iterator[Tensor]:
        """See `Layers.log_p`."""
        for windows, tokens, targets in self._batches(stream, context, stride):
            found = self._ran(self._log_p, {"tokens": tokens, "targets": targets})
            yield _scored(found, windows)

    def contexts(self, stream: TokenStream, *, context: int, stride: int) -> Iterator[tuple[Context, Tensor]]:
        """See `Layers.contexts`."""
        for windows, tokens, targets in self._batches(stream, context, stride):
            found = self._ran(self._states, {"tokens": tokens})
            parts = {name: _scored(found[name], windows) for name in ("query", "h")}
            yield Context(parts["query"][None], parts["h"][None], ()), _scored(targets, windows)

    def did(self) -> dict[str, Any]:
        """What the device has done since the last call, as JSON values."""
        found, self._did = dict(self._did), Counter()
        return found

    def _batches(
        self, stream: TokenStream, context: int, stride: int
    ) -> Iterator[tuple[list[tuple[int, int]], Tensor, Tensor]]:
        """Yields windows as (number of targets, first one that counts), and inputs and targets
        (rows, context). Places after a window's end are 0; no position sees what comes later."""
        windows = list(evaluation_windows(stream, context, stride))
        rows = self.rows or min(max(1, TOKENS_AT_ONCE // context), len(windows))
        for begin in range(0, len(windows), rows):
            group = windows[begin : begin + rows]
            tokens = torch.zeros(2, rows, context, dtype=torch.int64)
            for row, (window, _) in enumerate(group):
                tokens[0, row, : len(window) - 1], tokens[1, row, : len(window) - 1] = window[:-1], window[1:]
            yield [(len(window) - 1, first) for window, first in group], tokens[0], tokens[1]

    def _ran(self, program: CompiledFunction, inputs: dict[str, Tensor]) -> Any:
        found = program.run(inputs, lambda: self._doing("compiling the evaluation for the device"))
        self._did["cpu_ops"] += program.cpu_ops
        if program.ran is not None:
            self._did.update({name: getattr(program.ran, name) for name in DID})
        return found


def log_p_of(model: LanguageModel) -> Function:
    """The function (parameters, {tokens, targets}) -> log p (B, T). The targets follow the tokens.

    tokens, targets: (B, T) int64.
    """

    def log_p(tokens: Tensor, targets: Tensor) -> Tensor:
        rows = model.embeddings()
        query, outputs = model(tokens, rows).query.flatten(0, 1), model.outputs(rows).t()
        size = max(1, LOGITS_AT_ONCE // model.vocab_size)
        found = [
            torch.log_softmax(torch.addmm(model.bias, part, outputs), -1).gather(-1, target[:, None])[:, 0]
            for part, target in zip(torch.split(query, size), torch.split(targets.flatten(), size), strict=True)
        ]
        return torch.cat(found).view_as(tokens)

    return _pure(model, log_p, ("tokens", "targets"))


def states_of(model: LanguageModel) -> Function:
    """The function (parameters, {tokens}) -> {query, h}, which are fields of `Context`."""

    def states(tokens: Tensor) -> dict[str, Tensor]:
        seen = model(tokens)
        return {"query": seen.query, "h": seen.h}

    return _pure(model, states, ("tokens",))


class Called(nn.Module):
    """Calls a function of a model while `functional_call` replaces the parameters."""

    def __init__(self, model: LanguageModel, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments: Any) -> Any:
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return self.function(*arguments)
        finally:
            self.model.train(was_training)


def _pure(model: LanguageModel, function: Callable[..., Any], names: Sequence[str]) -> Function:
    """The function, without dropout, with parameters and named inputs as its arguments."""
    called = Called(model, function)

    def pure(parameters: dict[str, Tensor], inputs: dict[str, Tensor]) -> Any:
        values = {f"model.{name}": value for name, value in parameters.items()}
        return functional_call(called, values, tuple(inputs[name] for name in names))

    pure.__name__ = function.__name__
    return pure


def _scored(x: Tensor, windows: Sequence[tuple[int, int]]) -> Tensor:
    """The positions of x (rows, context, ...) that count."""
    return torch.cat([row[first:n] for row, (n, first) in zip(x, windows, strict=False)])
