"""`python -m bench.monitor`: what monitoring costs of a training step.

Steps of one run, of every two one by chance recorded and shown as `ebmvk train` does on a terminal (metrics.jsonl,
alerts, the panel, and TensorBoard with --tensorboard), the other with nothing: what else the machine does falls on both
alike.
Consolidation is off, as its checks are no part of monitoring and would drown it.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from bench.measure import Timing, facts, introduce, write
from ebmvk.config.schema import SIZES, Config, replace
from ebmvk.config.sizes import derive
from ebmvk.data.datasets import resolve
from ebmvk.data.tokenizer import make_tokenizer
from ebmvk.data.windows import encode_split
from ebmvk.engine.device import Device, open_device
from ebmvk.monitoring.alerts import Alerts
from ebmvk.monitoring.display import Display
from ebmvk.monitoring.monitor import Monitor
from ebmvk.monitoring.tensorboard import Board
from ebmvk.runs.folder import new_model
from ebmvk.training.streams import Streams
from ebmvk.training.trainer import Trainer


class Silent(Monitor):
    """Records and shows nothing."""

    def say(self, text: str) -> None:
        pass

    def record(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        pass

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        pass


class Timed(Monitor):
    """Keeps the seconds of processor time of each step's recording."""

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        began = time.process_time()
        super().step(step, values)
        self.seconds.append(time.process_time() - began)

    def __enter__(self) -> Timed:
        self.seconds: list[float] = []
        super().__enter__()
        return self


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.monitor", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="nano", help="of the model, as of ebmvk.train")
    parser.add_argument("--dataset", default="builtin", help="the text, as of ebmvk.train")
    parser.add_argument("--device", default="cpu", help="as of ebmvk.train")
    parser.add_argument("--repeats", type=int, default=100, help="steps of each kind")
    parser.add_argument("--batch-size", type=int, default=None, help="by default the size's")
    parser.add_argument("--tensorboard", action="store_true", help="write its files too")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    device = open_device(options.device)
    where = facts(device.backend, "bench.monitor", argv)
    introduce(where)
    with TemporaryDirectory() as name:
        result = {"device": where, "size": options.size, **summary(*measured(options, Path(name), device))}
    print(printed(result))
    write(options.json, result)


def measured(
    options: argparse.Namespace, folder: Path, device: Device
) -> tuple[dict[str, Timing], dict[str, list[float]], list[float]]:
    """Of both kinds of steps, timings and seconds of processor time; of the monitored ones, those of recording."""
    how: dict[str, Any] = {"log_every": 20, "total": 10**6, "done": 0}
    trainer = _trainer(options, folder, device)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        display = Display(quiet=False, console=Console(file=nowhere, force_terminal=True, width=160), **how)
        board = Board(folder) if options.tensorboard else None
        alerts = Alerts(trainer.config)
        with Timed(folder, quiet=False, alerts=alerts, board=board, display=display, **how) as monitored:
            kinds = {"monitored": monitored, "bare": trainer.monitor}
            wall, processor = ({kind: list[float]() for kind in kinds} for _ in range(2))
            for _ in range(options.repeats + 1):
                # By chance: the first leaves its caches to the other, and only some steps are logged.
                for kind in random.sample(list(kinds), 2):
                    trainer.monitor = kinds[kind]
                    began = time.perf_counter(), time.process_time()
                    trainer.step()
                    wall[kind].append(time.perf_counter() - began[0])
                    processor[kind].append(time.process_time() - began[1])
            timings = {kind: Timing(tuple(seconds[1:])) for kind, seconds in wall.items()}
            return timings, {kind: seconds[1:] for kind, seconds in processor.items()}, monitored.seconds[1:]


def _trainer(options: argparse.Namespace, folder: Path, device: Device) -> Trainer:
    corpus = resolve(options.dataset, None)
    values = derive(options.size, corpus.bytes("train")) | {"size": options.size, "enable_soc": False}
    values |= {} if options.batch_size is None else {"batch_size": options.batch_size}
    config = replace(Config(), {**values, "steps": 10**6, "epochs": None})
    tokenizer = make_tokenizer(config.data.tokenizer, corpus, config.data.vocab_size, [])
    train, validation = (encode_split(corpus, split, tokenizer) for split in ("train", "validation"))
    streams = Streams(train, validation)
    model = new_model(config, tokenizer, streams.train)
    silent = Silent(folder, quiet=True, log_every=20, total=10**6, done=0)
    return Trainer(config, folder, model, tokenizer, streams, device, silent, lambda _: {})


def summary(
    timings: Mapping[str, Timing], processor: Mapping[str, Sequence[float]], inside: Sequence[float]
) -> dict[str, Any]:
    """Medians, seconds; overhead, the share of a bare step: by the median of paired differences of processor time, with
    its 95 % interval by bootstrap, and by what recording alone takes."""
    bare, monitored = (np.array(processor[kind]) for kind in ("bare", "monitored"))
    paired = (monitored - bare) / np.median(bare)
    drawn = np.random.default_rng(0).integers(len(paired), size=(2000, len(paired)))
    low, high = np.quantile(np.median(paired[drawn], axis=1), (0.025, 0.975))
    return {
        "steps": {kind: timing.per(1) for kind, timing in timings.items()},
        "processor": {"bare": float(np.median(bare)), "monitored": float(np.median(monitored))},
        "repeats": len(paired),
        "overhead": {"median": float(np.median(paired)), "low": float(low), "high": float(high)},
        "recording": {"median": median(inside), "mean": float(np.mean(inside))},
        "recording_share": float(np.mean(inside) / np.median(bare)),
    }


def printed(result: Mapping[str, Any]) -> str:
    steps, cpu, overhead = result["steps"], result["processor"], result["overhead"]
    wall, own = (
        " and ".join(f"{1000 * found[kind]:.1f} ms {kind}" for kind in ("bare", "monitored"))
        for found in ({kind: step["median"] for kind, step in steps.items()}, cpu)
    )
    return (
        f"{result['size']}, {result['repeats']} steps of each kind, medians: {wall}; of processor time {own}\n"
        f"overhead {overhead['median']:+.2%} ({overhead['low']:+.2%} to {overhead['high']:+.2%}) of processor time, by "
        f"pairs; recording alone {1000 * result['recording']['mean']:.2f} ms, {result['recording_share']:.2%} of a step"
    )


if __name__ == "__main__":
    main()
