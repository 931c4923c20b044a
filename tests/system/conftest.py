"""A made-up corpus and a model small enough to train in a second, run through the real commands in
this process.

EBMVK_TEST_DEVICE runs them on another device than `cpu`.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.changes import start
from ebmvk.engine import vulkan_devices
from ebmvk.errors import DeviceError

from .processes import Process

TINY = """
[data]
vocab_size = 300
seq_length = 16
[model]
model = "ebm"
latent_dim = 32
n_layers = 3
n_heads = 2
ffn_dim = 32
context_local = 4
context_medium = 8
context_global = 16
hidden_dim = 32
[langevin]
knn_k = 8
langevin_steps = 8
langevin_levels = 4
[training]
steps = 8
batch_size = 4
warmup_steps = 2
[logging]
log_every = 2
eval_every = 4
eval_tokens = 150
save_every = 4
sample_tokens = 2
"""


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    status: int
    out: str
    err: str


class Page(HTMLParser):
    """What in a page could reach the network or run, its text, and tags that are not closed as they
    were opened."""

    VOID = ("meta", "link", "br", "img", "input", "path", "use", "image", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.source, self.text = "", ""
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.crossed: list[str] = []

    @classmethod
    def of(cls, path: Path) -> Page:
        page = cls()
        page.source = path.read_text(encoding="utf-8")
        page.feed(page.source)
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and (not self.open or self.open.pop() != tag):
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data

    def outside(self) -> list[str]:
        """Scripts, links and addresses that lead out of the file, and tags that are crossed or left
        open."""
        found = [link for link in self.links if not link.startswith(("#", "data:"))]
        found += [tag for tag in self.tags if tag in ("script", "iframe", "object", "embed")]
        found += [
            word for word in ("http:", "https:", "@import", "url(//", " onload=", " onclick=") if word in self.source
        ]
        return found + self.crossed + self.open


Command = Callable[..., Said]


def made_up_text(sentences: int = 220, seed: int = 7) -> str:
    """Documents of a tiny language, so that there is something to learn."""
    rng = random.Random(seed)
    who, does, what = (
        ["the cat", "a dog", "the old king", "she"],
        ["sees", "likes", "paints"],
        ["a house", "fish", "it"],
    )
    lines = [f"{rng.choice(who)} {rng.choice(does)} {rng.choice(what)}." for _ in range(sentences)]
    return "\n\n".join(" ".join(lines[i : i + 5]).capitalize() for i in range(0, sentences, 5))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: with matrices this small, threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """Skip fsync, of which a save has two dozen. It only matters if the machine stops: what a
    process has written outlives the process."""

    def synced(handle: int) -> None:
        os.fstat(handle)  # an open file, as fsync asks for

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        yield


@pytest.fixture(scope="session")
def device() -> str:
    return os.environ.get("EBMVK_TEST_DEVICE", "cpu")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "made-up.txt"
    path.write_text(made_up_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def ebmvk(capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run a command in this process: ebmvk("train", "--steps", 3) → status and output."""

    def call(command: str, *args: Any) -> Said:
        capfd.readouterr()
        try:
            status = importlib.import_module(f"ebmvk.cli.{command.replace('-', '_')}").main([str(arg) for arg in args])
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capfd.readouterr()
        return Said(status, said.out, said.err)

    yield call
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def need_vulkan() -> None:
    """Skip the test, with the reason, without a usable Vulkan device. Opens no device, so that the
    test may fork."""
    try:
        vulkan_devices.choose(None)
    except DeviceError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures, for modules that don't look at them: drawing them takes as long as
    a tiny run."""
    monkeypatch.setattr("ebmvk.report.page.draw", lambda *_: "")


@pytest.fixture
def little_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory is fitted by trying few concentrations and shares, for tests that need no better
    one."""
    monkeypatch.setattr("ebmvk.memory.fit.KAPPAS", (5.0, 20.0, 80.0))
    monkeypatch.setattr("ebmvk.memory.fit.SHARES", (0.3, 0.7, 1.0))
    monkeypatch.setattr("ebmvk.memory.fit.SCANNED_SHARES", (0.5,))


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of sweeps and experiments are forks of this process, for tests that train them one
    by one."""

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[1:3] == ["-m", "ebmvk.train"]
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            process = Process("train", *command[3:], stdout=nowhere, stderr=2, env=env)
        return subprocess.CompletedProcess(command, process.wait())

    fake = SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("ebmvk.sweeps.planned.subprocess", fake)


@pytest.fixture
def train(ebmvk: Command, tiny: Path, text: Path, device: str) -> Command:
    """Train the tiny model on the made-up text into a run folder: train(folder, "--steps", 3); must
    succeed."""

    def call(folder: Path, *args: Any) -> Said:
        resumed = any(str(arg).startswith("--resume") for arg in args)
        start = () if resumed else ("--config", tiny, *(() if "--dataset" in args else ("--dataset", text)))
        said = ebmvk("train", "--run-dir", folder, "--device", device, *start, *args)
        assert said.status == 0, said.err
        return said

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path, device: str) -> Path:
    """One finished run, to be read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    main = importlib.import_module("ebmvk.train").main
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", device, "--quiet"]
    assert main([str(arg) for arg in args]) == 0
    return folder


def launched(n: int, work: Callable[[], int], folder: Path) -> list[Said]:
    """What `work` leaves behind in n forks of this process, which meet as processes of torchrun
    do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> int:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(n)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TOKENIZERS_PARALLELISM": "false"}
        for file, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), file)
        sys.stdout, sys.stderr = (os.fdopen(file, "w", encoding="utf-8") for file in (1, 2))
        try:
            status = work()
        except Exception:  # noqa: BLE001  # as the interpreter does at its end
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return status

    children = [start(partial(rank, number)) for number in range(n)]
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [[(folder / f"{name}-{i}").read_text(encoding="utf-8") for name in ("out", "err")] for i in range(n)]
    return [Said(status, out, err) for status, (out, err) in zip(ended, said, strict=True)]


def rows(folder: Path, event: str) -> list[dict[str, Any]]:
    """The metrics rows of one kind."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]
