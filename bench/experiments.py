"""`python -m bench.experiments`: tables of training runs that differ in a few flags.

Runs are done one after another, each by `python -m ebmvk.train` in FOLDER/TABLE/NAME-SEED. Finished
runs are not repeated and interrupted ones continue, so the same command completes a table. A seed
fixes the order of the text for every model, so that for each seed rows differ only in their flags.

Figures are exact, on the whole validation split; minutes are those of the training steps. The
entropy (nats) and distance (tokens) of heads are means over all heads at the beginning of
validation; `spread` is the standard deviation of the heads' distances.

With --equal-time each row takes as many steps as fit into the time of the first row. The time of a
step is the median over TIMED steps, in a training run just for that; other work on the machine
affects it.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, pstdev, stdev
from typing import Any

import torch

from bench.measure import command_line, commit, table, write
from ebmvk.config import flags
from ebmvk.sweeps import experiments as sweep
from ebmvk.sweeps.planned import PlannedRun

TABLES: dict[str, dict[str, str]] = {
    "ablation": {
        "full": "",
        "without-geometric": "--no-use-geometric",
        "without-compositional": "--no-use-compositional",
        "without-splat": "--no-use-splat",
        "splat-only": "--no-use-geometric --no-use-compositional",
        "without-denoising": "--lambda-denoise 0",
    },
    "plain": {"ebm": "", "plain": "--model plain"},
    "decoder": {"moe": "", "transformer": "--decoder transformer"},
    "start": {"corpus": "", "uniform": "--init uniform"},
    "experts": {"dense": "--model tinygpt", "experts": "--model tinygpt --use-moe --moe-active 1"},
    "infinito": {
        name.replace(" ", "-"): f"--model infinito {flags}".strip()
        for name, flags in sweep.TABLES["infinito-ablation"].items()
    },
}
"""{table: {row: training flags}}; other rows are compared with the first one."""
COMMON = ("--quiet", "--sample-tokens", "0")
"""No samples, because nobody reads them and writing them takes as long as the training steps."""
QUICK = ("--size", "nano", "--dataset", "builtin:60000", "--batch-size", "4", "--eval-tokens", "200")
QUICK_STEPS = 6
FIGURES = ("nats_per_token", "ppl_word", "minutes", "parameters", "tokens", "entropy", "distance", "spread")
TIMED = 40
"""The number of steps that time a row; the first half warms up."""


Found = Mapping[tuple[str, int], Mapping[str, Any]]
"""{(row, seed): figures}."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.experiments", description=__doc__)
    parser.add_argument("--table", choices=TABLES, default="ablation", help="the table of runs")
    parser.add_argument("--seeds", type=_seeds, default=(42, 43, 44), help="separated by commas")
    parser.add_argument("--folder", type=Path, default=Path("runs/experiments"), help="the folder for the runs")
    parser.add_argument("--size", default="tiny", help="size of the model, as for ebmvk train")
    parser.add_argument("--dataset", default="wikitext-2", help="the text, as for ebmvk train")
    parser.add_argument("--steps", type=int, default=None, help="steps of each run; by default those of the size")
    parser.add_argument(
        "--equal-time", action="store_true", help="give all rows equal training time instead of equal steps"
    )
    parser.add_argument("--flags", default="", help="more training flags for every run, in one string")
    parser.add_argument("--threads", type=int, default=None, help="torch threads, set by OMP_NUM_THREADS")
    parser.add_argument("--only", default=None, help="train only this row; show others if they are done")
    parser.add_argument(
        "--quick", action="store_true", help="nano, six steps, an eighth of the built-in text; only tests that it runs"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(flags.joined(sys.argv[1:] if argv is None else list(argv), "--flags"))
    if options.equal_time and options.steps is None and not options.quick:
        parser.error("--equal-time needs --steps, of the first row")
    if options.only is not None and options.only not in TABLES[options.table]:
        parser.error(f"--only {options.only}: --table {options.table} has {', '.join(TABLES[options.table])}")
    times = timed(options) if options.equal_time else {}
    runs = planned(options, times)
    for number, ((row, _), run) in enumerate(runs.items(), start=1):
        if options.only in (None, row):
            print(f"{number}/{len(runs)}  {run.folder}", flush=True)
            run.train(options.threads)
    found = {(row, seed): figures(row, seed, run) for (row, seed), run in runs.items() if run.finished()}
    rows = summary(list(TABLES[options.table]), options.seeds, found)
    print(printed(rows))
    command = command_line("bench.experiments", argv)
    where = {"command": command, "commit": commit(), "torch": torch.__version__, "system": platform.platform()}
    result = {"device": where, "table": options.table, "rows": rows, "runs": list(found.values())}
    write(options.json, result | ({"step_seconds": times} if times else {}))


def _seeds(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def planned(options: argparse.Namespace, times: Mapping[str, float]) -> dict[tuple[str, int], PlannedRun]:
    """{(row, seed): run}, seed by seed, so that an interrupted table has complete seeds.

    times: {row: seconds of a step} for rows of equal time, else empty.
    """
    table = TABLES[options.table]
    steps = QUICK_STEPS if options.quick else options.steps
    of_row = {row: round(steps * times[next(iter(table))] / times[row]) if times else steps for row in table}
    return {
        (row, seed): _planned(options, row, seed, f"{row}-{seed}" + ("-equal-time" if times else ""), of_row[row])
        for seed in options.seeds
        for row in table
    }


def _planned(options: argparse.Namespace, row: str, seed: int, name: str, steps: int | None) -> PlannedRun:
    size = QUICK if options.quick else ("--size", options.size, "--dataset", options.dataset)
    return PlannedRun(
        options.folder / options.table / name,
        (
            *(*size, *(() if steps is None else ("--steps", str(steps))), *shlex.split(options.flags)),
            *("--seed", str(seed), *COMMON, *shlex.split(TABLES[options.table][row])),
        ),
        {"commit": commit()},
    )


def timed(options: argparse.Namespace) -> dict[str, float]:
    """{row: seconds of a step}, from a separate run for each row."""
    found = {}
    for row in TABLES[options.table]:
        run = _planned(options, row, 0, f"{row}-timed", QUICK_STEPS if options.quick else TIMED)
        run.train(options.threads)
        seconds = [event["seconds"] for event in run.events("step")]
        found[row] = median(seconds[len(seconds) // 2 :])
        print(f"{row}: {1000 * found[row]:.1f} ms per step", flush=True)
    return found


def figures(row: str, seed: int, run: PlannedRun) -> dict[str, Any]:
    """The figures of a finished run on the whole validation split, and its settings."""
    start, end = (run.events(event)[-1] for event in ("start", "end"))
    return {
        "row": row,
        "seed": seed,
        "nats_per_token": end["validation"]["nats_per_token"],
        "ppl_word": end["validation"]["ppl_word"],
        **heads(end["looks"]["attention"]),
        "minutes": end["progress"]["seconds"] / 60,
        "parameters": start["parameters"],
        "tokens": end["progress"]["tokens"],
        "steps": end["step"],
        "torch": start["torch"],
        "threads": start["threads"],
        "command": run.command,
        "commit": run.started_with()["commit"],
    }


def heads(layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over all heads in all layers, as recorded at the end of a run."""
    entropy, distance = ([value for own in layers for value in own[name]] for name in ("entropy", "distance"))
    return {"entropy": mean(entropy), "distance": mean(distance), "spread": pstdev(distance)}


# ---- the table -----------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds; None for the deviation of a single seed."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def summary(rows: Sequence[str], seeds: Sequence[int], found: Found) -> list[dict[str, Any]]:
    """A line for each row with a run: figures over seeds, and nats minus the first row's."""
    lines = []
    for row in rows:
        done = [seed for seed in seeds if (row, seed) in found]
        if not done:
            continue
        line: dict[str, Any] = {"row": row, "seeds": done}
        line |= {name: spread([found[row, seed][name] for seed in done]) for name in FIGURES}
        nats = {seed: found[row, seed]["nats_per_token"] for seed in done}
        paired = [nats[seed] - found[rows[0], seed]["nats_per_token"] for seed in done if (rows[0], seed) in found]
        line["difference"] = spread(paired) | {"seeds": len(paired)} if paired and row != rows[0] else None
        lines.append(line)
    return lines


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [
        "row",
        "seeds",
        "nats/token",
        "difference",
        "ppl/word",
        "minutes",
        "parameters",
        "tokens",
        "entropy",
        "distance",
    ]
    body = [
        [
            *(row["row"], str(len(row["seeds"])), _figure(row["nats_per_token"], ".4f")),
            "" if row["difference"] is None else _figure(row["difference"], "+.4f"),
            *(_figure(row["ppl_word"], ".2f"), _figure(row["minutes"], ".1f")),
            *(f"{row['parameters']['mean']:,.0f}", f"{row['tokens']['mean']:,.0f}"),
            *(_figure(row["entropy"], ".3f"), _figure(row["distance"], ".2f")),
        ]
        for row in rows
    ]
    return table([head, *body])


def _figure(value: Mapping[str, float | None], form: str) -> str:
    deviation = value["std"]
    return f"{value['mean']:{form}}" + ("" if deviation is None else f" ± {deviation:{form.lstrip('+')}}")


if __name__ == "__main__":
    main()
