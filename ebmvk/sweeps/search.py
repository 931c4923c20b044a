"""Searches settings: Optuna chooses the runs of a sweep, one after another or several at once."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ebmvk.config.schema import SECTION_OF, flag, number
from ebmvk.errors import ConfigError, RunFailed, RunStopped
from ebmvk.sweeps.experiments import at_once, figures
from ebmvk.sweeps.planned import PlannedRun

if TYPE_CHECKING:
    import optuna

MOST_REFUSED = 1000  # points in a row that train rejects


@dataclass(frozen=True)
class Axis:
    """A numeric setting to search, log-uniform between two positive bounds. For a setting that
    takes whole numbers, the bounds are whole numbers, too.
    """

    name: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Axis:
        """The axis that a text such as `learning_rate=1e-4:1e-2` describes.

        Raises:
            ConfigError: the text doesn't have that form, the setting doesn't exist or isn't a
                number, or a bound isn't a whole number although the setting is.
        """
        name, _, bounds = text.partition("=")
        try:
            low, high = (float(part) for part in bounds.split(":"))
        except ValueError:
            low = high = math.nan
        if not 0 < low < high < math.inf:
            raise ConfigError(
                f"--search {text}: expected NAME=LOW:HIGH", hint="write learning_rate=1e-4:1e-2, for example"
            )
        name = name.replace("-", "_").lstrip("_")
        if name not in SECTION_OF:
            raise ConfigError(f"--search {name}: no such setting", hint="use a setting of `ebmvk train --help`")
        if (kind := number(name)) is None:
            raise ConfigError(f"--search {name}: it isn't a number", hint="use learning_rate, dropout or batch_size")
        if kind is int and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"--search {text}: {name} takes whole numbers", hint=f"write {name}=4:32, for example")
        return cls(name, kind(low), kind(high))

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The axis for Optuna, which must be installed."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if number(self.name) is int:
            return IntDistribution(int(self.low), int(self.high), log=True)
        return FloatDistribution(self.low, self.high, log=True)


def flags_of(values: Mapping[str, float]) -> tuple[str, ...]:
    """Training flags for {setting: value}."""
    return tuple(
        part
        for name, value in values.items()
        for part in (flag(name), f"{value:.6g}" if isinstance(value, float) else str(value))
    )


def search(
    folder: Path,
    axes: Sequence[Axis],
    shared: Sequence[str],
    *,
    trials: int,
    jobs: int,
    threads: int | None,
    seed: int,
    say: Callable[[str], None],
    check: Callable[[Sequence[str]], object],
) -> list[dict[str, Any]]:
    """Train runs that Optuna's TPE chooses until there are `trials`, including earlier ones.

    A trial's point follows from the seed, its number and the trials that were done before. So a
    search with one job gives the same trials however often it is stopped, unless it is killed while
    it chooses a point. Stopped trials are continued before new ones are begun.

    Args:
        shared: training flags of all runs.
        jobs: runs at once. threads: of torch, in each run.
        check: raises ConfigError if train would reject a run's flags. Such a point is skipped.

    Returns:
        A row of figures for each trial, the best first.

    Raises:
        ConfigError: Optuna isn't installed, the folder holds a search of other settings or flags,
            one of its trials is missing, or all points are rejected.
        RunFailed: a run ended with an error; its point is given up.
        RunStopped: a run was interrupted or killed.
        FolderInUse: another process is training the run.
    """
    try:
        import optuna
        from optuna.trial import TrialState
    except ImportError:
        raise ConfigError(
            "--trials needs Optuna, which is not installed",
            hint="./run setup --extra sweep, or pip install 'optuna>=4'",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, space = _study(folder), {axis.name: axis.distribution() for axis in axes}
    _check_same_settings(folder, study, space)

    def run_of(number: int, values: Mapping[str, float]) -> PlannedRun:
        arguments = (*shared, "--seed", str(seed), "--quiet", *flags_of(values))
        return PlannedRun(folder / f"trial-{number}", arguments, {})

    def row(number: int, values: Mapping[str, float]) -> dict[str, Any]:
        run = run_of(number, values)
        if not run.finished():
            raise ConfigError(
                f"{run.folder}: trial {number} of the search is missing",
                hint="put it back, or use another --folder",
            )
        return {"experiment": f"trial {number}", "values": dict(values), **figures(run)}

    rows = [row(trial.number, trial.params) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    # A trial that was killed while its point was chosen has only a part of the point, and no run.
    stopped = [t for t in study.get_trials(states=(TrialState.RUNNING,)) if t.params.keys() == space.keys()]
    choosing = Lock()

    def chosen() -> optuna.Trial:
        """The next point that `ebmvk train` accepts. Others are skipped: a value between two valid
        values may be invalid.
        """
        for _ in range(MOST_REFUSED):
            study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
            trial = study.ask(space)
            try:
                check(flags_of(trial.params))
            except ConfigError as error:
                refused = error
                study.tell(trial.number, state=TrialState.FAIL)
            else:
                return trial
        raise refused

    def one() -> None:
        with choosing:
            trial = stopped.pop(0) if stopped else chosen()
        say(f"trial {trial.number}: {shlex.join(flags_of(trial.params))}")
        try:
            run_of(trial.number, trial.params).train(threads)
        except RunStopped:
            raise
        except RunFailed:
            study.tell(trial.number, state=TrialState.FAIL)
            raise
        rows.append(row(trial.number, trial.params))
        study.tell(trial.number, rows[-1]["nats_per_token"])

    at_once([one] * max(0, trials - len(rows)), jobs, BaseException)
    return sorted(rows, key=lambda row: row["nats_per_token"])


def _study(folder: Path) -> optuna.Study:
    """Optuna's record of the search in a folder, new or continued."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.create_study(study_name="sweep", storage=storage, load_if_exists=True)


def _check_same_settings(
    folder: Path, study: optuna.Study, space: Mapping[str, optuna.distributions.BaseDistribution]
) -> None:
    """Raises ConfigError if earlier trials had other settings, or another kind of number for one.
    Bounds may change.
    """
    for trial in study.trials:
        lacks = trial.state.is_finished() and trial.distributions.keys() != space.keys()
        if lacks or any(type(was) is not type(space.get(name)) for name, was in trial.distributions.items()):
            raise ConfigError(
                f"--search {', '.join(space)}: {folder} holds a search of {', '.join(trial.distributions)}",
                hint="use another --folder, or the same settings",
            )
