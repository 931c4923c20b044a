"""What memory splats say of a context: the posterior over neighbours and background, and its token law (section 5).

A context that is itself in a splat has to be left out of it, out of the counts and of the resultant: it would meet its
own entry and the token that follows it (section 8's trap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine.api import Backend, Points
from ebmvk.sphere.vmf import log_c_ratio
from ebmvk.splats.gate import entropy, log_of
from ebmvk.splats.store import SplatStore

FEATURES = 4


@dataclass(frozen=True)
class Recall:
    """p_mem (B, V) float32 and features (B, FEATURES) for the gate: the largest mu_k.h, the log density of the context
    relative to the uniform one, the entropy of p_mem and its largest log probability."""

    law: Tensor
    features: Tensor

    @classmethod
    def of(cls, law: Tensor, closest: Tensor, log_density: Tensor) -> Recall:
        return cls(law, torch.stack((closest, log_density, entropy(law, log_of(law)), law.amax(1).log()), dim=1))


@dataclass(frozen=True)
class Members:
    """Contexts that splats hold, each with mass 1. ids: (B,), the splat of each; tokens: (B,), what followed it."""

    ids: Tensor
    tokens: Tensor

    def rows(self, piece: slice) -> Members:
        """Some of the contexts."""
        return Members(self.ids[piece], self.tokens[piece])


@dataclass(frozen=True)
class Neighbours:
    """ids: (B, K); scores: (B, K), log n_k + log C_d(kappa_k) - log C_d(0) + kappa_k mu_k.h; cosine: (B, K), mu_k.h."""

    ids: Tensor
    scores: Tensor
    cosine: Tensor

    @property
    def closest(self) -> Tensor:
        """(B,), the largest mu_k.h."""
        return self.cosine.amax(1)

    def take(self, k: int) -> Neighbours:
        """The k of largest score."""
        scores, place = self.scores.topk(k, dim=1)
        return Neighbours(self.ids.gather(1, place), scores, self.cosine.gather(1, place))


@dataclass(frozen=True)
class Splats:
    """A store on a backend. k: neighbours looked up for each context."""

    store: SplatStore
    backend: Backend
    points: Points
    k: int

    @classmethod
    def open(cls, store: SplatStore, backend: Backend, k: int) -> Splats:
        return cls(store, backend, backend.points(store.mu), min(k, store.n))

    def find(self, h: Tensor, members: Members | None = None) -> Neighbours:
        """The k splats of largest posterior weight. h: (B, d) float32 unit rows, on the CPU. members: where contexts h
        are in splats of the store, to be found without them."""
        if members is not None:
            return self._without(h, members)
        return self._nearest(h, self.k)

    def _nearest(self, h: Tensor, k: int) -> Neighbours:
        store = self.store
        found = self.backend.topk(h, self.points, k, scale=store.kappa, bias=store.logw)
        ids, scores = found.ids.cpu(), found.scores.cpu()
        return Neighbours(ids, scores, (scores - store.logw[ids]) / store.kappa[ids])

    def _without(self, h: Tensor, members: Members) -> Neighbours:
        """A splat only loses by what is left out: among one more than k, the k of largest weight without it are."""
        found = self._nearest(h, min(self.k + 1, self.store.n))
        left = self.store.leave_one_out(h, members.ids, members.tokens)
        score = left.mass.log() + log_c_ratio(left.kappa, self.store.d) + left.kappa * left.cosine
        own = found.ids == members.ids[:, None]
        scores = torch.where(own, score[:, None].float(), found.scores)  # -inf where nothing is left of the splat
        cosine = torch.where(own, left.cosine[:, None].float(), found.cosine)
        return Neighbours(found.ids, scores, cosine).take(self.k)

    def recall(self, h: Tensor, members: Members | None = None) -> Recall:
        """p_mem = sum_k q_k V_k + q_inf / V, normalised for any k. h, members: as for `find`."""
        found = self.find(h, members)
        scores = torch.cat((torch.full((len(h), 1), math.log(self.store.background)), found.scores), dim=1)
        weights = torch.softmax(scores, dim=1)
        law = self._law(found.ids, weights[:, 1:], members) + weights[:, :1] / self.store.vocab_size
        total = float(self.store.mass.sum()) + self.store.background - (members is not None)
        return Recall.of(law, found.closest, scores.logsumexp(1) - math.log(total))

    def _law(self, ids: Tensor, weights: Tensor, members: Members | None) -> Tensor:
        """sum_k weights_k V_k: (B, V); n_k - 1 and n_k(v) - 1 where the context is a member."""
        store = self.store
        if members is None:
            return store.token_law(ids, weights)
        mass = (store.mass[ids] + store.beta).to(weights.dtype)
        own = ids == members.ids[:, None]
        weights = torch.where(own, weights * mass / (mass - 1).clamp_min(store.beta), weights)
        counted = (weights / mass * own).sum(1, keepdim=True)
        return store.token_law(ids, weights).scatter_add_(1, members.tokens[:, None], -counted).clamp_min(0)
