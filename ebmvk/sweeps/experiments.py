"""Tables of training runs: their experiments, how they are trained, figures and verdicts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from threading import Event
from typing import Any

from ebmvk.errors import ConfigError
from ebmvk.evaluation.intervals import ENOUGH
from ebmvk.model.infinito import UNITS
from ebmvk.model.integration import chance
from ebmvk.report.tables import number as number_text
from ebmvk.report.trigram import too_short
from ebmvk.runs.folder import read_config
from ebmvk.sweeps.planned import PlannedRun

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
"""{table: {experiment: training flags}}. The others are compared with the first experiment.
`infinito` has the five experiments of the system of that name."""
MODEL = "infinito"  # whose settings the experiments of every table change
SAME = 0.01  # nats per token; smaller differences of two runs count as none
LAST = 50  # steps; training figures are means over the last ones


def planned(folder: Path, experiments: Mapping[str, str], shared: Sequence[str], seed: int) -> dict[str, PlannedRun]:
    """{name: run} of a table. shared: training flags of all runs."""
    return {
        name: PlannedRun(
            folder / name.replace(" ", "-"), (*shared, "--seed", str(seed), "--quiet", *shlex.split(flags)), {}
        )
        for name, flags in experiments.items()
    }


def train_all(runs: Mapping[str, PlannedRun], jobs: int, threads: int | None, say: Callable[[str], None]) -> None:
    """Train the runs that aren't finished, `jobs` at once.

    If a run fails, the others go on; at the end the error of the first that failed is raised.
    """

    def one(name: str) -> None:
        say(f"{name}: {'done before' if runs[name].finished() else runs[name].command}")
        runs[name].train(threads)

    at_once([partial(one, name) for name in runs], jobs, KeyboardInterrupt)


def at_once(tasks: Sequence[Callable[[], None]], jobs: int, ends: type[BaseException]) -> None:
    """Do the tasks, `jobs` at a time, then raise the error of the first that failed. After an error
    of the kind `ends`, no further task is begun."""
    ended = Event()

    def begin(task: Callable[[], None]) -> None:
        if not ended.is_set():
            with _setting(ended, ends):
                task()

    with ThreadPoolExecutor(jobs) as pool, _setting(ended, ends):  # Ctrl-C arrives here while all threads are busy
        for done in [pool.submit(begin, task) for task in tasks]:
            done.result()


@contextmanager
def _setting(event: Event, ends: type[BaseException]) -> Iterator[None]:
    """A block that sets the event on an error of the kind `ends`."""
    try:
        yield
    except ends:
        event.set()
        raise


def figures(run: PlannedRun) -> dict[str, Any]:
    """Figures of a finished run.

    train_ppl, phi: means over its last steps. phi_loss: what PHI adds to the loss. phi_chance:
    about the PHI that independent units would have with this batch size.
    """
    steps, end, config = run.events("step"), run.events("end")[-1], read_config(run.folder)
    training = config.training
    last = steps[-LAST:]
    found = {
        "learning_rate": training.learning_rate,
        "batch_size": training.batch_size,
        "nats_per_token": end["validation"]["nats_per_token"],
        "ppl": end["validation"]["ppl_token"],
        "validation_tokens": end["validation"]["tokens"],
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
    """Raises ConfigError if a file changed between two runs, so that their texts differ."""
    texts = [(run, begun[-1].get("corpus", {}).get("sha256")) for run in runs if (begun := run.events("start"))]
    known = [(run, text) for run, text in texts if text]
    if other := next((run for run, text in known if text != known[0][1]), None):
        raise ConfigError(
            f"{other.folder} and {known[0][0].folder} were trained on different texts",
            why="the files of --dataset changed between the runs",
            hint="use another --folder, to train all runs on the present text",
        )


def _verdict(row: Mapping[str, Any], base: Mapping[str, Any] | None, best: float) -> str:
    if row["validation_tokens"] < ENOUGH:
        return too_short(row["validation_tokens"])
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
