"""`ebmvk train`: reads text, and writes a run folder with checkpoints, metrics and a report."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ebmvk.cli import calling, parsing, running
from ebmvk.cli.signatures import takes
from ebmvk.config import flags
from ebmvk.config.checks import check, check_owned, check_resume, with_windows
from ebmvk.config.models import MODELS, WINDOWS
from ebmvk.config.resolve import (
    FULL,
    Level,
    file_values,
    given_values,
    is_widened,
    merged,
    overridden,
    recipe_values,
    size_values,
)
from ebmvk.config.schema import Config, RunConfig, Source, replace
from ebmvk.config.sizes import derive, most_warmup, unsettled
from ebmvk.config.toml import sources_in
from ebmvk.config.where import needs_float32
from ebmvk.errors import INTERRUPTED, ConfigError, EbmvkError
from ebmvk.runs.layout import CONFIG_FILE, LOCK_FILE, NEWEST, RUNS, newest, refuse_existing

if TYPE_CHECKING:
    from ebmvk.api import Trained
    from ebmvk.data.corpus import Corpus
    from ebmvk.ranks import Handler, Ranks
    from ebmvk.training.job import Job

COMMON = {"common": True}
TITLES = {
    "run": "Size and machine",
    "data": "Text",
    "model": "Model",
    "langevin": "Sampling",
    "training": "Training",
    "logging": "Output",
    "splats": "Memory splats",
    "": "This run",
}
"""{section of the settings: title of its flags in the help}."""


@dataclass(frozen=True)
class TrainCommand(Config):
    """The settings of a run, and flags that concern one call only."""

    # The folder of the run; by default runs/DATASET-SIZE-TIME.
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = field(default=None, metadata=COMMON)
    # Continue a run: the newest one, or the one in PATH.
    resume: Annotated[str | None, tyro.conf.arg(metavar="[PATH]")] = field(default=None, metadata=COMMON)
    # Save and stop after N steps of this call.
    stop_after: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    # A recipe of --model: small, medium or large.
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    # Read settings from a file; flags win over it.
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = field(default=None, metadata=COMMON)
    # Try a few steps, print the time, memory and disk space that the run would take, and leave
    # nothing behind.
    dry_run: bool = field(default=False, metadata=COMMON)
    # With --device vulkan: before the first step, measure each kernel of a step, and write
    # profile.html, profile.json and trace.json (for Perfetto) to the run folder.
    profile: bool = False
    # Print all settings, and every figure while the run trains.
    verbose: bool = field(default=False, metadata=COMMON)
    # Print only errors, warnings and the paths of the results.
    quiet: bool = field(default=False, metadata=COMMON)

    @property
    def settings(self) -> Config:
        return Config(**{section.name: getattr(self, section.name) for section in dataclasses.fields(Config)})


FLAGS = flags.flags_of(TrainCommand)
REPEATABLE = ("--include",)


def main(argv: Sequence[str] | None = None, *, command: str = "train", stage: Mapping[str, Any] = FULL) -> int:
    """Exit status: 0 finished or stopped as asked, 2 a typed error, 130 interrupted (and saved).

    command: the name of this command. stage: {field: value}, defaults of the command that replace
    those of the size.
    """
    args = flags.fill_optional(flags.at_home(sys.argv[1:] if argv is None else argv), "--resume", NEWEST)
    return running.run(lambda: running.lead(lambda ranks: _train(args, command, stage, ranks), _followed), saves=True)


@takes(TrainCommand, without=("dry_run",), unsettled=unsettled())
def train(**settings: Any) -> Trained:
    """Train a model as `ebmvk train` does, and return how the run ended. The run's folder has
    everything else.

    settings: the flags of the command as keyword arguments, with underscores: `size="nano"`,
    `steps=300`, `lr=1e-3`, `dataset="my.txt"`, `run_dir="runs/first"`, `resume="runs/first"`,
    `preset="small"`, `use_moe=True`, `quiet=True`. If Ctrl-C interrupts a run, it is saved.
    A default that is shown as `...` depends on `size`, on `model` and on the length of the text. To
    see it, run `ebmvk train --size nano --model ebm --dataset my.txt --help-all`. `preset`,
    `config` and `resume` bring values of their own.

    >>> run = ebmvk.train(size="nano", steps=300, run_dir="runs/first")
    >>> run.validation["bits_per_byte"]

    Raises:
        ConfigError: a setting is unknown or bad, or two contradict each other.
        EbmvkError: any other error that the command would print; what was saved before is intact.
    """
    if settings.get("dry_run"):
        raise ConfigError("ebmvk.train(dry_run=True) has no result", hint="use the command: ebmvk train --dry-run")
    if settings.get("resume") is True:
        settings["resume"] = NEWEST
    command, job = asked(calling.arguments("train", settings, FLAGS))
    from ebmvk.api import Trained
    from ebmvk.runs.metrics import read_history
    from ebmvk.training.session import execute

    outcome = execute(
        job, quiet=command.quiet, verbose=command.verbose, stop_after=command.stop_after, profile=command.profile
    )
    history = read_history(job.folder)
    end = history.end or {}
    return Trained(job.folder, outcome, history.step, end.get("validation"), end.get("trigram"))


def _followed(ranks: Ranks) -> Mapping[str, Handler]:
    from ebmvk.training.follower import Follower

    return Follower(ranks).handlers()


def _train(args: list[str], name: str, stage: Mapping[str, Any], ranks: Ranks | None) -> int:
    """Parse the arguments, decide what to train, and train it.

    ranks: the processes, if there are several.
    """
    command, job = asked(args, name, stage)
    from ebmvk.ranks import ALONE
    from ebmvk.training.session import execute

    outcome = execute(
        job,
        ranks or ALONE,
        quiet=command.quiet,
        verbose=command.verbose,
        stop_after=command.stop_after,
        dry_run=command.dry_run,
        profile=command.profile,
    )
    return INTERRUPTED if outcome == "interrupted" else 0


def asked(args: Sequence[str], name: str = "train", stage: Mapping[str, Any] = FULL) -> tuple[TrainCommand, Job]:
    """The command and the job that the arguments ask for; nothing is started.

    Raises:
        ConfigError: a flag is unknown, its value is bad, or two flags contradict each other.
        DataError, CheckpointError: the text, or the run to resume, doesn't exist.
    """
    parsing.check_flags(args, FLAGS, name, REPEATABLE)
    base, levels = _defaults(args, stage)
    if "--include" in flags.flags_in(args):  # flags replace the file's patterns instead of adding to them
        base = replace(base, {"include": ()})
    if set(parsing.HELP) & set(args) and flags.value_of(args, "--resume") is None:
        base = _of_text(base, levels, args)
    default = TrainCommand(**vars(base))
    command = parsing.parse(
        TrainCommand, args, command=name, known=FLAGS, default=default, repeatable=REPEATABLE, titles=TITLES
    )
    if command.verbose and command.quiet:
        raise ConfigError("--verbose and --quiet are both given", hint="give one of them")
    if command.stop_after is not None and command.stop_after < 1:
        raise ConfigError(f"--stop-after {command.stop_after} is less than 1", hint="give a number of steps")
    given = given_values(args, command.settings)
    resume = command.resume
    return command, _new(command, levels, given) if resume is None else _resumed(command, resume, levels, given)


# ---- what to train: size < model < stage < preset < file < flags ---------------------------------


def _defaults(args: Sequence[str], stage: Mapping[str, Any] = FULL) -> tuple[Config, list[Level]]:
    """The configuration that --help shows and that flags change, and its levels, the weakest first.

    It starts from the run to resume or from --size; model, stage, preset and file change it.
    """
    file, resume = file_values(args), flags.value_of(args, "--resume")
    if resume is not None:
        from ebmvk.runs.folder import read_config

        config = read_config(_resume_folder(resume, flags.value_of(args, "--run-dir"))[0])
    else:
        size = flags.value_of(args, "--size") or file.get("size", RunConfig.size)
        config = replace(Config(), size_values(size, None))
    model = flags.value_of(args, "--model") or file.get("model", config.model.model)
    levels: list[Level] = [("preset", recipe_values(args, model)), ("file", file)]
    if resume is None:
        own = MODELS[model].defaults if model in MODELS else {}  # a misspelt name is refused by the parser
        levels = [("model", own), ("stage", stage), *levels]
    return replace(config, merged(*(said for _, said in levels), {})), levels


def _of_text(base: Config, levels: Sequence[Level], args: Sequence[str]) -> Config:
    """The defaults of a run on the text that --dataset names: they are smaller for a short text."""
    from ebmvk.data.published import FETCHABLE
    from ebmvk.runs.text import find_text

    dataset = flags.value_of(args, "--dataset") or base.data.dataset
    if dataset in FETCHABLE:  # --help downloads nothing
        return base
    folder = flags.value_of(args, "--data-dir")
    data = dataclasses.replace(
        base.data,
        dataset=dataset,
        data_dir=Path(folder) if folder else base.data.data_dir,
        include=flags.values_of(args, "--include") or base.data.include,
        raw=base.data.raw or "--raw" in flags.flags_in(args),
    )
    try:
        size = find_text(data).bytes("train")
    except EbmvkError:  # --help must work without the text
        return base
    derived = derive(base.run.size, size, ask_processor=False)
    said = [said for _, said in levels]
    config = replace(replace(base, {**derived, "size": base.run.size}), merged(*said, {}))
    most = most_warmup(config.training.steps)
    if not any("warmup_steps" in own for own in said) and config.training.epochs is None:
        config = replace(config, {"warmup_steps": min(config.training.warmup_steps, most)})
    model = flags.value_of(args, "--model")
    seen = with_windows(replace(config, {"model": model}) if model in MODELS else config)
    return replace(seen, {"model": config.model.model})


def _new(command: TrainCommand, levels: Sequence[Level], given: dict[str, Any]) -> Job:
    from ebmvk.data.tokenizer_kinds import check_named
    from ebmvk.runs.text import find_text

    if command.run_dir is not None:
        _refuse_existing(command.run_dir, dry_run=command.dry_run)
    size = command.settings.run.size
    over = [*(said for _, said in levels), given]
    nominal = size_values(size, None)
    early = replace(Config(), overridden(nominal, over))
    check_owned(early, [*levels, ("flag", given)])
    early = check(with_windows(early))  # before the text is read: cheap
    check_named(early.data.tokenizer)
    corpus = find_text(command.settings.data)
    derived = size_values(size, corpus.bytes("train"))
    sources: dict[str, Source] = {
        name: "size" if value == nominal.get(name) else "derived" for name, value in derived.items()
    }
    for source, said in (*levels, ("flag", given)):
        sources.update(dict.fromkeys(said, source))
    if is_widened(over):
        sources["ffn_dim"] = "derived"
    values = overridden(derived, over) | _found_again(command.settings, corpus)
    config = check(with_windows(replace(Config(), values)))
    if sources["precision"] in ("size", "derived") and needs_float32(config):
        config = replace(config, {"precision": "float32"})
    if MODELS[config.model.model].whole_sequence:
        sources.update(dict.fromkeys(WINDOWS, "derived"))
    started = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = command.run_dir or RUNS / f"{corpus.name}-{size}-{started}"
    from ebmvk.training.job import Job  # torch takes seconds: report earlier errors first

    return Job(config, sources, folder, corpus)


def _refuse_existing(folder: Path, *, dry_run: bool) -> None:
    """Raises ConfigError if the folder holds a run; FolderInUse if another process is writing
    it."""
    try:
        refuse_existing(folder)
    except ConfigError:
        if not dry_run and (folder / LOCK_FILE).exists():
            from ebmvk.runs.lock import locked  # imports torch

            with locked(folder, lambda text: print(text, file=sys.stderr)):
                pass
        raise


def _found_again(settings: Config, corpus: Corpus) -> dict[str, Any]:
    """The settings with paths that find the same text from any working directory."""
    from ebmvk.data.files import from_anywhere

    folder = settings.data.data_dir
    return {"dataset": corpus.source, "data_dir": folder and Path(from_anywhere(folder))}


def _resume_folder(resume: str, run_dir: str | None) -> tuple[Path, Path | None]:
    """(run folder, checkpoint folder) that --resume and --run-dir name; None: the newest usable
    checkpoint.
    """
    if resume == NEWEST and not run_dir:
        return newest("--resume"), None
    from ebmvk.runs.folder import ended_early
    from ebmvk.runs.steps import locate

    path, flag = (Path(run_dir), "--run-dir") if resume == NEWEST and run_dir else (Path(resume), "--resume")
    folder, at = (path.resolve(), None) if ended_early(path) else locate(path, flag)
    if run_dir and Path(run_dir).resolve() != folder:
        raise ConfigError(f"--run-dir {run_dir} is not the run of --resume {resume}", hint="remove --run-dir")
    return folder, None if path.resolve() == folder else at


def _resumed(command: TrainCommand, resume: str, levels: Sequence[Level], given: dict[str, Any]) -> Job:
    from ebmvk.runs.folder import ended_early, read_config
    from ebmvk.runs.text import own_text
    from ebmvk.training.job import Job

    folder, at = _resume_folder(resume, str(command.run_dir) if command.run_dir else None)
    old = read_config(folder)
    config = check(replace(old, merged(*(said for _, said in levels), given)))
    check_owned(config, [*levels, ("flag", given)])
    check_resume(old, config)
    sources = sources_in(folder / CONFIG_FILE)
    for source, said in levels:
        sources.update(dict.fromkeys(said, source))
    corpus = own_text(config)
    config = replace(config, _found_again(config, corpus))
    sources.update(dict.fromkeys(given, "flag"))
    if ended_early(folder):
        return Job(config, sources, folder, corpus, again=True)
    return Job(config, sources, folder, corpus, at or folder, before=old)


if __name__ == "__main__":
    sys.exit(main())
