"""A static memory from training text: states, spherical k-means, statistics, background and gate (model sections 3, 8).

The gate and the background are fitted on a fold of the training text that the splats have not seen: on their own fold
every query would meet its own entry and the gate would go to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebmvk.engine.api import Backend
from ebmvk.engine.approximate import kmeans
from ebmvk.errors import ConfigError, DataError
from ebmvk.splats.memory import Gate, Memory, Posterior, find, fit_background, gate_features, memory_law
from ebmvk.splats.store import SplatStore, check_states


class TokenModel(Protocol):
    """What a language model has to offer: contexts with a point h (B, T, d), the lexical law (B, T, V), and the part of
    torch's Module that says where it runs and switches dropout off."""

    training: bool

    def __call__(self, tokens: Tensor, /) -> Any: ...

    def log_p_lex(self, context: Any, /) -> Tensor: ...

    def parameters(self) -> Iterator[Tensor]: ...

    def train(self, mode: bool, /) -> Any: ...


@dataclass(frozen=True)
class MemoryConfig:
    """splats: how many; knn_k: neighbours per context; tau: splat temperature; beta: smoothing mass of token laws;
    holdout: fraction of the text kept for gate and background, from its end; rounds: of k-means; window, batch: how the
    text is read."""

    splats: int = 5000
    knn_k: int = 64
    tau: float = 0.1
    beta: float = 1.0
    holdout: float = 0.1
    rounds: int = 10
    window: int = 128
    batch: int = 32


def build_memory(
    model: TokenModel, tokens: npt.NDArray[np.int32], config: MemoryConfig, backend: Backend, seed: int
) -> Memory:
    """A memory of the text `tokens` (n,), deterministic by seed.

    Raises:
        ConfigError: a fraction or count that is out of range.
        DataError: fewer than two windows of text, or fewer states than splats.
    """
    if not 0 < config.holdout < 1 or config.splats < 1 or config.tau <= 0 or config.beta <= 0:
        raise ConfigError(f"memory settings out of range: {config}", hint="use 0 < holdout < 1 and positive values")
    windows = (len(tokens) - 1) // config.window
    kept = windows - max(1, round(windows * config.holdout))
    if kept < 1 or kept * config.window < config.splats:
        raise DataError(
            f"{len(tokens)} tokens of text give {max(0, kept) * config.window} states for {config.splats} splats",
            hint="use a longer text, or fewer splats",
        )
    text = _Text(model, tokens, config)
    was_training = model.training
    model.train(False)
    try:
        states, following = (torch.cat(parts) for parts in zip(*text.states(range(kept)), strict=True))
        store = cluster(states, following, config, backend, seed, vocab_size=text.vocab_size())
        return fit_mixture(store, lambda: text.contexts(range(kept, windows)), backend, config.knn_k)
    finally:
        model.train(was_training)


def cluster(
    states: Tensor, tokens: Tensor, config: MemoryConfig, backend: Backend, seed: int, *, vocab_size: int
) -> SplatStore:
    """Spherical k-means over states (n, d); each state belongs to its nearest centroid. tokens: (n,) int64."""
    check_states(states, tokens)
    points = backend.points(kmeans(states, config.splats, rounds=config.rounds, seed=seed).centroids)
    owner = torch.cat(
        [backend.topk(part.contiguous(), points, 1).ids[:, 0].cpu() for part in torch.split(states, 8192)]
    )
    return SplatStore.gather(states, tokens, owner, vocab_size=vocab_size, beta=config.beta, tau=config.tau)


def fit_mixture(
    store: SplatStore, fold: Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]], backend: Backend, k: int
) -> Memory:
    """Background and gate of a memory, fitted on text it was not built from.

    fold: called twice, gives batches of h (n, d), following tokens (n,) and log p_lex (n, V).
    """
    points = backend.points(store.mu)
    ratios = [_splats_over_background(find(backend, points, store, h, k)) for h, _, _ in fold()]
    store = replace(store, background=fit_background(torch.cat(ratios), float(store.mass.sum())))
    rows = []
    for h, following, log_p_lex in fold():
        posterior = find(backend, points, store, h, k)
        target = following[:, None]
        memory = memory_law(store, posterior).log().float().gather(1, target)[:, 0]
        rows.append((gate_features(h, posterior, log_p_lex), log_p_lex.gather(1, target)[:, 0], memory))
    features, lexical, memory = (torch.cat(column) for column in zip(*rows, strict=True))
    return Memory.open(store, fit_gate(features, lexical, memory), backend, k)


def fit_gate(features: Tensor, lexical: Tensor, memory: Tensor, ridge: float = 1e-3) -> Gate:
    """The gate of largest likelihood of the mixture, less ridge |weight|^2, by L-BFGS from g = .1.

    features: (n, F); lexical, memory: (n,) log probabilities of the token that followed.
    """
    mean, scale = features.double().mean(0), features.double().std(0, correction=0).clamp_min(1e-6)
    inputs, lexical, memory = (features.double() - mean) / scale, lexical.double(), memory.double()
    weight = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.full((), -2.2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logit = inputs @ weight + bias
        mixed = torch.logaddexp(logsigmoid(-logit) + lexical, logsigmoid(logit) + memory)
        loss = ridge * weight.square().sum() - mixed.mean()
        torch.autograd.backward([loss])
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Gate(weight.detach().float(), bias.detach().float(), mean.float(), scale.float())


def _splats_over_background(posterior: Posterior) -> Tensor:
    """log density of the splats over the uniform one, as if alpha_inf were 0: (B,). It is 1/2 in a new store."""
    return posterior.weights.sum(1).clamp_min(1e-30).log() - posterior.background.clamp_min(1e-30).log()


@dataclass(frozen=True)
class _Text:
    """Windows of a text, read by a model."""

    model: TokenModel
    tokens: npt.NDArray[np.int32]
    config: MemoryConfig

    def vocab_size(self) -> int:
        with torch.no_grad():
            context = self.model(self._window([0])[0])
            return int(self.model.log_p_lex(context).shape[-1])

    def states(self, windows: range) -> Iterator[tuple[Tensor, Tensor]]:
        """h (n, d) float32 and following tokens (n,), on the CPU, batch by batch."""
        for context, targets in self._read(windows):
            yield context.h.flatten(0, 1).float().cpu().contiguous(), targets

    def contexts(self, windows: range) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The same with log p_lex (n, V)."""
        for context, targets in self._read(windows):
            lexical = self.model.log_p_lex(context).flatten(0, 1).float().cpu()
            yield context.h.flatten(0, 1).float().cpu().contiguous(), targets, lexical

    @torch.no_grad()
    def _read(self, windows: range) -> Iterator[tuple[Any, Tensor]]:
        for first in range(windows.start, windows.stop, self.config.batch):
            inputs, targets = self._window(list(range(first, min(first + self.config.batch, windows.stop))))
            yield self.model(inputs), targets.flatten()

    def _window(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Inputs (B, T), on the model's device, and the tokens that follow, (B, T)."""
        size = self.config.window
        rows = np.stack([self.tokens[i * size : (i + 1) * size + 1] for i in indices])
        text = torch.from_numpy(rows.astype(np.int64))
        return text[:, :-1].contiguous().to(next(iter(self.model.parameters())).device), text[:, 1:].contiguous()
