"""What a chain of tokens needs on a device beside the operations of every backend.

`topk`, `candidate_law`, `langevin` and `decode` then pass their results on without the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from ebmvk.engine import checks
from ebmvk.engine.api import Backend, Points
from ebmvk.engine.device_tensor import DeviceTensor
from ebmvk.errors import ArgumentError


@dataclass(frozen=True)
class CandidateLaw:
    """logp (B, K): log probabilities of candidates; log_rest (B,): log of the mass of all others.

    entropy: (B,) nats of the mixture of the candidates and the rest, always on the CPU.
    """

    logp: Tensor | DeviceTensor
    log_rest: Tensor | DeviceTensor
    entropy: Tensor


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

    def candidate_law(self, log_p: Tensor | DeviceTensor, ids: Tensor | DeviceTensor) -> CandidateLaw:
        """The masses of the candidates and of the rest.

        log_p: (B, V), normalised; ids: (B, K) int64 in [0, V), all different.

        Raises:
            ArgumentError: a shape, dtype or value doesn't fit.
        """

    def chain_start(
        self, rows: int, d: int, *, seed: int, first_chain: int, streams: tuple[int, int], temperature: float
    ) -> tuple[DeviceTensor, DeviceTensor]:
        """x (B, d) uniform on the sphere, and v ~ N(0, T P_x) (B, d): where B chains begin.

        Args:
            streams: of the normals of x and of v; those of step 0 and the chains' own numbers.

        Raises:
            ArgumentError: a size or number is out of range.
        """

    def decode(
        self,
        x: Tensor | DeviceTensor,
        points: Points,
        ids: Tensor | DeviceTensor,
        law: CandidateLaw,
        kappa: Tensor,
        shift: Tensor,
        log_p: Tensor | DeviceTensor,
        *,
        seed: int,
        first_chain: int,
        streams: tuple[int, int],
    ) -> Tensor:
        """Tokens (B,) int64 on the CPU, from p(v|x,c) (model section 6), by inversion in float32.

        A candidate j has the responsibility that `energy_score` gives at x with logw = logp +
        shift and concentration kappa. The other tokens share that of the rest in proportion to
        their probability. A token of weight 0 is never drawn.

        Args:
            x: (B, d) unit rows. kappa, shift: (B,) float32.
            ids, log_p: those that `law` was made of.
            streams: of the uniforms that choose a candidate or the rest, and a token of the rest.

        Raises:
            ArgumentError: a shape, dtype or value doesn't fit. NonFinite: a state or a weight isn't
                finite.
        """


def keeper_of(points: Points) -> Chained | None:
    """The backend that keeps the points on a device and takes `DeviceTensor`s; None if it takes
    none.
    """
    backend: Any = getattr(points, "backend", None)
    return cast("Chained", backend) if hasattr(backend, "candidate_law") else None


def check_law(rules: checks.Rules, log_p: Any, ids: Any) -> None:
    """Check log_p (B, V), and ids (B, K) in [0, V)."""
    rules.tensor("log_p", log_p, (None, None), "(B, V)")
    checks.log_weights("log_p", log_p)
    rules.indices("ids", ids, (log_p.shape[0], None), "(B, K)", log_p.shape[1])
    if ids.shape[1] == 0:
        raise ArgumentError("ids has no candidates (K = 0)", hint="pass at least one candidate per row")


def check_decode(
    rules: checks.Rules,
    x: Any,
    n: int,
    d: int,
    ids: Any,
    law: CandidateLaw,
    kappa: Any,
    shift: Any,
    log_p: Any,
) -> None:
    """Check x (B, d) unit; the law's logp (B, K) and log_rest (B,); kappa >= 0 and shift (B,);
    log_p (B, N). ids (B, K) have been checked before.
    """
    rows, logp, log_rest = ids.shape[0], cast("Any", law.logp), cast("Any", law.log_rest)
    rules.tensor("x", x, (rows, d), "(B, d)")
    checks.unit_rows("x", x)
    rules.tensor("law.logp", logp, tuple(ids.shape), "(B, K)")
    checks.log_weights("law.logp", logp)
    rules.tensor("law.log_rest", log_rest, (rows,), "(B,)")
    checks.log_weights("law.log_rest", log_rest)
    rules.tensor("kappa", kappa, (rows,), "(B,)")
    checks.at_least("kappa", kappa, 0.0)
    rules.tensor("shift", shift, (rows,), "(B,)")
    checks.finite("shift", shift)
    rules.tensor("log_p", log_p, (rows, n), "(B, N)")
