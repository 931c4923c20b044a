"""`ebmvk sweep`, `python -m ebmvk.sweep`: a table of training runs with verdicts, and a search beyond it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ebmvk import cli
from ebmvk.errors import ConfigError


@dataclass(frozen=True)
class SweepCommand:
    table: str = "infinito"  # The experiments: infinito (the system's five), infinito-ablation.
    flags: str = "--model infinito --preset small"  # Training flags of every run, in one string.
    folder: Path = Path("runs/sweep")  # Where the runs are; the same folder goes on.
    jobs: int = 1  # Runs at once.
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None  # Of torch, in each run.
    trials: int = 0  # Runs that Optuna chooses, instead of the table.
    search: tuple[str, ...] = ("learning_rate=5e-4:1e-2",)  # What it searches, NAME=LOW:HIGH, log-uniform.
    seed: int = 42  # Of every run, and of the search.
    json: bool = False  # Print one JSON object instead of a table.


FLAGS = cli.known_flags({f.name: f.default for f in dataclasses.fields(SweepCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = cli.joined(sys.argv[1:] if argv is None else list(argv), "--flags")
    return cli.run(lambda: _sweep(cli.parse(SweepCommand, args, command="sweep", known=FLAGS)))


def _sweep(command: SweepCommand) -> int:
    from ebmvk import train
    from ebmvk.config import SECTION_OF
    from ebmvk.training.sweep import TABLES, Axis, planned, search, table, train_all

    if command.table not in TABLES:
        raise ConfigError(f"--table {command.table}: no such table", hint=f"take one of {', '.join(TABLES)}")
    if command.jobs < 1:
        raise ConfigError(f"--jobs {command.jobs} is below 1", hint="give how many runs go on at once")
    shared = shlex.split(command.flags)
    cli.check_flags(shared, train.FLAGS, "train")
    axes = [Axis.parse(text) for text in command.search]
    for axis in axes:
        if axis.name not in SECTION_OF:
            raise ConfigError(f"--search {axis.name}: no such setting", hint="take a setting of `ebmvk train --help`")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if command.trials:
        rows = search(
            *(command.folder, axes, shared),
            trials=command.trials,
            jobs=command.jobs,
            threads=command.threads,
            seed=command.seed,
            say=say,
        )
    else:
        runs = planned(command.folder / command.table, TABLES[command.table], shared, command.seed)
        train_all(runs, command.jobs, command.threads, say)
        rows = list(table(runs))
    if command.json:
        print(json.dumps({"table": command.table, "flags": command.flags, "seed": command.seed, "rows": rows}))
    else:
        print("\n".join(_lines(rows)))
    return 0


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"{'experiment':<16}{'val ppl':>10}{'train ppl':>11}{'PHI':>8}{'minutes':>9}"]
    for row in rows:
        phi = f"{row['phi']:.3f}" if "phi" in row else "-"
        said = row.get("verdict") or ", ".join(f"{name} {value:.3g}" for name, value in row["values"].items())
        lines.append(
            f"{row['experiment']:<16}{row['ppl']:>10.2f}{row['train_ppl']:>11.2f}{phi:>8}{row['minutes']:>9.1f}  {said}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
