"""`ebmvk embed`: maps texts to points on the sphere, and computes their exact energies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ebmvk.cli import parsing
from ebmvk.config import flags
from ebmvk.errors import ConfigError, StorageError
from ebmvk.runs.layout import NEWEST


@dataclass(frozen=True)
class EmbedCommand:
    # A run folder (its latest complete checkpoint), RUN/best, or a checkpoint folder.
    checkpoint: Path = Path(NEWEST)
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # A text to embed.
    # A file with one text per line.
    file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    # Which vector to return. point: where the model expects the next token; local, medium, global:
    # the context vector of that range of the text; composed: these three, composed into one.
    scale: Literal["point", "local", "medium", "global", "composed"] = "point"
    # Also compute the exact energy of each text: -log of its probability, in nats.
    energy: bool = False
    # Also write the points to this file, as a numpy matrix.
    npy: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    json: bool = False  # Print one JSON object per text instead of lines.
    # Where to compute: auto, cpu, cuda, vulkan, vulkan:INDEX or reference (slow).
    device: str = "auto"


FLAGS = flags.flags_of(EmbedCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(EmbedCommand, _embed, argv, command="embed", known=FLAGS, repeatable=("--text",))


def _embed(command: EmbedCommand) -> int:
    texts = [*command.text, *_lines(command.file)]
    if not texts:
        raise ConfigError("no text is given", hint='give --text "…", or --file PATH with one text per line')
    from ebmvk.api import Model

    model = Model.open(command.checkpoint, device=command.device)
    points = model.embed(texts, command.scale)
    for text, point in zip(texts, points, strict=True):
        record: dict[str, Any] = {"text": text}
        if command.energy:
            energy = model.energy(text)
            record |= {"energy": energy.total, "tokens": energy.tokens, "nats": energy.nats.tolist()}
        if command.json:
            print(json.dumps(record | {"scale": command.scale, "point": point.tolist()}))
            continue
        near = ", ".join(repr(token.text) for token in model.neighbors(point, 5))
        cost = f"  {record['energy']:.3f} nats, {len(record['tokens'])} tokens" if command.energy else ""
        print(f"{text!r}{cost}  nearest: {near}")
    if command.npy:
        _write(command.npy, points.numpy())
    return 0


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    from ebmvk.data.files import ANYTHING, lines_of, read_text

    return lines_of(read_text(file, ANYTHING))  # any format, because each line is a text


def _write(path: Path, rows: Any) -> None:
    import numpy as np

    try:
        with path.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
    except OSError as error:
        raise StorageError(
            f"--npy {path} could not be written: {error.strerror or error}", hint="name a file in another folder"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
