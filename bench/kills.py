"""Kills training again and again and resumes it. Does every run end like one that was never killed?

    python -m bench.kills --kills 500            SIGKILL at random moments
    python -m bench.kills --changes --every 7    SIGKILL at every seventh change to a file

Runs are of nano size, deterministic and short, with a checkpoint at every second step. Each run is
a fork of this process, which has trained before, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has none of its parent's threads
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from bench.changes import forked, kill_at, start, watched
from bench.measure import command_line, commit, write
from ebmvk.cli.train import main as train
from ebmvk.report import page as html
from ebmvk.runs.metrics import read_metrics

STEPS, SAVE_EVERY = 6, 2
NANO = f"""
[data]
vocab_size = 270
seq_length = 16
[model]
model = "ebm"
latent_dim = 16
n_layers = 2
n_heads = 2
ffn_dim = 16
context_local = 4
context_medium = 8
context_global = 16
hidden_dim = 16
[langevin]
knn_k = 8
langevin_steps = 4
langevin_levels = 2
[logging]
eval_every = 4
eval_tokens = 60
save_every = {SAVE_EVERY}
keep_last = 1
sample_tokens = 1
[splats]
soc_check_interval = 2
soc_history = 200
soc_threshold = 0.01
curriculum_target_splats = 20
"""


@dataclass
class Runs:
    """A run in `folder`: its settings, and what happened to it.

    It counts kills, and runs that ended as they should or not. lost: the most steps that a kill
    cost.
    """

    folder: Path
    flags: Sequence[str] = ()
    kills: int = 0
    lost: int = 0
    whole: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        random_words = random.Random(7).choices(("the", "a", "cat", "dog", "sees", "likes", "fish", "house"), k=350)
        text = [" ".join(random_words[i : i + 25]) for i in range(0, len(random_words), 25)]
        (self.folder / "text.txt").write_text("\n\n".join(text), encoding="utf-8")
        (self.folder / "nano.toml").write_text(NANO, encoding="utf-8")

    def train(self, run: Path) -> int:
        """Begin or resume the run, as a person would; returns the exit status.

        Call it in a fork.
        """
        begun = (run / "config.toml").is_file()
        new = ("--dataset", self.folder / "text.txt", "--config", self.folder / "nano.toml", "--steps", STEPS)
        args = ("--resume",) if begun else (*new, "--deterministic", "--device", "cpu", *self.flags)
        with (
            (run.parent / f"{run.name}.log").open("a", encoding="utf-8") as log,
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            return train([str(arg) for arg in ("--run-dir", run, *args)])

    def was_killed(self, run: Path) -> None:
        """Count a kill and the steps it cost: those in the metrics but in no checkpoint."""
        done = max(losses(run), default=0)
        kept = max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)
        self.kills, self.lost = self.kills + 1, max(self.lost, done - kept)
        if done - kept > SAVE_EVERY:
            self.faults.append(f"{run}: lost {done - kept} steps")

    def ended(self, run: Path, status: int) -> None:
        """Note a run that ended without a kill."""
        if status:
            self.faults.append(f"{run}: ended before it was killed, with status {status}")

    def finish(self, run: Path, reference: dict[str, bytes]) -> None:
        """Let a killed run finish, and compare it with the whole one."""
        status = forked(lambda: self.train(run))
        if status:
            self.faults.append(f"{run}: resumed with status {status}")
        elif last(run) != reference:
            self.faults.append(f"{run}: the bits differ from those of a run left alone")
        else:
            self.whole += 1
            shutil.rmtree(run)


def losses(run: Path) -> dict[int, float]:
    """The last recorded loss of each step."""
    path = run / "metrics.jsonl"
    steps = read_metrics(path).steps if path.is_file() else []
    return {row["step"]: row["loss"] for row in steps}


def last(run: Path) -> dict[str, bytes]:
    """Every tensor of the last checkpoint, and the losses of the run."""
    files = (run / "checkpoints" / f"step-{STEPS}").glob("*.safetensors")
    return {file.name: file.read_bytes() for file in files} | {"losses": repr(losses(run)).encode()}


def at_random(runs: Runs, reference: dict[str, bytes], kills: int, longest: float, seed: int) -> None:
    """Send SIGKILL after 0 to `longest` seconds and resume, until the run ends by itself."""
    moments, number = random.Random(seed), 0
    while runs.kills < kills:
        number += 1
        run = runs.folder / f"random-{number}"
        while runs.kills < kills and _killed_after(moments.uniform(0, longest), runs, run):
            runs.was_killed(run)
        runs.finish(run, reference)


def _killed_after(seconds: float, runs: Runs, run: Path) -> bool:
    child, until = start(lambda: runs.train(run)), time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            runs.ended(run, os.waitstatus_to_exitcode(status))
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def at_changes(runs: Runs, reference: dict[str, bytes], every: int) -> None:
    """Send SIGKILL at every `every`-th change, until a run makes no more changes.

    Each change is tried in a new run.
    """
    nth, status = 1, -signal.SIGKILL
    while status == -signal.SIGKILL:
        run = runs.folder / f"change-{nth}"

        def work(run: Path = run, nth: int = nth) -> int:
            with watched(kill_at(nth)):
                return runs.train(run)

        status = forked(work)
        if status == -signal.SIGKILL:
            runs.was_killed(run)
        else:
            runs.ended(run, status)
        runs.finish(run, reference)
        nth += every


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="number of kills at random moments")
    parser.add_argument("--changes", action="store_true", help="kill at changes to files instead")
    parser.add_argument("--every", type=int, default=1, help="with --changes: kill at every N-th change")
    parser.add_argument("--flags", default="", help="more flags for `ebmvk train`, such as --model plain")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    # Most of the time of so short a run goes into charts, which are not tested here.
    vars(html)["draw"] = lambda *_: ""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.flags.split())
        for name in ("warm", "whole"):  # in this process, so that forks find everything imported
            began = time.monotonic()
            if runs.train(runs.folder / name):
                parser.error((runs.folder / f"{name}.log").read_text(encoding="utf-8"))
            seconds = time.monotonic() - began
        reference = last(runs.folder / "whole")
        print(f"a whole run takes {seconds:.2f} s", flush=True)
        if options.changes:
            at_changes(runs, reference, options.every)
        else:
            at_random(runs, reference, options.kills, seconds, options.seed)
        for fault in runs.faults:
            print(fault, (Path(fault.split(":")[0] + ".log")).read_text(encoding="utf-8")[-2000:], sep="\n")
    ended = runs.whole + len({fault.partition(":")[0] for fault in runs.faults})
    print(
        f"{runs.kills} kills, none of which cost more than {runs.lost} steps; "
        f"{runs.whole} of {ended} runs ended in the bits of a run left alone"
    )
    command = command_line("bench.kills", argv)
    found = {"kills": runs.kills, "lost": runs.lost, "runs": ended, "whole": runs.whole, "faults": runs.faults}
    write(options.json, {"commit": commit(), "command": command, **found})
    return 1 if runs.faults else 0


if __name__ == "__main__":
    sys.exit(main())
