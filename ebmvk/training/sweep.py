"""Training runs that differ in a few settings, with figures and a verdict for each; and a search beyond them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ebmvk.errors import ConfigError
from ebmvk.training.runs import PlannedRun

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
        "without phi": "--lambda-phi 0",
        "without memory": "--no-use-memory",
        "neither": "--lambda-phi 0 --no-use-memory",
    },
}
"""{table: {experiment: training flags}}; the first is what the others are compared with. `infinito` is the five
experiments of the system it is named for."""
SAME = 0.01  # nats per token within which runs of one seed are called alike
LAST = 50  # steps whose mean is a training figure


@dataclass(frozen=True)
class Axis:
    """A setting to search: a field of the configuration, log-uniform between two positive bounds."""

    name: str
    low: float
    high: float

    @classmethod
    def parse(cls, text: str) -> Axis:
        """`learning_rate=1e-4:1e-2`. Raises ConfigError."""
        name, _, bounds = text.partition("=")
        try:
            low, high = (float(part) for part in bounds.split(":"))
        except ValueError:
            low = high = math.nan
        if not 0 < low < high < math.inf:
            raise ConfigError(f"--search {text}: not NAME=LOW:HIGH", hint="write learning_rate=1e-4:1e-2, for example")
        return cls(name.replace("-", "_").lstrip("_"), low, high)


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

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(one, name) for name in runs]:
            done.result()


def figures(run: PlannedRun) -> dict[str, Any]:
    """Of a finished run."""
    steps, end = run.events("step"), run.events("end")[-1]
    last = steps[-LAST:]
    found = {
        "nats_per_token": end["validation"]["nats_per_token"],
        "ppl": end["validation"]["ppl_token"],
        "train_ppl": math.exp(mean(row["parts"]["ce"] for row in last)),
        "minutes": end["progress"]["seconds"] / 60,
        "tokens": end["progress"]["tokens"],
        "command": run.command,
    }
    if "phi" in last[-1]["parts"]:
        found["phi"] = 1 - mean(row["parts"]["phi"] for row in last)
    return found


def table(runs: Mapping[str, PlannedRun]) -> Iterator[dict[str, Any]]:
    """A row of figures and a verdict for each finished run, compared with the first."""
    done = {name: figures(run) for name, run in runs.items() if run.finished()}
    first = next(iter(runs))
    best = min((row["nats_per_token"] for row in done.values()), default=math.nan)
    for name, row in done.items():
        base = done.get(first)
        yield {"experiment": name, **row, "verdict": _verdict(row, base if name != first else None, best)}


def _verdict(row: Mapping[str, Any], base: Mapping[str, Any] | None, best: float) -> str:
    said = []
    if base:
        change = row["nats_per_token"] - base["nats_per_token"]
        how = "no different" if abs(change) < SAME else "better" if change < 0 else "worse"
        said.append(f"{how} than the first ({change:+.3f} nats)")
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
) -> list[dict[str, Any]]:
    """Trials chosen by Optuna's TPE until there are `trials`, those of before included; the best first.

    Raises:
        ConfigError: Optuna is not installed. RunFailed: a run ended with an error.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise ConfigError("--trials needs Optuna, which is not installed", hint="pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )

    def objective(trial: optuna.Trial) -> float:
        values = {axis.name: trial.suggest_float(axis.name, axis.low, axis.high, log=True) for axis in axes}
        flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", f"{value:.6g}")]
        arguments = (*shared, "--seed", str(seed), "--quiet", *flags)
        run = PlannedRun(folder / f"trial-{trial.number}", arguments, {})
        say(f"trial {trial.number}: {shlex.join(flags)}")
        run.train(threads)
        found = figures(run)
        trial.set_user_attr("figures", found)
        nats: float = found["nats_per_token"]
        return nats

    complete = optuna.trial.TrialState.COMPLETE
    left = trials - len(study.get_trials(states=(complete,)))
    if left > 0:
        study.optimize(objective, n_trials=left, n_jobs=jobs)
    rows = [
        {"experiment": f"trial {trial.number}", "values": trial.params, **trial.user_attrs["figures"]}
        for trial in study.get_trials(states=(complete,))
    ]
    return sorted(rows, key=lambda row: row["nats_per_token"])
