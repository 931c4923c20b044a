"""One run from a job: set up or restored, trained, evaluated, reported."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from platform import platform
from typing import Any

import torch

import ebmvk
from ebmvk.config.checks import check
from ebmvk.config.schema import Config, Source, concerns, flag, items
from ebmvk.config.schema import replace as replace_values
from ebmvk.config.sizes import derive, most_warmup, smaller
from ebmvk.data.datasets import Corpus, data_folders
from ebmvk.data.fidelity import round_trip
from ebmvk.data.foreign import END_OF_TEXT
from ebmvk.data.tokenizer import OWN_KINDS, TOKENIZER_FILE, Tokenizer, make_tokenizer
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.decoding.probe import Probe
from ebmvk.engine.device import Device, open_device
from ebmvk.engine.seeds import set_deterministic
from ebmvk.errors import CheckpointError, ConfigError, NonFinite, OutOfMemory
from ebmvk.evaluation.likelihood import text_size
from ebmvk.initialisation.start import Start, apply_start, check_same_trunk, open_start
from ebmvk.monitoring import tensorboard
from ebmvk.monitoring.advice import is_out_of_memory
from ebmvk.monitoring.alerts import Alerts
from ebmvk.monitoring.monitor import Monitor
from ebmvk.objective import noise
from ebmvk.ranks import ALONE, Ranks
from ebmvk.runs.atomic import storage_error
from ebmvk.runs.folder import check_same_model, find, new_model, read_tokenizer, save_config
from ebmvk.runs.layout import CONFIG_FILE, REPORT_FILE, SAMPLES_FILE, refuse_existing
from ebmvk.runs.lock import locked
from ebmvk.runs.progress import Progress
from ebmvk.training import optim
from ebmvk.training.passes import batches_of
from ebmvk.training.reduction import check_shares, enlist
from ebmvk.training.rehearsal import rehearse
from ebmvk.training.streams import Streams
from ebmvk.training.trainer import Outcome, Trainer

Say = Callable[[str], None]
SPLITS = ("validation", "train")  # the splits that a run reads, the shorter one first


@dataclass(frozen=True)
class Job:
    """A configuration with the source of each value, the run's folder, and what to continue from (None: a new run).
    again: the folder holds a run of this configuration that ended before its first checkpoint. before: the
    configuration that a run to continue had until now."""

    config: Config
    sources: dict[str, Source]
    folder: Path
    corpus: Corpus
    resume: Path | None = None
    again: bool = False
    before: Config | None = None


def execute(job: Job, ranks: Ranks = ALONE, *, quiet: bool, stop_after: int | None, dry_run: bool = False) -> Outcome:
    """Train `job` and return how it ended; the run folder has everything else. dry_run: say what it would take, after
    a few steps, and leave nothing. ranks: the processes of the run, of which this is the first.

    Raises:
        EbmvkError: of any kind; what was saved before is intact.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)  # noqa: T201

    try:
        with nullcontext() if dry_run else locked(job.folder, _warn):
            return _execute(job, ranks, say, quiet=quiet, stop_after=stop_after, dry_run=dry_run)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        again = f"--resume --run-dir {shlex.quote(str(job.folder))}"
        raise OutOfMemory(
            f"no memory: {next(iter(str(error).splitlines()), 'the system gave none')}",
            why="it was not a step's batch: set-up, an update of the weights, an evaluation or the report asked for it",
            hint=f"close other programs and {again}, or start again with a smaller --size",
        ) from error


def _warn(text: str) -> None:
    """With --quiet too."""
    print(text, file=sys.stderr)  # noqa: T201


def _execute(job: Job, ranks: Ranks, say: Say, *, quiet: bool, stop_after: int | None, dry_run: bool) -> Outcome:
    # Before anything slow: what does not go over ranks, a level that is no noise, and a package that is missing.
    check_shares(job.config, ranks)
    if dry_run and ranks.size > 1:
        raise ConfigError(
            f"--dry-run with {ranks.size} processes: it measures one",
            hint=f"leave torchrun away and take --batch-size {job.config.training.batch_size // ranks.size}, a share",
        )
    if job.config.logging.tensorboard:
        tensorboard.check_installed()
    levels = noise.notes(job.config.training, job.config.model.latent_dim, job.config.data.vocab_size)
    unmade = " (--dry-run: it is not made)" if dry_run else ""
    said = [f"run folder  {job.folder}{unmade}", f"corpus      {job.corpus.reason}", *levels]
    say("\n".join(said))
    device = open_device(job.config.run.device)
    say(f"device      {device.reason}; the trunk runs on {device.torch} in {job.config.training.precision}")
    if ranks.size > 1:
        rows = job.config.training.batch_size
        say(f"ranks       {ranks.size}: each takes {rows // ranks.size} of {rows} windows; the first one writes")
    set_deterministic(job.config)
    found = find(job.resume, "--resume", say)[1] if job.resume else None
    if job.again:
        say("begins again: it ended before its first checkpoint")
    elif not job.resume:
        refuse_existing(job.folder)
    start = None if job.resume else open_start(job.config.training.init, say)
    if start and start.run:
        why = "its embeddings belong to the tokens they were trained with"
        have = start.run.config.data.vocab_size
        job = _with_vocabulary(job, have, f"--init {start.run.folder}", why, ("file", "flag"))
        check_same_trunk(start.run, job.config)
    tokenizer = _tokenizer(job, start)
    if not job.resume and job.config.data.tokenizer != "bpe":
        what = f"--tokenizer {job.config.data.tokenizer}"
        job = _with_vocabulary(job, tokenizer.vocab_size, what, "it is not made for a number of tokens", ("flag",))
    job, told = _with_tokenizer(job, start, tokenizer, say)
    data = job.config.data
    train, validation = (
        encode_split(job.corpus, split, tokenizer, apart=data.apart) for split in ("train", "validation")
    )
    streams = Streams(train, validation, job.corpus.digests())
    job = _with_steps(job, streams.train, Progress.of(found) if found else Progress())
    for line in _settings(job, written=not dry_run):
        say(line)
    model = new_model(job.config, tokenizer, streams.train)
    started = {"init": apply_start(start, model, job.config, tokenizer, streams.train, say)} if start else {}
    config = job.config

    def trainer_in(folder: Path, monitor: Monitor) -> Trainer:
        probe = Probe(config, model, tokenizer, device.backend, folder / SAMPLES_FILE)
        return Trainer(config, folder, model, tokenizer, streams, device, monitor, probe, ranks)

    if dry_run:
        rehearse(config, job.folder, trainer_in, found)
        return "finished"
    total, done = job.config.training.steps, found.step if found else 0
    if not job.resume:
        save_config(job.folder, job.config, job.sources)
        tokenizer.save(job.folder / TOKENIZER_FILE)
    monitor = Monitor(
        job.folder, quiet=quiet, log_every=job.config.logging.log_every, total=total, done=done, device=device.torch,
        alerts=Alerts(job.config), smaller=smaller(job.config),
        board=tensorboard.Board(job.folder, done) if job.config.logging.tensorboard else None,
    )  # fmt: skip
    with _reported(job), monitor:
        trainer = trainer_in(job.folder, monitor)
        if found:
            check_same_model(found, job.config, tokenizer)
            trainer.restore(found)
            save_config(job.folder, job.config, job.sources)  # not before the checkpoint is known to fit
            if job.before and (jump := _jump(job.before, job.config, done)):
                monitor.say(jump)
            for path in trainer.take_over(found):
                monitor.say(f"set aside   {path.name}: it lies after the step this run continues from")
        enlist(ranks, config, streams.train, trainer.model, trainer.optimizer)
        facts = _facts(job, trainer, device)
        for line in _unknown(facts["text"]):
            monitor.say(line)
        monitor.record("resume" if found else "start", done, facts | told | started)
        del found  # weights, moments and splats once more, for as long as the run takes
        outcome = trainer.run(stop_after)
    return _close(job, trainer, outcome, say)


def _tokenizer(job: Job, start: Start | None) -> Tokenizer:
    """The run's own when it is resumed, that of the run it starts from, or a new one."""
    data = job.config.data
    if start is None:
        return _unaltered(read_tokenizer(job.folder, job.config), job.folder)
    if start.run:
        return start.run.tokenizer.faithful()
    folders = [path for path, _ in data_folders(data.data_dir)]
    return make_tokenizer(data.tokenizer, job.corpus, data.vocab_size, folders, data.end_token)


def _unaltered(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    """Raises CheckpointError if a run was trained on tokens that its tokenizer no longer gives."""
    if tokenizer.altered:
        raise CheckpointError(
            f"{folder / TOKENIZER_FILE} truncates or pads texts, puts special tokens around them, or "
            "splits words at random",
            why="an earlier version trained this run on such tokens, which do not match its text",
            hint="start a new run with the same --tokenizer: there, all of this is switched off",
        )
    return tokenizer


def _with_tokenizer(job: Job, start: Start | None, tokenizer: Tokenizer, say: Say) -> tuple[Job, dict[str, object]]:
    """The job with the end token that was found, and notes on a tokenizer from elsewhere."""
    if start is None:
        return job, {}
    wanted = job.config.data.end_token
    if start.run and wanted not in (None, tokenizer.end_token):
        raise ConfigError(
            f"--end-token {wanted}: the tokenizer of --init {start.run.folder} has {tokenizer.end_token}",
            hint="remove --end-token",
        )
    facts: dict[str, object] = {"end_token": tokenizer.end_token}
    if tokenizer.end_token != END_OF_TEXT and wanted is None:
        config = replace_values(job.config, {"end_token": tokenizer.end_token})
        job = replace(job, config=config, sources={**job.sources, "end_token": "derived"})
    if not start.run and job.config.data.tokenizer not in OWN_KINDS:
        found = round_trip(tokenizer, job.config.data.tokenizer, chain(*map(job.corpus.documents, SPLITS)))
        facts |= {"notes": tokenizer.notes, "round_trip": vars(found)}
        for line in (*tokenizer.notes, str(found)):
            say(f"tokenizer   {line}")
    return job, {"tokenizer": facts}


def _with_vocabulary(job: Job, have: int, what: str, why: str, binding: tuple[Source, ...]) -> Job:
    """The job with a vocabulary that is not its size's to choose.

    what: what has so many tokens, for the message; why: why no other number can be had. binding: the sources of another
    number that are not passed over.

    Raises:
        ConfigError: another number was asked for.
    """
    wanted = job.config.data.vocab_size
    if wanted != have and job.sources.get("vocab_size") in binding:
        raise ConfigError(
            f"--vocab-size {wanted}: {what} has a tokenizer of {have}", why=why, hint="leave --vocab-size away"
        )
    config = check(replace_values(job.config, {"vocab_size": have}))
    return replace(job, config=config, sources={**job.sources, "vocab_size": "derived"})


def _with_steps(job: Job, train: TokenStream, done: Progress) -> Job:
    """Epochs become steps; a warm-up that nobody asked for fits into a short run.

    The epochs of a resumed run count what it has read already, whatever its batch size was then.
    """
    config, sources = job.config, dict(job.sources)
    batches = batches_of(config, train)
    if config.training.epochs is not None:
        left = config.training.epochs * batches.windows - done.windows
        steps = max(1, done.step + ceil(left / config.training.windows_per_step))
        config, sources["steps"] = replace_values(config, {"steps": steps}), "derived"
    short = most_warmup(config.training.steps)
    if not job.resume and sources.get("warmup_steps") not in ("file", "flag") and config.training.warmup_steps > short:
        config, sources["warmup_steps"] = replace_values(config, {"warmup_steps": short}), "derived"
    return replace(job, config=config, sources=sources)


TOLD = ("model", "size", "device", "dataset")  # printed on lines of their own
SAYS: dict[Source, str] = {
    "flag": "by flags",
    "file": "by a file",
    "preset": "by preset",
    "stage": "by stage",
    "derived": "derived",  # from the text, the processor, or another value
}
JUMP = 1.25  # a learning rate that changes by this factor or more is reported


def _jump(before: Config, now: Config, step: int) -> str | None:
    """A line if changed settings make the learning rate jump at the next step; None if it continues smoothly."""
    names = ("learning_rate", "steps", "warmup_steps")
    old, new = (optim.lr_at(step, config.training) for config in (before, now))
    if max(old, new) < JUMP * min(old, new):
        return None
    changed = [
        f"{flag(name)} {getattr(before.training, name):g}, now {getattr(now.training, name):g}"
        for name in names
        if getattr(before.training, name) != getattr(now.training, name)
    ]
    return f"rate        the learning rate jumps from {old:.2g} to {new:.2g} at step {step + 1}: {'; '.join(changed)}"


def _settings(job: Job, *, written: bool) -> Iterator[str]:
    """Lines on settings that differ from the size's defaults, by origin. written: config.toml exists and has all."""
    config, shown = job.config, dict[str, list[str]]()
    usual = replace_values(Config(), derive(config.run.size, None))
    for (section, name, value), (_, _, common) in zip(items(config), items(usual), strict=True):
        source = job.sources.get(name, "default")
        # In a run that an earlier version resumed, all values are marked as coming from a file.
        said = source in SAYS and not (source == "file" and value == common)
        if said and value is not None and name not in TOLD and concerns(config, section, name):
            shown.setdefault(source, []).append(f"{name} {value}")
    where = f"; all of them: {job.folder / CONFIG_FILE}" if written else ""
    yield f"settings    --model {config.model.model} --size {config.run.size}{where}"
    for kind, words in SAYS.items():
        if kind in shown:
            yield f"  {words:<10}{', '.join(shown[kind])}"


def _unknown(text: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A line for each split with characters that the tokenizer does not know."""
    for split, size in text.items():
        if size["unknown"]:
            yield (
                f"unknown     {size['unknown']:,} characters of the {split} text are unknown tokens: "
                "the likelihood does not cover which ones they are"
            )


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
    """Writes the report of a run that ends for a number that is not finite too: its alert says where that began."""
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


def _close(job: Job, trainer: Trainer, outcome: Outcome, say: Say) -> Outcome:
    """Write the report; print a sample of the model's text, the paths, and the next commands. Paths are printed even
    with --quiet: they are the result."""
    page = report(job.folder)
    if outcome == "finished" and (text := sample(job.folder)):
        say(f"it writes   {text}")
    lines = [f"run folder  {job.folder}", f"report      {page}"]
    if outcome != "finished":
        command = f"python -m ebmvk.train --resume --run-dir {shlex.quote(str(job.folder))}"
        lines += [f"saved       step {trainer.progress.step} of {job.config.training.steps}", f"continue    {command}"]
    print("\n".join(lines), flush=True)  # noqa: T201
    if outcome == "finished":
        say("\n".join(next_steps(job.folder, tested="test" in job.corpus.splits)))
    return outcome


SHOWN = 400  # characters of a sample


def sample(folder: Path) -> str:
    """The start of a run's newest sample, without characters that control a terminal; empty without samples."""
    try:
        text = (folder / SAMPLES_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    blocks = re.split(r"(?m)^--- step (\d+), sample 1\b.*$", text)
    newest = re.split(r"(?m)^--- step ", blocks[-1])[0].strip() if len(blocks) > 1 else ""
    cut = newest[:SHOWN] + ("…" if len(newest) > SHOWN else "")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in cut)


def next_steps(folder: Path, *, tested: bool) -> Iterator[str]:
    """Commands to run next. tested: the corpus has a test split."""
    at = f"--checkpoint {shlex.quote(str(folder))}"
    yield f"next        python -m ebmvk.generate {at} --max-tokens 100    # text; --prompt TEXT begins it"
    yield f"            python -m ebmvk.evaluate {at}{' --split test' if tested else ''}    # its exact likelihood"
    yield f"            python -m ebmvk.diagnose {at} --report    # what is fine, and what to change"
