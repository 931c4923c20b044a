"""The texts of a run as tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from ebmvk.data.windows import TokenStream


@dataclass(frozen=True)
class Streams:
    """text: {split: SHA-256 of its text} for all splits of the corpus."""

    train: TokenStream
    validation: TokenStream
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)
