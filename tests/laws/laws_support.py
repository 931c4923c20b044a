"""The level of the statistical checks here. Seeds are fixed, so a check always gives the same
result."""

from __future__ import annotations

CHECKS = 100
ALPHA = 1e-3 / CHECKS
"""Probability of a false alarm per check: 1e-3 in all (Bonferroni)."""
