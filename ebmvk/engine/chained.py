"""Operations that only backends with a device offer, for sampling tokens there.

With them `topk`, `candidate_law`, `langevin` and `decode` pass results on without the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from ebmvk.engine.api import Backend, Points
from ebmvk.engine.device_tensor import DeviceTensor


@dataclass(frozen=True)
class CandidateLaw:
    """logp (B, K): log probabilities of candidates; log_rest (B,): log of the mass of all others.

    entropy: (B,) nats of the mixture of the candidates and the rest, always on the CPU.
    """

    logp: Tensor | DeviceTensor
    log_rest: Tensor | DeviceTensor
    entropy: Tensor


@dataclass(frozen=True)
class ChainStart:
    """x (rows, d), unit, and v (rows, d), tangent: states and velocities of chains."""

    x: DeviceTensor
    v: DeviceTensor


def keeper_of(points: Points) -> Chained | None:
    """The backend that keeps the points on a device, if it accepts `DeviceTensor`s; else None."""
    backend: Any = getattr(points, "backend", None)
    return cast("Chained", backend) if hasattr(backend, "candidate_law") else None


class Chained(Backend, Protocol):
    """A backend whose operations take and return `DeviceTensor`s."""

    def tensor(self, values: Tensor) -> DeviceTensor:
        """A copy of the values on the device."""

    def energy(
        self, x: Tensor, points: Points, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energy, responsibilities and background of `energy_score`; the score isn't copied.

        Raises:
            ArgumentError: as `Backend.energy_score`.
        """

    # Made from operations.toml by csrc/operations.py:

    def candidate_law(self, log_p: Tensor | DeviceTensor, ids: Tensor | DeviceTensor) -> CandidateLaw:
        """The masses of the candidates and of the rest.

        log_p: (B, V), normalised; ids: (B, K) int64 in [0, V), all different.

        Raises:
            ArgumentError: a shape, dtype or value doesn't fit.
        """
        result: CandidateLaw = self._operation("candidate_law", locals())
        return result

    def chain_start(
        self, rows: int, d: int, *, seed: int, first_chain: int, x_stream: int, v_stream: int, temperature: float
    ) -> ChainStart:
        """Where chains begin: x uniform on the sphere, and v ~ N(0, T P_x).

        Args:
            rows: the number of chains. d: their dimension.
            x_stream, v_stream: the streams of the normals for x and for v. Each chain takes the
                normals of step 0 and its own number.

        Raises:
            ArgumentError: a size or number is out of range.
        """
        result: ChainStart = self._operation("chain_start", locals())
        return result

    def decode(
        self,
        x: Tensor | DeviceTensor,
        points: Points,
        ids: Tensor | DeviceTensor,
        logp: Tensor | DeviceTensor,
        log_rest: Tensor | DeviceTensor,
        kappa: Tensor | DeviceTensor,
        shift: Tensor | DeviceTensor,
        log_p: Tensor | DeviceTensor,
        *,
        seed: int,
        first_chain: int,
        choice_stream: int,
        rest_stream: int,
    ) -> Tensor:
        """Tokens (B,) int64 on the CPU, from p(v|x,c) (model section 6), by inversion in float32.

        A candidate j has the responsibility that `energy_score` gives at x with logw = logp +
        shift and concentration kappa. The other tokens share the responsibility of the rest in
        proportion to their probability. A token of weight 0 is never drawn.

        Args:
            x: (B, d) unit rows. kappa, shift: (B,) float32.
            ids, log_p: the arguments from which `candidate_law` made logp and log_rest.
            choice_stream: the stream of the uniforms that choose a candidate or the rest.
            rest_stream: the stream of the uniforms that choose a token of the rest.

        Raises:
            ArgumentError: a shape, dtype or value doesn't fit. NonFinite: a state or a weight isn't
                finite.
        """
        result: Tensor = self._operation("decode", locals())
        return result
