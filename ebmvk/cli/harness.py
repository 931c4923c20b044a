"""`ebmvk harness`: runs tasks of lm-evaluation-harness on a checkpoint.

Flags that this command doesn't know go to `lm_eval`, which prints the results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import NEWEST
from ebmvk.sampling.registry import SamplerName

Tokens = Annotated[int | None, tyro.conf.arg(metavar="TOKENS")]


@dataclass(frozen=True)
class HarnessCommand:
    """Flags of our own; the comments are their help texts.

    Each must take a value, so that `_apart` can skip it.
    """

    checkpoint: Path = Path(NEWEST)  # A run (its newest usable checkpoint), RUN/best, or one checkpoint.
    memory: Literal["none", "static", "episodic", "both"] = "none"  # Tiers of `ebmvk memory` to use.
    context: Tokens = None  # Length of a window; by default seq_length.
    stride: Tokens = None  # Distance between two windows; by default half the context.
    sampler: SamplerName = "exact"  # How tokens are drawn, in tasks that ask for text.
    batch_size: str = "16"  # Number of requests at once; auto means 16.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.


FLAGS = flags.flags_of(HarnessCommand)
OURS = ("--model", "-M", "--model-args", "-a")  # flags of lm_eval that this command sets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0, or 2 for an EbmvkError; otherwise that of lm_eval."""
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(lambda: _harness(*_apart(args)))


def _apart(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into (ours, those of lm_eval)."""
    ours: list[str] = []
    lm_eval_args: list[str] = []
    rest = iter(args)
    for arg in rest:
        flag = next(iter(flags.flags_in([arg])), "")
        if flag in FLAGS:
            ours += [arg] if "=" in arg else [arg, *islice(rest, 1)]
        else:
            (ours if flag in parsing.HELP else lm_eval_args).append(arg)
    return ours, lm_eval_args


def _harness(ours: list[str], lm_eval_args: list[str]) -> int:
    command = parsing.parse(HarnessCommand, ours, command="harness", known=FLAGS)
    if taken := next((flag for flag in flags.flags_in(lm_eval_args) if flag in OURS), None):
        raise ConfigError(
            f"{taken} doesn't work with `ebmvk harness`", hint="remove it: --checkpoint RUN names the model"
        )
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ConfigError(
            f"lm_eval: {error}",
            why="lm-evaluation-harness is an extra",
            hint="./run setup --extra harness, or pip install 'lm-eval>=0.4.9'",
        ) from error
    import ebmvk.evaluation.harness_model  # noqa: F401  # registers the model

    if not command.batch_size.removeprefix("auto:").isdecimal() and command.batch_size != "auto":
        raise ConfigError(f"--batch-size {command.batch_size} isn't a number", hint="give a number, or auto")
    given: dict[str, Any] = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(command).items()
    }
    for name in ("batch_size", "device"):  # lm_eval passes these on itself
        lm_eval_args += [f"--{name}", str(given.pop(name))]
    if (seed := _seed(lm_eval_args)) is not None:  # seeds the texts that the model writes
        given["seed"] = seed
    before = sys.argv
    sys.argv = ["lm_eval", "--model", "ebmvk", "--model_args", json.dumps(given), *lm_eval_args]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0


def _seed(lm_eval_args: Sequence[str]) -> int | None:
    """The first seed in --seed, which lm_eval doesn't pass to models; None without --seed."""
    first = (flags.value_of(lm_eval_args, "--seed") or "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else None


if __name__ == "__main__":
    sys.exit(main())
