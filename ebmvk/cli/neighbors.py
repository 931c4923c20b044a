"""`ebmvk neighbors`: shows the tokens, and the splats of the memory, nearest to a text's point."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ebmvk.cli import parsing
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST


@dataclass(frozen=True, kw_only=True)
class NeighborsCommand:
    text: str  # The text whose neighbours to show.
    # A run folder (its latest complete checkpoint), RUN/best, or a checkpoint folder.
    checkpoint: Path = Path(NEWEST)
    # The number of tokens and of splats (clusters of similar training contexts) to show.
    k: int = 10
    json: bool = False  # Print one JSON object instead of lines.
    # Where to compute: auto, cpu, cuda, vulkan, vulkan:INDEX or reference (slow).
    device: str = "auto"


FLAGS = flags.flags_of(NeighborsCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(NeighborsCommand, _neighbors, argv, command="neighbors", known=FLAGS)


def _neighbors(command: NeighborsCommand) -> int:
    if command.k < 1:
        raise ConfigError(f"--k {command.k} is below 1", hint="use --k 10")
    from ebmvk.api import Model

    model = Model.open(command.checkpoint, device=command.device)
    point = model.embed(command.text)
    tokens, splats = model.neighbors(point, command.k), model.splats(point, command.k)
    if command.json:
        found = {"tokens": [dataclasses.asdict(token) for token in tokens]}
        print(json.dumps(found | {"splats": [dataclasses.asdict(splat) for splat in splats]}))
        return 0
    print("tokens\n" + "\n".join(f"  {token.cosine:+.4f}  {token.text!r}" for token in tokens))
    if not splats:
        print("no splats, because this checkpoint has no static memory (`ebmvk memory` gives it one)")
        return 0
    print("splats")
    for splat in splats:
        law = ", ".join(f"{text!r} {p:.2f}" for text, p in splat.tokens)
        print(f"  {splat.cosine:+.4f}  kappa {splat.kappa:.4g}  mass {splat.mass:g}  {law}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
