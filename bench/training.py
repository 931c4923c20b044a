"""`python -m bench.training`: one training step on several compilers and devices, side by side.

The model is `bench/plain_model.py`. Each peer is a process of its own; all wait while one of them
runs a step, and they take turns, so that other load on the machine affects all alike. Every peer
starts from the same weights and gets the same batches. A peer whose losses differ from torch's by
more than 1e-3 is marked as wrong; it gets no ratios. Peers that aren't installed are listed with
what installs them (extra `peers`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.measure import facts, introduce, table, write
from bench.plain_model import QUICK, Sizes
from bench.training_peers import PEERS
from ebmvk.engine import select

Record = dict[str, Any]

TOLERANCE = 1e-3
"""How many nats a peer's losses may differ from torch's. In a few steps another order of summation
makes far less difference, and a wrong gradient far more."""

WARM = 2
"""Steps before the measured ones: one that compiles, and one that tinygrad captures."""


class PeerError(Exception):
    """A peer failed; the message is its own."""


class Process:
    """A peer in its process.

    Args:
        limit: seconds for an answer; then the process is killed.
    """

    def __init__(self, name: str, of: Sizes, limit: float) -> None:
        self.limit = limit
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # as the process
        command = [sys.executable, "-m", "bench.training_peers", name, json.dumps(asdict(of))]
        fresh = os.environ | {"EBMVK_CACHE_DIR": "off"}  # the first step compiles, as on a first start
        self.process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, encoding="utf-8", env=fresh
        )

    def answer(self) -> Record:
        """The peer's next line. Raises PeerError if the peer failed, ended or was too slow."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(self.limit, stop)
        timer.start()
        assert self.process.stdout  # noqa: S101
        line = self.process.stdout.readline()
        timer.cancel()
        if late.is_set():
            raise PeerError(f"no answer in {self.limit:g} s; --limit changes that")
        if not line:
            raise PeerError(f"ended with status {self.process.wait()}: {self._last_words()}")
        found: Record = json.loads(line)
        if "error" in found:
            raise PeerError(found["error"])
        return found

    def ask(self, command: str) -> Record:
        assert self.process.stdin  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # `answer` says why it ended
            print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def _last_words(self) -> str:
        self.log.seek(0)
        return " ".join(self.log.read().split()[-40:])


class Run:
    """A peer with what was measured so far. `failed`: why it can't go on."""

    def __init__(self, name: str, of: Sizes, limit: float) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.found: Record = {}
        self.failed: str | None = PEERS[name].absent
        self.absent = self.failed is not None
        self.process = None if self.absent else Process(name, of, limit)

    def start(self) -> None:
        if ready := self._tried(None):
            self.found["versions"] = ready["versions"]
            self.found["start_seconds"] = ready["seconds"]
            self.found["imported_bytes"] = ready["imported_bytes"]

    def step(self, number: int) -> None:
        if done := self._tried(str(number)):
            self.seconds.append(done["seconds"])
            self.losses.append(done["loss"])

    def finish(self) -> None:
        self.found.update(self._tried("facts") or {})
        if self.process:
            self.process.close()

    def _tried(self, command: str | None) -> Record | None:
        if self.failed or not self.process:
            return None
        try:
            return self.process.answer() if command is None else self.process.ask(command)
        except PeerError as error:
            self.failed = str(error)
            return None

    def record(self, right: Sequence[float]) -> Record:
        """right: torch's losses."""
        if self.absent:
            return {"absent": self.failed}
        found: Record = {**self.found, "losses": [loss if math.isfinite(loss) else None for loss in self.losses]}
        if self.failed:
            found["failed"] = self.failed
        if self.seconds:
            found["first_seconds"] = self.seconds[0]
        if measured := self.seconds[WARM:]:
            found["step_seconds"] = statistics.median(measured)
            found["spread"] = (max(measured) - min(measured)) / found["step_seconds"]
        if self.losses and right:
            errors = [abs(a - b) for a, b in zip(self.losses, right, strict=False)]
            # max() may pass over a NaN.
            found["loss_error"] = max(errors) if all(map(math.isfinite, errors)) else None
            found["wrong"] = not all(error <= TOLERANCE for error in errors)
        return found


def measured(names: Sequence[str], of: Sizes, repeats: int, limit: float) -> dict[str, Record]:
    """All peers start and warm up one after another; then they take turns."""
    runs = [Run(name, of, limit) for name in names]
    try:
        for run in runs:
            print(f"{run.name}: {'absent' if run.absent else 'starts'}", flush=True)
            run.start()
            for number in range(1, WARM + 1):
                run.step(number)
        for number in range(WARM + 1, WARM + repeats + 1):
            for run in runs:
                run.step(number)
        for run in runs:
            run.finish()
    finally:
        for run in runs:
            if run.process:
                run.process.close()
    right = next((run.losses for run in runs if run.name == "torch_cpu"), [])
    return {run.name: run.record(right) for run in runs}


def memory(ours: Record, other: Record) -> tuple[float, float, str] | None:
    """Bytes of both, and what they are: device memory if both know it, else that of processes."""
    for key in ("device_bytes", "process_bytes"):
        if ours.get(key) and other.get(key):
            return ours[key], other[key], key
    return None


def ratios(found: dict[str, Record]) -> Record:
    """Peers' figures over ours; above 1, ours is faster or smaller. None if a peer has none."""

    def of(peer: str, key: str) -> float | None:
        one, other = found.get("ours", {}), found.get(peer, {})
        if one.get("wrong") or other.get("wrong") or not one.get(key) or not other.get(key):
            return None
        return float(other[key] / one[key])

    sizes = memory(found.get("ours", {}), found.get("torchvulkan", {}))
    return {
        "dispatches_vs_torchvulkan": of("torchvulkan", "dispatches"),
        "step_vs_torchvulkan": of("torchvulkan", "step_seconds"),
        "step_vs_tinygrad": of("tinygrad", "step_seconds"),
        "step_vs_torch_cpu": of("torch_cpu", "step_seconds"),
        "memory_vs_torchvulkan": of("torchvulkan", sizes[2]) if sizes else None,
        "memory_is": sizes[2] if sizes else None,
    }


def rows(found: dict[str, Record]) -> list[list[str]]:
    lines = [["peer", "step, s", "first, s", "dispatches", "device, MB", "process, MB", "loss error"]]

    def cell(record: Record, key: str, form: str, scale: float = 1) -> str:
        return format(record[key] * scale, form) if record.get(key) is not None else ""

    for name, record in found.items():
        lines.append(
            [
                name,
                cell(record, "step_seconds", ".3f"),
                cell(record, "first_seconds", ".2f"),
                cell(record, "dispatches", "d"),
                cell(record, "device_bytes", ".1f", 1e-6),
                cell(record, "process_bytes", ".0f", 1e-6),
                cell(record, "loss_error", ".1e") + (" WRONG" if record.get("wrong") else ""),
            ]
        )
    return lines


def report(found: dict[str, Record], compared: Record) -> None:
    print(table(rows(found)))
    for name, record in found.items():
        for what in ("absent", "failed"):
            if what in record:
                print(f"{name} {'' if what == 'absent' else 'failed: '}{record[what]}")
    if share := found.get("ours", {}).get("not_products_share"):
        print(f"ours: {share:.0%} of the kernels' time is not in products")
    lines = [[n, f"{v:.2f}" if isinstance(v, float) else str(v)] for n, v in compared.items() if v is not None]
    print(table([["ratio", "peer / ours"], *lines]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps of each peer; medians are reported")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="which of them run")
    parser.add_argument("--words", type=int, default=Sizes.words, help="size of the vocabulary")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a peer may take for one answer")
    parser.add_argument("--note", default="", help="a remark for the file, such as: loaded")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; only tests that it runs")
    options = parser.parse_args(argv)
    of = QUICK if options.quick else replace(Sizes(), words=options.words)
    where = facts(select("vulkan" if "ours" in options.peers else "cpu"), "bench.training", argv)
    introduce(where)
    found = measured(options.peers, of, options.repeats, options.limit)
    compared = ratios(found)
    report(found, compared)
    where["load_average_after"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result = {"ratios": compared, "peers": found, "sizes": asdict(of), "device": where, "note": options.note}
    write(options.json, result)


if __name__ == "__main__":
    main()
