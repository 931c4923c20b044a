"""`python -m bench.peak`: the peak memory of evaluation and of training on a long text.

It runs two commands several times, each time in a new process. `evaluate`: a nano model with
GPT-2's 50,258 tokens on WikiText-2's test split. `train`: four steps of a nano model with 8,192
tokens on 30 MB of text; a tenth of the text, 500,000 tokens, is scored at the end as validation.
The exit status is 0 if the peaks differ by at most a tenth and none exceeds the bound.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.measure import facts, introduce, table, write
from ebmvk.data.datasets import resolve
from ebmvk.data.splitting import DOCUMENT
from ebmvk.engine import select

BOUNDS = {"evaluate": 1.0, "train": 1.6}  # GB
SPREAD = 0.1  # the smallest peak may be less than the largest by at most this share of the largest
TEXT_BYTES = 30_000_000
SHARED = ("--size", "nano", "--sample-tokens", "0", "--no-enable-soc", "--quiet")


def long_text(documents: Sequence[str], size: int) -> Iterator[str]:
    """`size` bytes of repeated documents; repetitions swap the words of each line."""
    draw, left = random.Random(0), size
    for turn in range(sys.maxsize):
        for document in documents:
            yield f"{DOCUMENT}\n"
            for line in document.splitlines(keepends=True):
                words = line.split(" ")
                for _ in range(len(words) // 8 if turn else 0):
                    i, j = (draw.randrange(len(words) - 1) for _ in range(2))
                    words[i], words[j] = words[j], words[i]
                yield " ".join(words)
            left -= len(document.encode())
            if left <= 0:
                return


def run(args: Sequence[str], threads: int) -> dict[str, Any]:
    """Run an ebmvk command in a new process; returns peak bytes, processor and wall seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", f"ebmvk.{args[0]}", *args[1:]]
    child = subprocess.Popen(  # noqa: S603
        command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    seconds = {"processor": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - began}
    return {"gb": used.ru_maxrss * 1024 / 1e9, "seconds": seconds}


def commands(folder: Path, only: str | None) -> Iterator[tuple[str, list[str]]]:
    """The commands to measure, by name. Writes their input into the folder.

    `@` stands for the number of the run.
    """
    if only in (None, "evaluate"):
        model = str(folder / "gpt2")
        text = ("--dataset", "wikitext-2:300000", "--tokenizer", "gpt2")
        run(["train", *SHARED, *text, "--steps", "3", "--run-dir", model], threads=1)
        yield "evaluate", ["evaluate", "--checkpoint", model, "--dataset", "wikitext-2", "--split", "test"]
    if only in (None, "train"):
        text_file = folder / "long.txt"
        text_file.write_text("".join(long_text(resolve("wikitext-2").documents("train"), TEXT_BYTES)), encoding="utf-8")
        text = ("--dataset", str(text_file), "--vocab-size", "8192")
        yield "train", ["train", *SHARED, *text, "--steps", "4", "--run-dir", str(folder / "run-@")]


def judged(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a command's processes, and True if they stay within the bounds."""
    peaks = [round(one["gb"], 3) for one in found]
    ok = max(peaks) <= BOUNDS[name] and min(peaks) >= (1 - SPREAD) * max(peaks)
    return {
        "runs": list(found),
        "smallest_gb": min(peaks),
        "largest_gb": max(peaks),
        "bound_gb": BOUNDS[name],
        "ok": ok,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="number of processes for each command")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=list(BOUNDS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    where = facts(select("cpu"), "bench.peak", argv)
    introduce(where)
    results: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        for what, command in commands(Path(name), args.only):
            found = []
            for number in range(args.runs):
                found.append(run([arg.replace("@", str(number)) for arg in command], args.threads))
                print(f"{what} {number + 1}: {found[-1]['gb']:.3f} GB", flush=True)
            results[what] = judged(what, found) | {"command": " ".join(command).replace(name, "FOLDER")}
    columns = ("smallest_gb", "largest_gb", "bound_gb", "ok")
    print(table([("command", *columns), *((what, *(str(row[c]) for c in columns)) for what, row in results.items())]))
    write(args.json, {"machine": where, "threads": args.threads, "results": results})
    return int(not all(row["ok"] for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
