"""The level of the statistical checks of this folder; seeds are fixed, so a check that passes once passes always."""

from __future__ import annotations

CHECKS = 100
ALPHA = 1e-3 / CHECKS
"""False alarms allowed to each check: 1e-3 shared by all (Bonferroni)."""
