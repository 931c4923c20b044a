"""Reading a text with a model, window by window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.model.language import Context, LanguageModel, TokenLaw


class Layers(Protocol):
    """Runs a model's layers over the windows of a text, by torch or by programs on a device.
    Dropout is off. Methods raise ArgumentError if the stride is out of range.
    """

    def log_p(self, stream: TokenStream, *, context: int, stride: int) -> Iterator[Tensor]:
        """log p of each token but the first, in order: parts (m,) float32."""
        ...

    def contexts(self, stream: TokenStream, *, context: int, stride: int) -> Iterator[tuple[Context, Tensor]]:
        """Contexts (1, m, d) in order, and the tokens (m,) that followed them."""
        ...

    def did(self) -> dict[str, Any]:
        """What a Vulkan device has done since the last call, as JSON values; empty for torch."""
        ...


@dataclass(frozen=True)
class TorchLayers:
    """Reads with torch; see `Layers`."""

    model: LanguageModel
    device: torch.device

    def log_p(self, stream: TokenStream, *, context: int, stride: int) -> Iterator[Tensor]:
        """See `Layers.log_p`."""
        law = TokenLaw(self.model)
        for seen, following in self.contexts(stream, context=context, stride=stride):
            with torch.no_grad():
                found = law.of(seen.query[0], following)
            yield found

    def contexts(self, stream: TokenStream, *, context: int, stride: int) -> Iterator[tuple[Context, Tensor]]:
        """See `Layers.contexts`."""
        return contexts(self.model, stream, context=context, stride=stride, device=self.device)

    def did(self) -> dict[str, Any]:
        """Nothing; see `Layers.did`."""
        return {}


def states(
    model: LanguageModel,
    stream: TokenStream,
    names: Sequence[str],
    *,
    context: int,
    stride: int,
    device: torch.device,
    bfloat16: bool = False,
    dtype: torch.dtype = torch.float32,
    layers: Layers | None = None,
) -> list[Tensor]:
    """The results of `contexts` for a whole text, on the CPU.

    names: fields of `Context`; each gives a tensor (n - 1, d) in `dtype`. layers: what runs the
    layers, in float32; by default torch on `device`.

    Raises:
        ArgumentError: stride out of range.
    """
    found, at = [torch.empty(len(stream) - 1, model.config.latent_dim, dtype=dtype) for _ in names], 0
    if layers:
        read = layers.contexts(stream, context=context, stride=stride)
    else:
        read = contexts(model, stream, context=context, stride=stride, device=device, bfloat16=bfloat16)
    for seen, following in read:
        for whole, name in zip(found, names, strict=True):
            whole[at : at + len(following)] = getattr(seen, name)[0]
        at += len(following)
    return found


TOKENS_AT_ONCE = 2048  # tokens read at once: the largest array then has 21 MB at --size base


def contexts(
    model: LanguageModel,
    stream: TokenStream,
    *,
    context: int,
    stride: int,
    device: torch.device,
    bfloat16: bool = False,
) -> Iterator[tuple[Context, Tensor]]:
    """The contexts (1, m, d) of a text in its order, and the tokens (m,) that followed them.

    Each token but the first follows one context. Dropout is off. bfloat16: read in autocast, as in
    training.

    Raises:
        ArgumentError: stride out of range.
    """
    with torch.no_grad():
        embeddings = model.embeddings()
    for tokens, first in _batches(stream, context, stride):
        was_training = model.training
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            seen = model(tokens[:, :-1].to(device), embeddings)
        model.train(was_training)
        points = {
            name: value[:, first:].flatten(0, 1)[None]
            for name, value in vars(seen).items()
            if isinstance(value, Tensor)
        }
        yield dataclasses.replace(seen, **points), tokens[:, 1 + first :].flatten().to(device)


def _batches(stream: TokenStream, context: int, stride: int) -> Iterator[tuple[Tensor, int]]:
    """Stacks of windows of equal shape, each with as many windows as are read at once."""
    rows = max(1, TOKENS_AT_ONCE // context)
    group: list[Tensor] = []
    shape = (0, 0)
    for tokens, first in evaluation_windows(stream, context, stride):
        if group and ((len(tokens), first) != shape or len(group) == rows):
            yield torch.stack(group), shape[1]
            group = []
        shape = (len(tokens), first)
        group.append(tokens)
    yield torch.stack(group), shape[1]
