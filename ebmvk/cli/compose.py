"""`ebmvk compose`: combines the points of two texts into one, and shows what lies near it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ebmvk.cli import parsing
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST


@dataclass(frozen=True, kw_only=True)
class ComposeCommand:
    text: tyro.conf.UseAppendAction[tuple[str, ...]]  # One of the two texts. Give the flag twice.
    # A run folder (its latest complete checkpoint), RUN/best, or a checkpoint folder.
    checkpoint: Path = Path(NEWEST)
    k: int = 10  # The number of nearest tokens to show.
    json: bool = False  # Print one JSON object instead of lines.
    # Where to compute: auto, cpu, cuda, vulkan, vulkan:INDEX or reference (slow).
    device: str = "auto"


FLAGS = flags.flags_of(ComposeCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(ComposeCommand, _compose, argv, command="compose", known=FLAGS, repeatable=("--text",))


def _compose(command: ComposeCommand) -> int:
    if len(command.text) != 2:
        raise ConfigError(f"compose needs two texts, not {len(command.text)}", hint='give --text "…" --text "…"')
    if command.k < 1:
        raise ConfigError(f"--k {command.k} is below 1", hint="use --k 10")
    from ebmvk.api import Model

    model = Model.open(command.checkpoint, device=command.device)
    a, b = model.embed(command.text)
    composed = model.compose(a, b)
    cosines = {"a": float(composed @ a), "b": float(composed @ b), "a_b": float(a @ b)}
    near = model.neighbors(composed, command.k)
    if command.json:
        parts = {"texts": command.text, "cosines": cosines, "point": composed.tolist()}
        print(json.dumps(parts | {"tokens": [dataclasses.asdict(token) for token in near]}))
        return 0
    print(f"cosine to {command.text[0]!r}  {cosines['a']:.4f}\ncosine to {command.text[1]!r}  {cosines['b']:.4f}")
    print(f"between the two  {cosines['a_b']:.4f}")
    print("\n".join(f"  {token.cosine:+.4f}  {token.text!r}" for token in near))
    return 0


if __name__ == "__main__":
    sys.exit(main())
