"""What splats say about a context: which are near, and which tokens they expect.

The posterior over the nearest splats and the uniform background mixes their token laws into p_mem,
which is then pooled with the model's own (lexical) law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine.api import Backend, Points
from ebmvk.splats.store import SplatStore

FEATURES = 4  # of each memory tier, for the gate; see `Recall.pooled`


@dataclass(frozen=True)
class Recall:
    """The answer of splats to B contexts.

    law: (B, V) float32, p_mem. closest: (B,), the largest mu_k.h. log_density: (B,), log of the
    context's density relative to the uniform density.
    """

    law: Tensor
    closest: Tensor
    log_density: Tensor

    @classmethod
    def join(cls, parts: Sequence[Recall]) -> Recall:
        """One answer from the answers of the same splats to several batches of contexts."""
        return cls(*(torch.cat([vars(part)[name] for part in parts]) for name in ("law", "closest", "log_density")))

    def pooled(self, log_p_lex: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """The log of the pool of p_mem and p_lex, (B, V), and gate features (B, FEATURES).

        p_i = p_mem^share p_lex^(1 - share) / Z is the logarithmic pool (Genest and Zidek 1986), in
        which energies add: splats say what follows places like this one, and the lexical law says
        which of these tokens fit here. The features are `closest`, `log_density`, and the entropy
        and largest entry of log p_i.

        log_p_lex: (B, V) float32, on the CPU.
        """
        log_law = torch.log_softmax(torch.lerp(log_p_lex, log_of(self.law), share), dim=1)
        of_law = (entropy(log_law.exp(), log_law), log_law.amax(1))
        return log_law, torch.stack((self.closest, self.log_density, *of_law), dim=1)


@dataclass(frozen=True)
class Neighbours:
    """The K splats found for each of B contexts.

    ids: (B, K). scores: (B, K), log n_k + log C_d(kappa_k) - log C_d(0) + kappa_k mu_k.h. closest:
    (B,), the largest mu_k.h.
    """

    ids: Tensor
    scores: Tensor
    closest: Tensor


@dataclass(frozen=True)
class Splats:
    """A store whose directions lie on a backend, ready for queries.

    k: splats looked up per context.
    """

    store: SplatStore
    backend: Backend
    points: Points
    k: int

    @classmethod
    def open(cls, store: SplatStore, backend: Backend, k: int) -> Splats:
        """Copy the directions of a store to a backend."""
        return cls(store, backend, backend.points(store.mu), min(k, store.n))

    def find(self, h: Tensor) -> Neighbours:
        """The k splats of largest posterior weight. h: (B, d) float32 unit rows, on the CPU."""
        store = self.store
        found = self.backend.topk(h, self.points, self.k, scale=store.kappa, bias=store.logw)
        ids, scores = found.ids.cpu(), found.scores.cpu()
        return Neighbours(ids, scores, ((scores - store.logw[ids]) / store.kappa[ids]).amax(1))

    def recall(self, h: Tensor) -> Recall:
        """p_mem = sum_k q_k V_k + q_inf / V for each context; it is normalised for any k.

        h: (B, d) float32 unit rows, on the CPU.
        """
        found = self.find(h)
        scores = torch.cat((torch.full((len(h), 1), math.log(self.store.background)), found.scores), dim=1)
        weights = torch.softmax(scores, dim=1)
        law = self.store.token_law(found.ids, weights[:, 1:]) + weights[:, :1] / self.store.vocab_size
        mass = float(self.store.mass.sum())
        return Recall(law, found.closest, log_density(found.scores, mass, self.store.background).float())


def entropy(law: Tensor, log_law: Tensor) -> Tensor:
    """-sum_v p log p of rows (B, V) with finite log p; twice as fast as torch.special.entr."""
    information: Tensor = torch.linalg.vecdot(law, log_law)
    return -information


def log_of(law: Tensor) -> Tensor:
    """The log of probabilities, finite even for 0."""
    return law.clamp_min(1e-35).log()


def log_density(scores: Tensor, mass: Tensor | float, background: Tensor | float) -> Tensor:
    """log of (background + sum_k e^score) / (background + mass), (B,) float64.

    This is a context's density relative to the uniform density; e^score is a splat's mass times its
    density there.

    If the background outweighs all splats, the result is near 0 and hardly varies. A difference of
    two logarithms would be mostly rounding; log1p has a relative error of 1e-15. What remains is
    the error of the scores: for each splat, float32's 6e-8 times |score|.

    Args:
        scores: (B, K), -inf for no splat.
        mass: the total over all splats.
        background: positive, unless mass is 0.
    """
    scores, total = scores.double(), torch.as_tensor(background + mass, dtype=torch.float64)
    splats = scores.exp().sum(1)
    found = ((splats - mass) / total).log1p()
    # Beyond e^709 the rest is negligible
    return torch.where(splats.isfinite(), found, scores.logsumexp(1) - total.log())
