"""One run from beginning to end: set up or restored, trained, evaluated, reported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from platform import platform
from typing import Any

import torch

import ebmvk
from ebmvk.config.schema import Config
from ebmvk.config.sizes import smaller
from ebmvk.config.where import why_on_host
from ebmvk.data.tokenizer import TOKENIZER_FILE, Tokenizer
from ebmvk.data.windows import encode_split
from ebmvk.decoding.probe import Probe
from ebmvk.engine.device import Device, open_device
from ebmvk.engine.seeds import set_deterministic
from ebmvk.engine.select import EACH_ITS_OWN
from ebmvk.errors import ConfigError, NonFinite, OutOfMemory
from ebmvk.evaluation.likelihood import text_size
from ebmvk.host import terminal
from ebmvk.host.invocation import invocation
from ebmvk.initialisation.start import Start, apply_start, check_same_trunk, open_start
from ebmvk.model.language import LanguageModel
from ebmvk.monitoring import tensorboard
from ebmvk.monitoring.advice import is_out_of_memory
from ebmvk.monitoring.alerts import Alerts
from ebmvk.monitoring.monitor import Monitor
from ebmvk.objective import noise
from ebmvk.ranks import ALONE, Ranks
from ebmvk.runs.atomic import storage_error
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.folder import check_same_model, find, new_model, save_config
from ebmvk.runs.layout import CONFIG_FILE, REPORT_FILE, SAMPLES_FILE, refuse_existing
from ebmvk.runs.lock import locked
from ebmvk.runs.progress import Progress
from ebmvk.training import summary
from ebmvk.training.job import Job, tokenizer_of, with_steps, with_tokenizer, with_vocabulary
from ebmvk.training.reduction import check_shares, enlist
from ebmvk.training.rehearsal import rehearse
from ebmvk.training.stepping import trained_on_device
from ebmvk.training.streams import Streams
from ebmvk.training.trainer import Outcome, Trainer


@dataclass(frozen=True)
class Voice:
    """Prints lines for users. quiet: prints nothing; verbose: also prints details."""

    quiet: bool = False
    verbose: bool = False

    def say(self, text: str) -> None:
        """Print a line, unless --quiet."""
        if not self.quiet:
            print(terminal.hanging(text), flush=True)  # noqa: T201

    def detail(self, text: str) -> None:
        """Print a line with --verbose."""
        if self.verbose:
            self.say(text)


def execute(
    job: Job, ranks: Ranks = ALONE, *, quiet: bool = False, verbose: bool = False, stop_after: int | None = None,
    dry_run: bool = False, profile: bool = False,
) -> Outcome:  # fmt: skip
    """Train `job` and return how it ended. Everything else is in the run folder.

    Args:
        ranks: the processes of the run; this is the first of them.
        quiet, verbose: print less, or more.
        stop_after: save and stop after this number of steps.
        dry_run: try a few steps, print what the run would take, and leave nothing behind.
        profile: before the first step, measure the kernels of a step on a Vulkan device.

    Raises:
        EbmvkError: of any kind; what was saved before is intact.
    """
    try:
        with nullcontext() if dry_run else locked(job.folder, _warn):
            return _execute(job, ranks, Voice(quiet, verbose), stop_after=stop_after, dry_run=dry_run, profile=profile)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        again = f"--resume --run-dir {shlex.quote(str(job.folder))}"
        raise OutOfMemory(
            f"out of memory: {next(iter(str(error).splitlines()), 'the system gave none')}",
            why="it happened outside of a step: in the set-up, an update of the weights, an evaluation or the report",
            hint=f"close other programs and {again}, or start again with a smaller --size",
        ) from error


def _warn(text: str) -> None:
    """Print a warning, also with --quiet."""
    print(text, file=sys.stderr)  # noqa: T201


@dataclass
class _Prepared:
    """Everything that a trainer needs.

    found: the checkpoint to continue; told: facts for the metrics.
    """

    job: Job
    device: Device
    tokenizer: Tokenizer
    streams: Streams
    model: LanguageModel
    found: Checkpoint | None
    told: dict[str, Any]

    def trainer(self, folder: Path, monitor: Monitor, ranks: Ranks) -> Trainer:
        config, device = self.job.config, self.device
        probe = Probe(config, self.model, self.tokenizer, device.backend, folder / SAMPLES_FILE)
        return Trainer(config, folder, self.model, self.tokenizer, self.streams, device, monitor, probe, ranks)


def _execute(job: Job, ranks: Ranks, voice: Voice, *, stop_after: int | None, dry_run: bool, profile: bool) -> Outcome:
    _check_early(job, ranks, dry_run=dry_run, profile=profile)
    ready = _prepare(job, ranks, voice)
    where = " (--dry-run: nothing is written there)" if dry_run else f" (settings in {CONFIG_FILE})"
    voice.say(f"run folder  {job.folder}{where}")
    if dry_run:
        rehearse(
            ready.job.config, job.folder, lambda folder, monitor: ready.trainer(folder, monitor, ranks), ready.found
        )
        return "finished"
    return _train(ready, ranks, voice, stop_after, profile=profile)


def _check_early(job: Job, ranks: Ranks, *, dry_run: bool, profile: bool) -> None:
    """Raises ConfigError for mistakes that can be found before slow work begins."""
    check_shares(job.config, ranks)
    if profile and (dry_run or ranks.size > 1):
        other = "--dry-run" if dry_run else f"{ranks.size} processes"
        raise ConfigError(
            f"--profile with {other}: it measures one process and writes to its run folder",
            hint="leave out --dry-run" if dry_run else "start it without torchrun",
        )
    if dry_run and ranks.size > 1:
        raise ConfigError(
            f"--dry-run with {ranks.size} processes: it measures one process only",
            hint=f"start it without torchrun and with --batch-size {job.config.training.batch_size // ranks.size}, "
            "the share of one process",
        )
    if job.config.logging.tensorboard:
        tensorboard.check_installed()


def _prepare(job: Job, ranks: Ranks, voice: Voice) -> _Prepared:
    """Open the device, read the text, and make or find the model."""
    config = job.config
    levels = list(noise.notes(config.training, config.model.latent_dim, config.data.vocab_size))
    for line in (f"text        {job.corpus.reason}", *levels):
        voice.say(line)
    device = open_device(config.run.device)
    voice.say(f"device      {_where(device, config, ranks)}")
    if ranks.size > 1:
        rows = config.training.batch_size
        shared = trained_on_device(device, config, ranks.size) and config.run.device != EACH_ITS_OWN
        alone = f", all of a machine on one device; --device {EACH_ITS_OWN} gives each its own" if shared else ""
        voice.say(f"ranks       {ranks.size} processes: each takes {rows // ranks.size} of {rows} windows{alone}")
    set_deterministic(config)
    found = find(job.resume, "--resume", voice.say)[1] if job.resume else None
    if job.again:
        voice.say("run         it ended before its first checkpoint, so it begins again")
    elif not job.resume:
        refuse_existing(job.folder)
    start = None if job.resume else open_start(config.training.init, voice.say)
    job = _of_start(job, start)
    tokenizer = tokenizer_of(job, start)
    if not job.resume and job.config.data.tokenizer != "bpe":
        what, why = f"--tokenizer {job.config.data.tokenizer}", "only --tokenizer bpe takes a number of tokens"
        job = with_vocabulary(job, tokenizer.vocab_size, what, why, ("flag",))
    job, told = with_tokenizer(job, start, tokenizer, voice.say)
    train, validation = (
        encode_split(job.corpus, split, tokenizer, apart=job.config.data.apart) for split in ("train", "validation")
    )
    job = with_steps(job, train, Progress.of(found) if found else Progress())
    model = new_model(job.config, tokenizer, train)
    if start:
        say = voice.say if start.run or start.table else voice.detail
        told["init"] = apply_start(start, model, job.config, tokenizer, train, say)
    return _Prepared(job, device, tokenizer, Streams(train, validation, job.corpus.digests()), model, found, told)


def _of_start(job: Job, start: Start | None) -> Job:
    """The job with the vocabulary of the run that it starts from.

    Raises ConfigError if the two don't fit.
    """
    if start is None or start.run is None:
        return job
    why = "its embeddings belong to the tokens they were trained with"
    have = start.run.config.data.vocab_size
    job = with_vocabulary(job, have, f"--init {start.run.folder}", why, ("file", "flag"))
    check_same_trunk(start.run, job.config)
    return job


def _where(device: Device, config: Config, ranks: Ranks) -> str:
    """Which device, why, and where the layers run."""
    there = "the layers train there and read the validation text; samples run on the CPU"
    if config.run.device == "auto":
        there = "the layers run there or on the CPU, whichever is faster"
    return device.told(why_on_host(config, ranks.size), there)


def _train(ready: _Prepared, ranks: Ranks, voice: Voice, stop_after: int | None, *, profile: bool) -> Outcome:
    job, found = ready.job, ready.found
    ready.found = None  # it holds all weights and moments once more
    config, done = job.config, found.step if found else 0
    if not job.resume:
        save_config(job.folder, config, job.sources)
        ready.tokenizer.save(job.folder / TOKENIZER_FILE)
    monitor = Monitor(
        job.folder, quiet=voice.quiet, verbose=voice.verbose, log_every=config.logging.log_every,
        total=config.training.steps, done=done, device=ready.device.torch, alerts=Alerts(config),
        smaller=smaller(config), board=tensorboard.Board(job.folder, done) if config.logging.tensorboard else None,
    )  # fmt: skip
    with _reported(job), monitor:
        trainer = ready.trainer(job.folder, monitor, ranks)
        if found:
            _resume(job, trainer, found, monitor)
        choice = trainer.choose()
        if choice:
            monitor.say(f"layers      {choice}")
        enlist(ranks, config, ready.streams.train, trainer.model, trainer.steps.optimizer)
        facts = _facts(job, trainer, ready.device) | ({"measured": choice.record()} if choice else {})
        for line in summary.opening(config, facts):
            monitor.say(line)
        for line in summary.details(job, facts):
            monitor.detail(line)
        monitor.record("resume" if found else "start", done, facts | ready.told)
        del found
        if profile:
            _profile(trainer, ready.device, monitor)
        outcome = trainer.run(stop_after)
    return _close(job, trainer, outcome, voice)


def _profile(trainer: Trainer, device: Device, monitor: Monitor) -> None:
    """Measure the kernels of the next step and write the result to the run folder."""
    from ebmvk.engine.ceilings import ceilings
    from ebmvk.report import profile  # torch's tracer takes a while to import

    programs = trainer.profile()
    monitor.doing("measuring the limits of the device")
    limits = ceilings(device.backend, quick=True)
    found = profile.Measured(programs, limits, trainer.folder.name, device.backend.device, ebmvk.__version__)
    monitor.say(f"profile     {profile.line(found)}")
    monitor.say(f"            page: {profile.write(found, trainer.folder)}")


def _resume(job: Job, trainer: Trainer, found: Checkpoint, monitor: Monitor) -> None:
    """Let the trainer continue from a checkpoint."""
    check_same_model(found, job.config, trainer.tokenizer)
    trainer.restore(found)
    save_config(job.folder, job.config, job.sources)  # not before the checkpoint is known to fit
    if job.before and (jump := summary.jump(job.before, job.config, found.step)):
        monitor.say(jump)
    for path in trainer.take_over(found):
        monitor.say(f"set aside   {path.name}: it lies after the step that this run continues from")


def _facts(job: Job, trainer: Trainer, device: Device) -> dict[str, Any]:
    """What stays the same for the whole run, for the metrics and the report."""
    train, validation = trainer.streams.train, trainer.streams.validation
    sizes = {"train": text_size(train, trainer.tokenizer), "validation": text_size(validation, trainer.tokenizer)}
    return {
        "ebmvk": ebmvk.__version__,
        "torch": torch.__version__,
        "platform": platform(),
        "threads": torch.get_num_threads(),
        "ranks": trainer.ranks.size,
        "device": device.reason,
        "torch_device": str(device.torch),
        "trained_on": trainer.steps.where,
        "corpus": {"name": job.corpus.name, "reason": job.corpus.reason, "sha256": dict(trainer.streams.text)},
        "text": {split: vars(size) for split, size in sizes.items()},
        "vocabulary": trainer.tokenizer.vocab_size,
        "unigram_nats": float(torch.special.entr(trainer.evaluations.unigram.double()).sum()),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "steps": job.config.training.steps,
        "steps_per_epoch": trainer.batches.steps_per_epoch,
    }


@contextmanager
def _reported(job: Job) -> Iterator[None]:
    """Write the report even if a number that isn't finite ends the run, because its alert says
    where that began.
    """
    try:
        yield
    except NonFinite:
        report(job.folder)
        raise


def report(folder: Path) -> Path:
    """Write the report of a run folder. Raises StorageError."""
    from ebmvk.report.run_page import write_report  # matplotlib takes a while to import

    file = folder / REPORT_FILE
    try:
        return write_report(folder, file)
    except OSError as error:
        raise storage_error(file, error, "writing the report") from error


def _close(job: Job, trainer: Trainer, outcome: Outcome, voice: Voice) -> Outcome:
    """Write the report; print samples, paths and the next commands.

    With --quiet the paths are still printed.
    """
    page = report(job.folder)
    if outcome == "finished":
        for line in summary.samples(job.folder):
            voice.say(line)
    lines = [f"report      {page}"]
    if voice.quiet or outcome != "finished":
        lines.insert(0, f"run folder  {job.folder}")
    if outcome != "finished":
        command = f"{invocation('train')} --resume --run-dir {shlex.quote(str(job.folder))}"
        lines += [f"saved       step {trainer.progress.step} of {job.config.training.steps}", f"continue    {command}"]
    elif not voice.quiet:
        lines += summary.next_steps(job.folder, tested="test" in job.corpus.splits)
    print("\n".join(lines), flush=True)  # noqa: T201  # not wrapped, so that commands can be pasted
    return outcome
