"""Memory as part of the exact token law (model section 5).

    p(v|c) = (1 - g) p_lex(v|c) + g p_mem(v|c),    p_mem = sum_k q_k V_k + q_inf / V

with the posterior q over KNN(h) and the background, and a gate g(c) in (0, 1). Every part is normalised for any K, so
the mixture is too: truncating the neighbours changes the model a little, never its normalisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebmvk.engine.api import Backend, Points
from ebmvk.errors import CheckpointError
from ebmvk.splats.store import SplatStore


class State(Protocol):
    """A context as the memory sees it: the point h (..., d), unit rows."""

    @property
    def h(self) -> Tensor: ...


@dataclass(frozen=True)
class Posterior:
    """ids, weights: (B, K), with background (B,) they sum to 1; closest: (B,) max mu_k.h; log_density: (B,) relative to
    the uniform law."""

    ids: Tensor
    weights: Tensor
    background: Tensor
    closest: Tensor
    log_density: Tensor


@dataclass(frozen=True)
class Gate:
    """g = sigmoid(weight . (features - mean) / scale + bias); features are h, max mu_k.h, log density and the entropy
    of p_lex. weight, mean, scale: (d + 3,); bias: ()."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def logit(self, features: Tensor) -> Tensor:
        """features: (B, d + 3). Returns (B,)."""
        return ((features - self.mean) / self.scale) @ self.weight + self.bias


def gate_features(h: Tensor, posterior: Posterior, log_p_lex: Tensor) -> Tensor:
    """(B, d + 3) float32, from h (B, d) and log_p_lex (B, V)."""
    entropy = torch.special.entr(log_p_lex.exp()).sum(1)
    return torch.cat((h, torch.stack((posterior.closest, posterior.log_density, entropy), dim=1)), dim=1)


@dataclass(frozen=True)
class Memory:
    """Splats on a backend, with their gate. k: neighbours looked up for each context."""

    store: SplatStore
    gate: Gate
    backend: Backend
    points: Points
    k: int

    @classmethod
    def open(cls, store: SplatStore, gate: Gate, backend: Backend, k: int) -> Memory:
        return cls(store, gate, backend, backend.points(store.mu), min(k, store.n))

    def log_prob(self, context: State, log_p_lex: Tensor) -> Tensor:
        """log p(v|c): (..., V), in the dtype of log_p_lex (..., V); no gradients."""
        shape, dtype = log_p_lex.shape, log_p_lex.dtype
        h = context.h.detach().reshape(-1, self.store.d).float().cpu().contiguous()
        lex = log_p_lex.detach().reshape(-1, shape[-1]).float().cpu()
        posterior = find(self.backend, self.points, self.store, h, self.k)
        logit = self.gate.logit(gate_features(h, posterior, lex))[:, None]
        memory = self.law(posterior).log().float()
        mixed = torch.logaddexp(logsigmoid(-logit) + lex, logsigmoid(logit) + memory)
        return mixed.reshape(shape).to(device=log_p_lex.device, dtype=dtype)

    def law(self, posterior: Posterior) -> Tensor:
        """p_mem (B, V) float64."""
        return memory_law(self.store, posterior)

    def state(self) -> dict[str, Tensor]:
        """Splats and gate as tensors, for safetensors."""
        gate = {f"gate.{name}": getattr(self.gate, name).contiguous() for name in ("weight", "bias", "mean", "scale")}
        splats = {f"splats.{name}": value for name, value in self.store.state().items()}
        return {**splats, **gate, "k": torch.tensor(self.k)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor], backend: Backend, source: str) -> Memory:
        """Raises CheckpointError as `SplatStore.from_state`, and for a gate that does not fit."""
        splats = {name[7:]: value for name, value in state.items() if name.startswith("splats.")}
        store = SplatStore.from_state(splats, source)
        wide = store.d + 3
        for name, shape in (("weight", (wide,)), ("bias", ()), ("mean", (wide,)), ("scale", (wide,))):
            value = state.get(f"gate.{name}")
            if value is None or value.shape != shape or not bool(torch.isfinite(value).all()):
                raise CheckpointError(
                    f"{source}: the memory's gate.{name} is missing, not of shape {shape}, or not finite",
                    hint="use another checkpoint, or build the memory again",
                )
        gate = Gate(*(state[f"gate.{name}"] for name in ("weight", "bias", "mean", "scale")))
        return cls.open(store, gate, backend, int(state.get("k", torch.tensor(64))))


def find(backend: Backend, points: Points, store: SplatStore, h: Tensor, k: int) -> Posterior:
    """The posterior over the k splats of largest q and the background. h: (B, d) float32 unit rows."""
    # The score of the search is the log posterior weight itself, so these are the k best in the sense that counts.
    ids = backend.topk(h, points, min(k, store.n), scale=store.kappa, bias=store.logw).ids.cpu()
    background = torch.full((len(h),), store.log_background)
    now = backend.energy_score(h, points, ids, store.logw[ids], store.kappa[ids], background)
    closest = torch.einsum("bd,bkd->bk", h, store.mu[ids]).amax(1)
    return Posterior(ids, now.responsibilities.cpu(), now.background.cpu(), closest, -now.energy.cpu())


def memory_law(store: SplatStore, posterior: Posterior) -> Tensor:
    """p_mem = sum_k q_k V_k + q_inf/V: (B, V) float64, normalised exactly although q comes in float32."""
    weights, background = posterior.weights.double(), posterior.background.double()
    total = weights.sum(1) + background
    law = store.token_law(posterior.ids, weights / total[:, None])
    return law + (background / total)[:, None] / store.vocab_size


def fit_background(log_ratio: Tensor, mass: float, rounds: int = 100) -> float:
    """nu by EM: alpha_inf becomes the mean of q_inf over held-out contexts.

    log_ratio: (n,) log of the splats' density over the uniform one, for alpha_inf = 0. mass: N.
    """
    share = 0.5
    for _ in range(rounds):
        odds = log_ratio.double() + math.log1p(-share) - math.log(share)
        # A share of exactly 0 or 1 would be final, whatever later text says.
        share = min(max(float(torch.sigmoid(-odds).mean()), 1e-6), 1 - 1e-6)
    return mass * share / (1 - share)
