"""The peers of `bench.training`, one in each process: `python -m bench.training_peers NAME SIZES`.

SIZES is JSON of `plain_model.Sizes`. A process reads commands, one per line, and answers each with
a line of JSON: a number runs that step, `facts` asks for what the peer can count. What libraries
print goes to standard error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import plain_model as plain
from bench.plain_model import Sizes
from ebmvk.host import resources

Facts = dict[str, Any]


class Peer(Protocol):
    def step(self, number: int) -> float:
        """Runs step `number` (from 1) to its end; returns its loss."""

    def facts(self) -> Facts:
        """dispatches and device_bytes, if the peer can count them, and more."""


class Ours:
    """`ebmvk.compile_step` on the preferred Vulkan device."""

    def __init__(self, of: Sizes) -> None:
        import ebmvk

        self.of = of
        self.step_of = plain.pure_step(plain.model(of))
        self.compiled = ebmvk.compile_step(self.step_of)
        self.arguments = plain.pure_arguments(of, 1)
        self.compiled.start(*self.arguments[:2])

    def step(self, number: int) -> float:
        return float(self.compiled.run(*plain.fed(self.of, number))["loss"])

    def facts(self) -> Facts:
        from bench.training_shares import counts, shares

        made = self.compiled.compile(*self.arguments)
        return {**counts(made, self.arguments), **shares(made, self.arguments)}


class Torch:
    """torch in eager mode, on one of its devices."""

    def __init__(self, of: Sizes, device: str = "cpu") -> None:
        self.of, self.device = of, device
        self.model = plain.model(of).to(device)
        self.optimiser = plain.optimiser(self.model.parameters())

    def step(self, number: int) -> float:
        ids, targets = (part.to(self.device) for part in plain.batch(self.of, number))
        loss = plain.loss_of(self.model(ids), targets)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return float(loss.detach())

    def facts(self) -> Facts:
        return {"operations": operations(lambda: self.step(1))}


class TorchVulkan(Torch):
    """torchvulkan's device; each operation that isn't a view is a dispatch."""

    def __init__(self, of: Sizes) -> None:
        self.module = importlib.import_module("torchvulkan")
        super().__init__(of, "vulkan")

    def facts(self) -> Facts:
        bytes_then = self.module.max_memory_allocated()  # before the operations are counted
        found = super().facts()
        return {
            **found,
            "dispatches": found["operations"],
            "dispatches_are": "operations that aren't views",
            "device_bytes": bytes_then,
            "device_bytes_are": "the most that its tensors took at once",
        }


class TinyGrad:
    """The same model written for tinygrad, through WebGPU."""

    def __init__(self, of: Sizes) -> None:
        os.environ.update(DEV="WEBGPU", WEBGPU_PATH=str(dawn()), TRAINING="1")
        from bench.training_tinygrad import Trainer

        self.of, self.trainer = of, Trainer(of)

    def step(self, number: int) -> float:
        ids, targets = (part.numpy() for part in plain.batch(self.of, number))
        return self.trainer.step(ids, targets)

    def facts(self) -> Facts:
        return self.trainer.facts()


class Iree:
    """The graph of the step, exported by iree-turbine and compiled for any Vulkan device."""

    def __init__(self, of: Sizes, *, one_hot: bool = False) -> None:
        from bench.training_iree import Program

        self.of = of
        self.program = Program(plain.pure_step(plain.model(of)), plain.pure_arguments(of, 1), one_hot=one_hot)

    def step(self, number: int) -> float:
        return self.program.step(*plain.fed(self.of, number))

    def facts(self) -> Facts:
        return self.program.facts()


@dataclass(frozen=True)
class Entry:
    """A peer. packages: from the package index, with the version that was tried; modules: what must
    be importable."""

    make: Callable[[Sizes], Peer]
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def absent(self) -> str | None:
        """How to install the peer, if it isn't there."""
        if all(map(_importable, self.modules)):
            return None
        return f"isn't installed: ./run setup --extra peers, or pip install {' '.join(self.packages)}"

    @property
    def versions(self) -> dict[str, str]:
        names = [package.partition("==")[0] for package in self.packages]
        return {name: importlib.metadata.version(name) for name in names}


IREE = (
    ("iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0", "iree-turbine==3.9.0"),
    ("iree.compiler", "iree.runtime", "iree.turbine"),
)
PEERS = {
    "ours": Entry(Ours),
    "torch_cpu": Entry(Torch),
    "torchvulkan": Entry(TorchVulkan, ("torchvulkan==0.2.1",), ("torchvulkan",)),
    "tinygrad": Entry(TinyGrad, ("tinygrad==0.14.0", "dawn-python==0.3.0"), ("tinygrad", "pydawn")),
    "iree": Entry(Iree, *IREE),
    "iree_one_hot": Entry(partial(Iree, one_hot=True), *IREE),
}


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package is missing
        return False


def dawn() -> Path:
    """Dawn's library in dawn-python."""
    found = importlib.util.find_spec("pydawn")
    folders = list(found.submodule_search_locations or ()) if found else []
    libraries = [path for folder in folders for path in Path(folder).rglob("*x86_64*.so")]
    if not libraries:
        raise FileNotFoundError("dawn-python has no library for x86_64 here")
    return libraries[0]


def operations(run: Callable[[], object]) -> int:
    """The operations of torch in `run` that aren't views."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[str] = []

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                found.append(str(func))
            return func(*args, **(kwargs or {}))

    with Counter():  # type: ignore[no-untyped-call]
        run()
    return len(found)


def peak_bytes() -> int:
    """The most memory that this process had so far, a device's memory included if it is the CPU."""
    return resources.memory(torch.device("cpu"))["peak"]


def answer(peer: Peer, command: str) -> Facts:
    if command == "facts":
        peak = peak_bytes()  # before the peer uses memory to count
        return {**peer.facts(), "process_bytes": peak}
    start = time.perf_counter()
    loss = peer.step(int(command))
    return {"seconds": time.perf_counter() - start, "loss": loss}


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(found: Facts) -> None:
        print(json.dumps(found), file=out, flush=True)

    name, sizes = sys.argv[1:3]
    try:
        before = peak_bytes()
        start = time.perf_counter()
        peer = PEERS[name].make(Sizes(**json.loads(sizes)))
        say({"seconds": time.perf_counter() - start, "imported_bytes": before, "versions": PEERS[name].versions})
        for line in sys.stdin:
            say(answer(peer, line.strip()))
    except Exception as error:  # noqa: BLE001  # other libraries raise anything
        say({"error": f"{type(error).__name__}: {error}"[:2000]})


if __name__ == "__main__":
    main()
