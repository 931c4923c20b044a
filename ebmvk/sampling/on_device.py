"""The latent law of contexts in the memory of a device (model section 6).

Candidates, their masses and the states of chains stay there. The host gets the entropy that a
schedule is made of, and tokens; it sends queries, log probabilities and schedules. Schedules are
made on the host because they need float64, which few devices have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ebmvk.engine import philox
from ebmvk.engine.api import Points
from ebmvk.engine.chained import CandidateLaw, Chained
from ebmvk.engine.device_tensor import DeviceTensor
from ebmvk.sampling import streams
from ebmvk.sampling.interface import TokenPoints
from ebmvk.sphere.vmf import log_c_ratio


def _best(backend: Chained, space: TokenPoints, query: Tensor, k: int) -> DeviceTensor:
    """The ids (B, k) of the best tokens of each query. They stay on the device, because one of the
    arguments is there: the bias or the concentrations, or else the queries.
    """
    kept = {
        name: space.once(f"{name} on the device", partial(_kept, backend, own))
        for name, own in (("scale", space.concentrations), ("bias", space.bias))
        if own is not None
    }
    asked = query if kept else backend.tensor(query)
    found = cast("Any", backend).topk(asked, space.points, k, **kept)
    return cast("DeviceTensor", found.ids)


def _kept(backend: Chained, weights: Tensor) -> DeviceTensor:
    return backend.tensor(weights.detach().float().contiguous())


@dataclass(frozen=True)
class DeviceLaw:
    """p_kappa(x|c) of B contexts, as `ebmvk.sampling.latent.LatentLaw`, on the device of a backend.

    ids: (B, K), the candidates; ones: (B, K), their concentrations until a schedule sets others;
    log_p: (B, V), the law that the masses came from.
    """

    backend: Chained
    points: Points
    ids: DeviceTensor
    law: CandidateLaw
    ones: DeviceTensor
    log_p: DeviceTensor

    @classmethod
    def of(cls, backend: Chained, space: TokenPoints, query: Tensor | None, log_p: Tensor, k: int) -> DeviceLaw:
        """The candidates are those of `TokenPoints.law`."""
        kept = backend.tensor(log_p.detach().float().contiguous())
        k = min(k, space.points.n)
        if query is None:
            ids = backend.tensor(log_p.topk(k, dim=1).indices)
        else:
            ids = _best(backend, space, query.detach().float().contiguous(), k)
        ones = space.once(f"ones {tuple(ids.shape)}", lambda: backend.tensor(torch.ones(ids.shape)))
        return cls(backend, space.points, ids, backend.candidate_law(kept, ids), ones, kept)

    @property
    def entropy(self) -> Tensor:
        """(B,) nats, on the CPU."""
        return self.law.entropy

    @property
    def logp(self) -> DeviceTensor:
        return self.law.logp  # type: ignore[return-value]

    @property
    def log_rest(self) -> DeviceTensor:
        return self.law.log_rest  # type: ignore[return-value]

    def start(self, *, seed: int, temperature: float, first_chain: int = 0) -> tuple[DeviceTensor, DeviceTensor]:
        """As `LatentLaw.start`, with the same random numbers."""
        start = self.backend.chain_start(
            len(self.ids),
            self.points.d,
            seed=seed,
            first_chain=first_chain,
            x_stream=streams.START,
            v_stream=philox.STREAM_VELOCITY,
            temperature=temperature,
        )
        return start.x, start.v

    def decode(self, x: Tensor | DeviceTensor, kappa: Tensor, *, seed: int, first_chain: int = 0) -> Tensor:
        """Tokens (B,) on the CPU, from p(v|x,c). x: (B, d) unit rows drawn at kappa (B,).

        Raises:
            NonFinite: a state isn't finite.
        """
        return self.backend.decode(
            x,
            self.points,
            self.ids,
            self.law.logp,
            self.law.log_rest,
            kappa,
            log_c_ratio(kappa, self.points.d),
            self.log_p,
            seed=seed,
            first_chain=first_chain,
            choice_stream=streams.CHOICE,
            rest_stream=streams.REST,
        )
