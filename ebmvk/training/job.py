"""What a run is asked to do, and the settings that follow from its tokenizer and its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path

from ebmvk.config.checks import check
from ebmvk.config.schema import Config, Source
from ebmvk.config.schema import replace as replace_values
from ebmvk.config.sizes import most_warmup
from ebmvk.data.corpus import Corpus
from ebmvk.data.fidelity import round_trip
from ebmvk.data.folders import data_folders
from ebmvk.data.foreign import END_OF_TEXT
from ebmvk.data.tokenizer import TOKENIZER_FILE, Tokenizer
from ebmvk.data.tokenizer_kinds import OWN_KINDS, make_tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.errors import CheckpointError, ConfigError
from ebmvk.initialisation.start import Start
from ebmvk.runs.folder import read_tokenizer
from ebmvk.runs.progress import Progress
from ebmvk.training.passes import batches_of

Say = Callable[[str], None]
SPLITS = ("validation", "train")  # the splits that a run reads, the shorter one first


@dataclass(frozen=True)
class Job:
    """A run to do.

    sources: where the value of each setting came from. folder: the run folder. resume: the
    checkpoint or run to continue from; None: a new run. again: the folder holds a run with these
    settings that ended before its first checkpoint. before: the settings until now of a run that is
    continued.
    """

    config: Config
    sources: dict[str, Source]
    folder: Path
    corpus: Corpus
    resume: Path | None = None
    again: bool = False
    before: Config | None = None


def tokenizer_of(job: Job, start: Start | None) -> Tokenizer:
    """The tokenizer of a run that is resumed (start: None), of the run that it starts from, or a
    new one.
    """
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


def with_tokenizer(job: Job, start: Start | None, tokenizer: Tokenizer, say: Say) -> tuple[Job, dict[str, object]]:
    """The job with the tokenizer's end token, and facts about a tokenizer from elsewhere."""
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


def with_vocabulary(job: Job, have: int, what: str, why: str, binding: tuple[Source, ...]) -> Job:
    """The job with a vocabulary size that something other than --size decides.

    what, why: for the message: what has this number of tokens, and why it can't have another.
    binding: sources; it is an error if one of them gave another number.

    Raises:
        ConfigError: another number was asked for.
    """
    wanted = job.config.data.vocab_size
    if wanted != have and job.sources.get("vocab_size") in binding:
        raise ConfigError(
            f"--vocab-size {wanted}: {what} has a tokenizer of {have} tokens", why=why, hint="remove --vocab-size"
        )
    config = check(replace_values(job.config, {"vocab_size": have}))
    return replace(job, config=config, sources={**job.sources, "vocab_size": "derived"})


def with_steps(job: Job, train: TokenStream, done: Progress) -> Job:
    """The job with epochs turned into steps, and a default warm-up that fits into a short run.

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
