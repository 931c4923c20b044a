"""`ebmvk train`, `python -m ebmvk.train`: text in, a run folder with checkpoints, metrics, samples and a report out."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ebmvk import cli
from ebmvk.config import (
    SIZES,
    WHOLE_SEQUENCE,
    WINDOWS,
    Config,
    ModelConfig,
    RunConfig,
    Size,
    Source,
    check,
    check_resume,
    items,
    nearest,
    read_toml,
    replace,
    with_windows,
)
from ebmvk.errors import INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from ebmvk.ranks import Handler, Ranks
    from ebmvk.training.run import Job

RUNS = Path("runs")
RECIPES = Path(__file__).with_name("recipes")
NEWEST = "newest"


@dataclass(frozen=True)
class TrainCommand(Config):
    """The settings and what concerns this call only."""

    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # The run's folder; runs/DATASET-SIZE-TIME.
    resume: Annotated[str | None, tyro.conf.arg(metavar="[PATH]")] = None  # Continue a run: the newest, or PATH.
    stop_after: Annotated[int | None, tyro.conf.arg(metavar="N")] = None  # Save and stop after N steps of this call.
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None  # A recipe of --model: small, medium, large.
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE.toml")] = None  # Settings from a file; flags win.
    dry_run: bool = False  # Say what the run would take, after a few steps; nothing is left of it.
    quiet: bool = False  # Print errors and the paths of the results only.

    @property
    def settings(self) -> Config:
        return Config(**{section.name: getattr(self, section.name) for section in dataclasses.fields(Config)})


OWN = [
    entry
    for entry in dataclasses.fields(TrainCommand)
    if entry.name not in {s.name for s in dataclasses.fields(Config)}
]
FLAGS = cli.known_flags(
    {name: value for _, name, value in items(Config())} | {entry.name: entry.default for entry in OWN}
)
FULL: Mapping[str, Any] = MappingProxyType({})


def main(argv: Sequence[str] | None = None, *, command: str = "train", stage: Mapping[str, Any] = FULL) -> int:
    """Exit status: 0 finished or stopped as asked, 2 a typed error, 130 interrupted (and saved).

    command: its name; stage: {field: value} that are defaults of this command, over those of the size.
    """
    args = cli.fill_optional(sys.argv[1:] if argv is None else list(argv), "--resume", NEWEST)
    return cli.run(lambda: cli.lead(lambda ranks: _train(args, command, stage, ranks), _followed))


def _followed(ranks: Ranks) -> Mapping[str, Handler]:
    from ebmvk.training.follower import Follower

    return Follower(ranks).handlers()


def _train(args: list[str], name: str, stage: Mapping[str, Any], ranks: Ranks | None) -> int:
    """Parse, decide what to train, train it. ranks: the processes that do, if there are several."""
    cli.check_flags(args, FLAGS, name)
    base, file = _defaults(args, stage)
    command = cli.parse(TrainCommand, args, command=name, known=FLAGS, default=TrainCommand(**vars(base)))
    if command.stop_after is not None and command.stop_after < 1:
        raise ConfigError(f"--stop-after {command.stop_after} is below 1", hint="give a number of steps")
    from ebmvk.ranks import ALONE
    from ebmvk.training.run import execute

    given = _given(args, command.settings)
    resume = command.resume
    job = _new(command, file, given, stage) if resume is None else _resumed(command, resume, file, given)
    outcome = execute(job, ranks or ALONE, quiet=command.quiet, stop_after=command.stop_after, dry_run=command.dry_run)
    return INTERRUPTED if outcome == "interrupted" else 0


# ---- what to train: size < file < flags ----------------------------------------------------------------------------


def _defaults(args: Sequence[str], stage: Mapping[str, Any] = FULL) -> tuple[Config, dict[str, Any]]:
    """The configuration that --help shows and flags change: of the run to resume, or of --size and the stage; with the
    file."""
    file = _recipe(args) | _file(args)
    resume = cli.value_of(args, "--resume")
    if resume is not None:
        from ebmvk.training.workspace import read_config

        config = read_config(_resume_folder(resume, cli.value_of(args, "--run-dir"))[0])
    else:
        size = cli.value_of(args, "--size") or file.get("size", RunConfig.size)
        config = replace(Config(), {**_sized(size, None), **stage})
    return replace(config, file), file


def _file(args: Sequence[str]) -> dict[str, Any]:
    path = cli.value_of(args, "--config")
    return read_toml(Path(path)) if path and not _names_preset(args, path) else {}


def _names_preset(args: Sequence[str], config: str) -> bool:
    """Whether `--config small` means the preset, as it does for minillm where no file has that name."""
    return cli.value_of(args, "--model") == "minillm" and "." not in config and not Path(config).exists()


def _recipe(args: Sequence[str]) -> dict[str, Any]:
    """{field: value} of the preset that the arguments name.

    Raises:
        ConfigError: the model has no such preset.
    """
    config, name = cli.value_of(args, "--config"), cli.value_of(args, "--preset")
    if config and _names_preset(args, config):
        name = config
    if name is None or name == "custom":
        return {}
    model = cli.value_of(args, "--model") or ModelConfig.model
    known = sorted(path.stem.partition("-")[::2] for path in RECIPES.glob("*.toml"))
    if (model, name) not in known:
        own = [preset for of, preset in known if of == model]
        raise ConfigError(
            f"--preset {name} with --model {model}: no such preset",
            hint=f"take {', '.join(own)}" if own else f"its sizes are --size {', '.join(SIZES)}",
        )
    return read_toml(RECIPES / f"{model}-{name}.toml")


def _sized(size: str, train_bytes: int | None) -> dict[str, Any]:
    """{field: value} that --size stands for, with a training text of so many bytes (None: not known yet)."""
    from ebmvk.presets import derive

    if size not in SIZES:
        close = nearest(size, SIZES)
        hint = f"did you mean {close}?" if close else f"take one of {', '.join(SIZES)}"
        raise ConfigError(f"--size {size}: no such size", hint=hint)
    known: Size = next(name for name in SIZES if name == size)
    return {**derive(known, train_bytes), "size": known}


def _given(args: Sequence[str], settings: Config) -> dict[str, Any]:
    """{field: value} of the settings that flags gave."""
    names = {re.sub(r"^--(no-)?", "", flag).replace("-", "_").lower() for flag in cli.flags_in(args)}
    return {name: value for _, name, value in items(settings) if name.lower() in names}


def _overrides(file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Flags over the file; whoever says steps last takes back the epochs said before."""
    if {"steps", "epochs"} <= set(given):
        raise ConfigError("--steps and --epochs are both given", hint="give one of them: each says how long to train")
    in_steps = "steps" in given or ("steps" in file and not {"epochs"} & {*file, *given})
    return {**file, **({"epochs": None} if in_steps else {}), **given}


def _new(command: TrainCommand, file: dict[str, Any], given: dict[str, Any], stage: Mapping[str, Any] = FULL) -> Job:
    from ebmvk.data.datasets import resolve
    from ebmvk.training.run import Job

    size = command.settings.run.size
    corpus = resolve(command.settings.data.dataset, command.settings.data.data_dir)
    nominal, derived = _sized(size, None), _sized(size, corpus.bytes("train"))
    sources: dict[str, Source] = {
        name: "size" if value == nominal.get(name) else "derived" for name, value in derived.items()
    }
    sources.update(dict.fromkeys(stage, "stage"))
    sources.update(dict.fromkeys(file, "file"))
    sources.update(dict.fromkeys(given, "flag"))
    config = check(with_windows(replace(Config(), {**derived, **stage, **_overrides(file, given)}), given))
    if config.model.model in WHOLE_SEQUENCE:
        sources.update(dict.fromkeys(WINDOWS, "derived"))
    started = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = command.run_dir or RUNS / f"{corpus.name}-{size}-{started}"
    return Job(config, sources, folder, corpus)


def _resume_folder(resume: str, run_dir: str | None) -> tuple[Path, Path | None]:
    """(run folder, checkpoint folder or None for the newest usable, if any) that --resume and --run-dir mean."""
    from ebmvk.training.checkpoint import locate
    from ebmvk.training.workspace import ended_early

    if resume == NEWEST and not run_dir:
        runs = [path.parent for path in RUNS.glob("*/config.toml")]
        if not runs:
            raise ConfigError(f"--resume: there is no run in {RUNS}/", hint="name one: --resume PATH")
        return max(runs, key=lambda path: (path / "config.toml").stat().st_mtime), None
    path, flag = (Path(run_dir), "--run-dir") if resume == NEWEST and run_dir else (Path(resume), "--resume")
    folder, at = (path.resolve(), None) if ended_early(path) else locate(path, flag)
    if run_dir and Path(run_dir).resolve() != folder:
        raise ConfigError(f"--run-dir {run_dir} is not the run of --resume {resume}", hint="leave --run-dir away")
    return folder, at if path.resolve() == at else None


def _resumed(command: TrainCommand, resume: str, file: dict[str, Any], given: dict[str, Any]) -> Job:
    from ebmvk.data.datasets import resolve
    from ebmvk.training.run import Job
    from ebmvk.training.workspace import ended_early, read_config

    folder, at = _resume_folder(resume, str(command.run_dir) if command.run_dir else None)
    old = read_config(folder)
    config = check(replace(old, _overrides(file, given)))
    check_resume(old, config)
    sources: dict[str, Source] = dict.fromkeys((name for _, name, _ in items(old)), "file")
    corpus = resolve(config.data.dataset, config.data.data_dir)
    sources.update(dict.fromkeys(given, "flag"))
    if ended_early(folder):
        return Job(config, sources, folder, corpus, again=True)
    return Job(config, sources, folder, corpus, at or folder)


if __name__ == "__main__":
    sys.exit(main())
