"""`--dry-run`: do a few real steps of a run, print what the run would take, and leave nothing
behind.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from ebmvk.config.schema import Config
from ebmvk.config.schema import replace as replace_values
from ebmvk.errors import BatchTooLarge, NonFinite, OutOfMemory, StorageError
from ebmvk.host import resources
from ebmvk.host.resources import amount
from ebmvk.monitoring.advice import lower_rate
from ebmvk.monitoring.monitor import Monitor
from ebmvk.report.tables import duration
from ebmvk.runs.atomic import storage_error
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.training.trainer import Trainer

STEPS = 4  # the first one warms up and isn't timed
COPIES = 4  # of the weights: themselves, their gradients, and two moments of AdamW (Muon has one)
METRICS = 1000  # bytes per step in metrics.jsonl, at most
SPLAT = 2000  # bytes of a splat without its resultant: about 120 tokens with counts, 16 bytes each
MakeTrainer = Callable[[Path, Monitor], Trainer]
"""Makes the trainer of the run in a folder."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    parameters: number of them, by part of the model. tokens: number per step. step, evaluation,
    last, saving: seconds of a step, of an evaluation, of the last evaluation, and of a checkpoint.
    peak, twice: bytes of memory with the batch and with a batch twice as large; if `bound`, the
    latter is an upper bound, not measured. obtainable: bytes of memory that can be had, None if
    unknown. checkpoint, free: bytes on the disk: those of a checkpoint with the largest number of
    splats, and the free ones. epochs: completed epochs of the whole run.
    """

    parameters: dict[str, int]
    tokens: int
    step: float
    evaluation: float
    last: float
    saving: float
    peak: int
    twice: int
    bound: bool
    obtainable: int | None
    checkpoint: int
    free: int
    epochs: int


def rehearse(config: Config, folder: Path, trainer_in: MakeTrainer, found: Checkpoint | None) -> None:
    """Print what the run would take. folder: the run folder that it would write; found: the
    checkpoint that it would continue from.

    Raises:
        OutOfMemory, StorageError: it doesn't fit; the hint says what to change.
    """
    near = resources.existing(folder)
    try:
        scratch = TemporaryDirectory(prefix=".ebmvk-dry-run-", dir=near)
    except OSError as error:
        raise storage_error(folder, error, "--dry-run") from error
    with scratch as name, Monitor(Path(name), quiet=True, log_every=1, total=config.training.steps, done=0) as monitor:
        trainer = trainer_in(Path(name), monitor)
        if found:
            trainer.restore(found)
        _refuse_too_many_weights(trainer)
        if choice := trainer.choose():
            print(f"layers      {choice}", flush=True)  # noqa: T201
        try:
            for line in trainer.plan():
                print(line, flush=True)  # noqa: T201
            estimate = _measured(trainer, near)
        except BatchTooLarge as error:
            batch = config.training.batch_size
            raise OutOfMemory(f"--batch-size {batch} does not fit", hint=f"use {error.flags}") from None
        except NonFinite as error:
            raise NonFinite(error.what, why=error.why, hint=f"use {lower_rate(config)}") from None
    for line in told(estimate, config, near, found.step if found else 0):
        print(line, flush=True)  # noqa: T201
    _refuse_full_disk(estimate, config, folder)


def _refuse_too_many_weights(trainer: Trainer) -> None:
    """Raises OutOfMemory before a step is tried: a system without memory may kill the process
    without a message.
    """
    weights = sum(value.numel() * value.element_size() for value in trainer.model.parameters())
    obtainable = resources.obtainable(trainer.device.torch)
    if obtainable is not None and COPIES * weights > obtainable:
        model = trainer.config.model
        unit = 2 * model.n_heads  # the width is a multiple of it
        half = max(1, model.latent_dim // 2 // unit) * unit  # --ffn-dim follows unless it is given
        raise OutOfMemory(
            f"weights, gradients and moments need {amount(COPIES * weights)}; {amount(obtainable)} are available",
            hint="use a smaller --size or --preset" + (f", or --latent-dim {half}" if half < model.latent_dim else ""),
        )


def _measured(trainer: Trainer, near: Path) -> Estimate:
    """Measure a few steps, one evaluation and one checkpoint of the run.

    near: a folder on the same disk.
    """
    config, device = trainer.config, trainer.device.torch
    resources.reset_peak(device)
    before = trainer.progress
    seconds = [_seconds(trainer.step) for _ in range(STEPS)]
    tokens = (trainer.progress.tokens - before.tokens) // STEPS
    peak = resources.step_peak(device)
    evaluation = _seconds(trainer.evaluate)
    part = min(config.logging.eval_tokens, len(trainer.streams.validation) - 1)
    saving = _seconds(trainer.save)
    size = sum(path.stat().st_size for path in trainer.folder.glob("checkpoints/*/*"))
    obtainable, twice = resources.obtainable(device), None
    if obtainable is None or 2 * peak < obtainable:
        twice = _peak_of_twice(trainer)
    return Estimate(
        parameters=parameters(trainer.model),
        tokens=tokens,
        step=median(seconds[1:]),
        evaluation=evaluation,
        last=evaluation * (len(trainer.streams.validation) - 1) / part,
        saving=saving,
        peak=peak,
        twice=2 * peak if twice is None else twice,
        bound=twice is None,
        obtainable=obtainable,
        checkpoint=size + _grown(trainer, tokens),
        free=resources.disk_free(near) + size,
        epochs=config.training.steps * config.training.windows_per_step // trainer.batches.windows,
    )


def _grown(trainer: Trainer, tokens: int) -> int:
    """How many bytes the splats may add to later checkpoints. tokens: per step."""
    if trainer.soc is None:
        return 0
    most = min(trainer.soc.consolidation.phases[-1].capacity, trainer.config.training.steps * tokens)
    return most * (4 * trainer.config.model.latent_dim + SPLAT)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _peak_of_twice(trainer: Trainer) -> int | None:
    """Peak bytes of a step with batches twice as large; None if such a step doesn't fit."""
    own, device = trainer, trainer.device
    config = replace_values(own.config, {"batch_size": 2 * own.config.training.batch_size, "enable_soc": False})
    resources.reset_peak(device.torch)
    wide = Trainer(config, own.folder, own.model, own.tokenizer, own.streams, device, own.monitor, own.probe)
    wide.steps = own.steps.resized(config)  # no second copy of the moments
    try:
        wide.step()
    except OutOfMemory:
        return None
    return resources.step_peak(device.torch)


def parameters(model: torch.nn.Module) -> dict[str, int]:
    """{part: number of parameters} of the model's children and tables, the largest first."""
    count: Counter[str] = Counter()
    for name, value in model.named_parameters():
        count[name.partition(".")[0]] += value.numel()
    return dict(count.most_common())


def told(found: Estimate, config: Config, near: Path, done: int) -> Iterator[str]:
    """The lines to print.

    near: a folder on the disk of the run; done: number of steps done before.
    """
    training, logging = config.training, config.logging
    parts = ", ".join(f"{name} {count:,}" for name, count in found.parameters.items())
    yield f"parameters  {sum(found.parameters.values()):,}: {parts}"
    yield f"speed       {found.tokens / found.step:,.0f} tokens/s: {found.tokens:,} tokens in {found.step:.3f} s"
    limit = "" if found.obtainable is None else f" of {amount(found.obtainable)} available"
    more = "at most " if found.bound else ""
    yield (
        f"memory      {amount(found.peak)}{limit} at the peak; with --batch-size {2 * training.batch_size} "
        f"{more}{amount(found.twice)}"
    )
    needed, free = amount(disk_needed(found, config)), amount(found.free)
    yield (
        f"disk        {needed} for {kept(found, config)} checkpoints of {amount(found.checkpoint)} and metrics, "
        f"of {free} free in {near}"
    )
    left = max(0, training.steps - done)
    evaluations, saves = (-(-left // every) for every in (logging.eval_every, logging.save_every))
    saves += found.epochs * left // training.steps  # each ends with one
    evaluating = evaluations * found.evaluation + found.last
    total = left * found.step + evaluating + saves * found.saving
    word = "evaluation" if evaluations == 1 else "evaluations"
    yield (
        f"time        {duration(total)} for {left:,} steps, without consolidation; {duration(evaluating)} of it "
        f"({evaluating / total:.0%}) for {evaluations} {word} and the last one"
    )


def kept(found: Estimate, config: Config) -> int:
    """The largest number of checkpoints that are on the disk at once. It counts the last ones, the
    best one, the one being written, and those kept every `keep_epochs` epochs.
    """
    logging = config.logging
    return logging.keep_last + 2 + (found.epochs // logging.keep_epochs if logging.keep_epochs else 0)


def disk_needed(found: Estimate, config: Config) -> int:
    """Bytes of all checkpoints and of the metrics."""
    return kept(found, config) * found.checkpoint + METRICS * config.training.steps


def _refuse_full_disk(found: Estimate, config: Config, folder: Path) -> None:
    needed = disk_needed(found, config)
    if needed > found.free:
        room = (found.free - METRICS * config.training.steps) // max(1, found.checkpoint)
        fits = room - kept(found, config) + config.logging.keep_last
        raise StorageError(
            f"--run-dir {folder}: it needs {amount(needed)}, but only {amount(found.free)} are free",
            hint=f"use --keep-last {fits}"
            if fits >= 1
            else "use --keep-epochs 0"
            if room > 2 and config.logging.keep_epochs
            else "choose a --run-dir on a larger disk, or free some space",
        )
