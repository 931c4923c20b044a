"""Tells which figures of a run are wrong because of faults in the version that made it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ebmvk.config.schema import Config, concerns
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.folder import OpenRun
from ebmvk.runs.metrics import read_history

REVISION = 2
"""Revision of what training computes and records, kept in checkpoints; those without one count as
revision 1.
"""


def revision(found: Checkpoint) -> int:
    """The revision of the version that began a run. Resuming doesn't undo what its first steps
    did."""
    kept = found.state.get("revision")
    return kept if type(kept) is int else 1


def known_faults(run: OpenRun) -> list[str]:
    """Sentences about what is wrong with a run or with the figures in its folder.

    Figures that are measured again with this version are right.
    """
    if revision(run.checkpoint) >= REVISION:
        return []
    return [*_of_its_text(run), *_of_its_steps(run), *_of_its_figures(run)]


def _of_its_text(run: OpenRun) -> Iterator[str]:
    if run.tokenizer.altered:
        yield (
            "Its tokenizer.json truncates or pads texts or adds tokens, and the earlier version trained on the result "
            "instead of the text. Train it again."
        )
    folder = Path(run.config.data.dataset).expanduser()
    if folder.is_dir() and run.folder.is_relative_to(folder.resolve()):
        yield (
            f"It lies in the folder of its text, {folder}: samples.txt and other run files may have been part of "
            "the text. They are left out now."
        )


def _of_its_steps(run: OpenRun) -> Iterator[str]:
    config = run.config
    parts = _parts_of_a_step(run)
    if parts and config.data.apart:
        yield (
            f"It was trained with a mean over {parts} that had equal weights, however few tokens each had; "
            "the mean over all tokens is right. The same flags give different weights now."
        )
    if _has_losses_of_a_batch(config) and config.training.accumulation_steps > 1:
        yield (
            "Its expert losses, or PHI, were computed for each accumulated batch, not for the whole step: in "
            "metrics.jsonl and report.html they differ from what the same flags give now."
        )
    if _has_losses_of_a_batch(config) and config.data.apart:
        yield "Its expert losses, or PHI, counted padding after short documents. They no longer do."


def _of_its_figures(run: OpenRun) -> Iterator[str]:
    if run.config.model.model == "infinito":
        yield (
            "PHI in its metrics.jsonl and report.html is divided by the size of the smaller side of the weakest cut. "
            "It no longer is: if both sides have several units, it is higher now."
        )
    if not run.tokenizer.spells_bytes:
        yield (
            "Bits per byte in its metrics.jsonl and report.html were counted from the names of tokens, which is wrong "
            "for unknown characters and for tokens that mark blanks. Those that `ebmvk evaluate` gives are right."
        )
    if len({row.get("text", {}).get("validation", {}).get("tokens") for row in read_history(run.folder).starts}) > 1:
        yield (
            "Its validation text changed between a start and a resume: its best checkpoint and its patience compare "
            "the losses of two texts."
        )


def _parts_of_a_step(run: OpenRun) -> str:
    """The parts that a step was split into; empty if it was one batch."""
    steps = run.config.training.accumulation_steps
    ranks = max((row.get("ranks", 1) for row in read_history(run.folder).starts), default=1)
    parts = [f"{steps} accumulated batches"] * (steps > 1) + [f"{ranks} processes"] * (ranks > 1)
    return " and ".join(parts)


def _has_losses_of_a_batch(config: Config) -> bool:
    return concerns(config, "training", "moe_balance") or concerns(config, "training", "lambda_phi")
