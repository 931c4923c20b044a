"""Training runs that differ in a few settings, with figures and a verdict for each; and a search beyond them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from ebmvk.config.schema import SECTION_OF, flag, number
from ebmvk.errors import ConfigError, RunFailed, RunStopped
from ebmvk.model.infinito import UNITS
from ebmvk.model.integration import chance
from ebmvk.report.tables import number as number_text
from ebmvk.runs.folder import read_config
from ebmvk.sweeps.planned import PlannedRun

if TYPE_CHECKING:
    import optuna

TABLES: dict[str, dict[str, str]] = {
    "infinito": {
        "1": "--lr 1e-4 --batch-size 32 --lambda-phi 0.1",
        "2": "--lr 5e-5 --batch-size 32 --lambda-phi 0.1",
        "3": "--lr 2e-4 --batch-size 32 --lambda-phi 0.1",
        "4": "--lr 1e-4 --batch-size 16 --lambda-phi 0.1",
        "5": "--lr 1e-4 --batch-size 32 --lambda-phi 0.3",
    },
    "infinito-ablation": {
        "full": "",
        "more phi": "--lambda-phi 0.3",
        "without phi": "--lambda-phi 0",
        "without memory": "--no-use-memory",
        "neither": "--lambda-phi 0 --no-use-memory",
    },
}
"""{table: {experiment: training flags}}; the first is what the others are compared with. `infinito` is the five
experiments of the system it is named for."""
SAME = 0.01  # nats per token within which runs of one seed are called alike
MOST_REFUSED = 1000  # points in a row that no run accepts
LAST = 50  # steps whose mean is a training figure


@dataclass(frozen=True)
class Axis:
    """A setting to search: a number of the configuration, log-uniform between two positive bounds; whole where the
    setting is."""

    name: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Axis:
        """`learning_rate=1e-4:1e-2`.

        Raises:
            ConfigError: it is not of that form; there is no such setting, or it is no number; a bound is not whole
                where the setting is.
        """
        name, _, bounds = text.partition("=")
        try:
            low, high = (float(part) for part in bounds.split(":"))
        except ValueError:
            low = high = math.nan
        if not 0 < low < high < math.inf:
            raise ConfigError(f"--search {text}: not NAME=LOW:HIGH", hint="write learning_rate=1e-4:1e-2, for example")
        name = name.replace("-", "_").lstrip("_")
        if name not in SECTION_OF:
            raise ConfigError(f"--search {name}: no such setting", hint="take a setting of `ebmvk train --help`")
        if (kind := number(name)) is None:
            raise ConfigError(f"--search {name}: it is no number", hint="take learning_rate, dropout or batch_size")
        if kind is int and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"--search {text}: {name} is a whole number", hint=f"write {name}=4:32, for example")
        return cls(name, kind(low), kind(high))

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """For Optuna, which must be there."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if number(self.name) is int:
            return IntDistribution(int(self.low), int(self.high), log=True)
        return FloatDistribution(self.low, self.high, log=True)


def flags_of(values: Mapping[str, float]) -> tuple[str, ...]:
    """Training flags of {setting: value}."""
    return tuple(
        part
        for name, value in values.items()
        for part in (flag(name), f"{value:.6g}" if isinstance(value, float) else str(value))
    )


def planned(folder: Path, experiments: Mapping[str, str], shared: Sequence[str], seed: int) -> dict[str, PlannedRun]:
    """{name: run}. shared: training flags of all of them."""
    return {
        name: PlannedRun(
            folder / name.replace(" ", "-"), (*shared, "--seed", str(seed), "--quiet", *shlex.split(flags)), {}
        )
        for name, flags in experiments.items()
    }


def train_all(runs: Mapping[str, PlannedRun], jobs: int, threads: int | None, say: Callable[[str], None]) -> None:
    """Train what is not done, `jobs` at once. Raises what the first run that fails raises; the others go on first."""

    def one(name: str) -> None:
        say(f"{name}: {'done before' if runs[name].finished() else runs[name].command}")
        runs[name].train(threads)

    _at_once([partial(one, name) for name in runs], jobs, KeyboardInterrupt)


def _at_once(tasks: Sequence[Callable[[], None]], jobs: int, ends: type[BaseException]) -> None:
    """Do the tasks, `jobs` at once, and raise what the first that fails raises; after an error of the kind `ends` no
    other is begun."""
    ended = Event()

    def begin(task: Callable[[], None]) -> None:
        if not ended.is_set():
            with _setting(ended, ends):
                task()

    with ThreadPoolExecutor(jobs) as pool, _setting(ended, ends):  # here Ctrl-C comes, while all threads are busy
        for done in [pool.submit(begin, task) for task in tasks]:
            done.result()


@contextmanager
def _setting(event: Event, ends: type[BaseException]) -> Iterator[None]:
    """Sets the event for an error of the kind `ends`."""
    try:
        yield
    except ends:
        event.set()
        raise


def figures(run: PlannedRun) -> dict[str, Any]:
    """Figures of a finished run. train_ppl and phi are means over its last steps; phi_loss: what PHI adds to the loss;
    phi_chance: about the PHI that independent units would have with this batch size."""
    steps, end, config = run.events("step"), run.events("end")[-1], read_config(run.folder)
    training = config.training
    last = steps[-LAST:]
    found = {
        "learning_rate": training.learning_rate,
        "batch_size": training.batch_size,
        "nats_per_token": end["validation"]["nats_per_token"],
        "ppl": end["validation"]["ppl_token"],
        "train_ppl": math.exp(mean(row["parts"]["ce"] for row in last)),
        "minutes": end["progress"]["seconds"] / 60,
        "tokens": end["progress"]["tokens"],
        "command": run.command,
    }
    if "phi" in last[-1]["parts"]:
        lost = mean(row["parts"]["phi"] for row in last)
        found |= {"lambda_phi": training.lambda_phi, "phi": 1 - lost, "phi_loss": training.lambda_phi * lost}
        units = min(UNITS, config.model.latent_dim)
        found["phi_chance"] = chance(units, training.windows_per_step * config.data.seq_length)
    return found


def table(runs: Mapping[str, PlannedRun]) -> Iterator[dict[str, Any]]:
    """A row of figures and a verdict for each finished run, compared with the first."""
    done = {name: figures(run) for name, run in runs.items() if run.finished()}
    _check_same_text([runs[name] for name in done])
    first = next(iter(runs))
    best = min((row["nats_per_token"] for row in done.values()), default=math.nan)
    for name, row in done.items():
        base = done.get(first)
        yield {"experiment": name, **row, "verdict": _verdict(row, base if name != first else None, best)}


def _check_same_text(runs: Sequence[PlannedRun]) -> None:
    """Raises ConfigError if two runs were trained on different texts because a file changed between them."""
    texts = [(run, begun[-1].get("corpus", {}).get("sha256")) for run in runs if (begun := run.events("start"))]
    known = [(run, text) for run, text in texts if text]
    if other := next((run for run, text in known if text != known[0][1]), None):
        raise ConfigError(
            f"{other.folder} was trained on another text than {known[0][0].folder}",
            why="the files of --dataset changed between the runs",
            hint="take another --folder, to train all runs on the present text",
        )


def _verdict(row: Mapping[str, Any], base: Mapping[str, Any] | None, best: float) -> str:
    said = []
    if base:
        change = row["nats_per_token"] - base["nats_per_token"]
        how = "no different" if abs(change) < SAME else "better" if change < 0 else "worse"
        said.append(f"{how} than the first ({number_text(change, '+.3f')} nats)")
    if row["nats_per_token"] == best:
        said.append("best")
    if math.log(row["train_ppl"]) < row["nats_per_token"] - 0.5:
        said.append("overfits: more dropout or fewer epochs")
    return "; ".join(said) or "the base"


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
    """Trials chosen by Optuna's TPE until there are `trials`, those of before included; the best first.

    A trial's point follows from the seed, its number and the trials that were done before it, so that a search of one
    job at a time is the same however often it was stopped, but for being killed while it chose a point. A trial that
    was stopped goes on before there are new ones. check: raises ConfigError for a run's flags where they are refused;
    such a point is given up.

    Raises:
        ConfigError: Optuna is not installed, the folder has a search of other settings or flags or lacks a trial of it,
            or no point is accepted. RunFailed: a run
            ended with an error; its point is given up. RunStopped: a run was interrupted or killed. FolderInUse:
            another process is at it.
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
                f"{run.folder}: trial {number} of the search is not there any more",
                hint="put it back, or take another --folder",
            )
        return {"experiment": f"trial {number}", "values": dict(values), **figures(run)}

    rows = [row(trial.number, trial.params) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    # One that was killed while its point was being chosen has only a part of it, and no run.
    stopped = [t for t in study.get_trials(states=(TrialState.RUNNING,)) if t.params.keys() == space.keys()]
    choosing = Lock()

    def chosen() -> optuna.Trial:
        """A point that runs accept: not every number between two that are accepted has to be."""
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

    _at_once([one] * max(0, trials - len(rows)), jobs, BaseException)
    return sorted(rows, key=lambda row: row["nats_per_token"])


def _study(folder: Path) -> optuna.Study:
    """What Optuna remembers in a folder, or the beginning of it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.create_study(study_name="sweep", storage=storage, load_if_exists=True)


def _check_same_settings(
    folder: Path, study: optuna.Study, space: Mapping[str, optuna.distributions.BaseDistribution]
) -> None:
    """Raises ConfigError where trials of before chose other settings, or another kind of number for one; bounds may
    change."""
    for trial in study.trials:
        lacks = trial.state.is_finished() and trial.distributions.keys() != space.keys()
        if lacks or any(type(was) is not type(space.get(name)) for name, was in trial.distributions.items()):
            raise ConfigError(
                f"--search {', '.join(space)}: in {folder} is a search of {', '.join(trial.distributions)}",
                hint="take another --folder, or the same settings",
            )
