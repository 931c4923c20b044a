"""Calibrates the model's own law without any memory: the baseline that a memory must beat.

    p_cal(v|c) = g_0 p_lex(v|c) + g_1 p_lex(v|c)^a / Z

p_lex is the model's own (lexical) law. A tier whose splats know nothing pools p_lex with the
uniform law, which gives p_lex^(1 - s) / Z behind a gate. For an overconfident model this alone
improves the likelihood. So a gain over p_lex doesn't prove that a memory helps; a gain over p_cal
does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.memory.gate import LEXICAL, Gate, lexical_features, mix

FEATURES = LEXICAL + 2  # entropy and largest entry of log p_lex, then of its power
POWERS = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5)
"""Candidates for the power a: every possible 1 - s; above 1 for underconfident models."""


@dataclass(frozen=True)
class Calibration:
    """power: the exponent a.

    gate: gives the weight of p_lex^a, as it would for a tier of memory, from `FEATURES` features.
    """

    power: float
    gate: Gate

    def log_prob(self, log_p_lex: Tensor) -> Tensor:
        """log p_cal (n, V) from log p_lex (n, V) float32, on the CPU."""
        flat, features = powered(log_p_lex, self.power)
        return mix(self.gate.log_weights(features), torch.stack((log_p_lex, flat), dim=1))

    def of_tokens(self, log_p_lex: Tensor, tokens: Tensor) -> Tensor:
        """log p_cal of the tokens (n,) that followed: (n,)."""
        log_p, features = power_terms(log_p_lex, tokens, self.power)
        return mix(self.gate.log_weights(features), log_p)


def powered(log_p_lex: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """log p_lex^power / Z (n, V), and the features (n, FEATURES) of both laws."""
    flat = torch.log_softmax(power * log_p_lex, dim=1)
    return flat, torch.cat((lexical_features(log_p_lex), lexical_features(flat)), dim=1)


def power_terms(log_p_lex: Tensor, tokens: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Two tensors: log p (n, 2) of the tokens (n,) under the lexical law and under the lexical law
    raised to `power`; and the features of both laws."""
    flat, features = powered(log_p_lex, power)
    return torch.cat([law.gather(1, tokens[:, None]) for law in (log_p_lex, flat)], dim=1), features
