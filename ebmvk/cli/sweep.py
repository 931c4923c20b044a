"""`ebmvk sweep`: trains a table of runs, or the runs of a search, and prints verdicts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.errors import ConfigError

if TYPE_CHECKING:
    from ebmvk.sweeps.search import Axis


@dataclass(frozen=True)
class SweepCommand:
    """Flags of `ebmvk sweep`; the comments are their help texts."""

    table: str = "infinito"  # The experiments: infinito or infinito-ablation.
    # Training flags of all runs, in one string. A table adds --model infinito unless they name a
    # model.
    flags: str = "--model infinito --preset small"
    folder: Path = Path("runs/sweep")  # Folder of the runs. A stopped sweep continues there.
    jobs: int = 1  # Number of runs at once.
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None  # Threads of torch in each run.
    trials: int = 0  # Search: train this many runs, whose settings Optuna chooses.
    search: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # NAME=LOW:HIGH, a setting to search (log-uniform).
    seed: int = 42  # Seed of every run, and of the search.
    json: bool = False  # Print one JSON object instead of a table.


FLAGS = flags.flags_of(SweepCommand)
SEARCHED = ("learning_rate=5e-4:1e-2",)  # the default of --search
OWN = ("--run-dir", "--resume", "--seed", "--quiet", "--dry-run", "--stop-after")
"""Training flags that a sweep sets itself, or that would break it."""
COLUMNS = {
    "lr": ("learning_rate", "g"),
    "batch": ("batch_size", "d"),
    "λ": ("lambda_phi", "g"),
    "val PPL": ("ppl", ".2f"),
    "train PPL": ("train_ppl", ".2f"),
    "PHI": ("phi", ".3f"),
    "by chance": ("phi_chance", ".3f"),
    "ΔPHI loss": ("phi_loss", ".4f"),
    "minutes": ("minutes", ".1f"),
}
"""{heading: (figure, its format)}."""
LEGEND = (
    "ΔPHI loss: λ (1 − PHI). train PPL, PHI: means over the last steps; val PPL: over all of validation, per token. "
    "by chance: PHI isn't corrected for the batch size; independent units would have up to this value."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit status: 0, or 2 for an EbmvkError."""
    args = flags.joined(sys.argv[1:] if argv is None else list(argv), "--flags")
    return running.run(
        lambda: _sweep(parsing.parse(SweepCommand, args, command="sweep", known=FLAGS, repeatable=("--search",))),
        saves=True,
    )


def _sweep(command: SweepCommand) -> int:
    from ebmvk.cli.train import asked
    from ebmvk.sweeps.experiments import MODEL, TABLES, planned, table, train_all
    from ebmvk.sweeps.search import search

    if command.table not in TABLES:
        raise ConfigError(f"--table {command.table}: no such table", hint=f"use one of {', '.join(TABLES)}")
    if command.jobs < 1:
        raise ConfigError(f"--jobs {command.jobs} is below 1", hint="give the number of runs at once")
    if command.trials < 0:
        raise ConfigError(f"--trials {command.trials} is below 0", hint="give the number of runs that Optuna chooses")
    if command.search and not command.trials:
        raise ConfigError(f"--search {command.search[0]} needs --trials", hint="add --trials 10, for example")
    try:
        shared = shlex.split(command.flags)
    except ValueError as error:
        raise ConfigError(f"--flags {command.flags!r}: {error}", hint="close the quotation mark") from None

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if command.trials:
        axes = _axes(command.search or SEARCHED, shared)
        rows = search(
            *(command.folder, axes, shared),
            trials=command.trials,
            jobs=command.jobs,
            threads=command.threads,
            seed=command.seed,
            say=say,
            check=lambda flags: asked([*shared, *flags]),
        )
    else:
        if "--model" not in flags.flags_in(shared):
            shared = ["--model", MODEL, *shared]
        experiments = TABLES[command.table]
        runs = planned(command.folder / command.table, experiments, shared, command.seed)
        left = [shlex.split(flags) for name, flags in experiments.items() if not runs[name].finished()]
        _check(shared, f"--table {command.table}", left)
        train_all(runs, command.jobs, command.threads, say)
        rows = list(table(runs))
    if command.json:
        print(json.dumps({"table": command.table, "flags": command.flags, "seed": command.seed, "rows": rows}))
    else:
        print("\n".join([*_lines(rows), LEGEND]))
    return 0


def _axes(texts: Sequence[str], shared: Sequence[str]) -> list[Axis]:
    """The settings to search, by any name of their flags.

    Raises ConfigError, before anything is trained.
    """
    from ebmvk.sweeps.search import Axis, flags_of

    axes = []
    for text in texts:
        name, equals, bounds = text.partition("=")
        axes.append(Axis.parse(flags.flags_in([f"--{name.lstrip('-')}"])[0][2:] + equals + bounds))
    names = [axis.name for axis in axes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--search {twice} is given twice", hint="give each setting once")
    ends = ({axis.name: axis.low for axis in axes}, {axis.name: axis.high for axis in axes})
    _check(shared, "--search", [flags_of(values) for values in ends])
    return axes


def _check(shared: Sequence[str], source: str, runs: Sequence[Sequence[str]]) -> None:
    """Check the flags of all runs before the first is trained.

    shared: flags of all runs. runs: the flags that `source` adds to each.

    Raises:
        ConfigError: train would reject the flags, or one is set by the sweep itself, or twice.
    """
    from ebmvk.cli.train import FLAGS as TRAIN_FLAGS
    from ebmvk.cli.train import REPEATABLE, asked

    parsing.check_flags(shared, TRAIN_FLAGS, "train", REPEATABLE)
    given, added = flags.flags_in(shared), [flag for run in runs for flag in flags.flags_in(run)]
    for names, whose in ((given, "--flags"), (added, source)):
        if own := next((flag for flag in names if flag.replace("--no-", "--") in OWN), None):
            raise ConfigError(f"{whose} has {own}, which the sweep itself sets", hint=f"remove {own}")
    if both := next((flag for flag in added if flag in given), None):
        raise ConfigError(f"--flags has {both}, which {source} sets for each run", hint=f"remove {both} from --flags")
    for run in runs:
        asked([*shared, *run])


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table, aligned. Figures that don't apply are dashes."""
    from ebmvk.report.tables import Table, number, plain
    from ebmvk.sweeps.search import flags_of

    body = [(row["experiment"], *(number(row.get(name), form) for name, form in COLUMNS.values())) for row in rows]
    said = [row.get("verdict") or " ".join(flags_of(row["values"])) for row in rows]
    table = plain(Table(("exp", *COLUMNS), body))
    return [f"{line}  {words}" for line, words in zip(table, ("verdict", *said), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
