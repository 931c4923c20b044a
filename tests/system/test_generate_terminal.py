"""`ebmvk generate` on a terminal without a prompt: it asks for prompts and writes texts, until the
end of input."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

from .conftest import Command
from .processes import Process


class Person:
    """Sits at a terminal with `ebmvk generate`, types, and reads what appears."""

    def __init__(self, *args: object) -> None:
        self.terminal, inside = pty.openpty()
        how = {"env": {"TERM": "dumb"}, "closed": (self.terminal,)}  # no control sequences
        self.process = Process("generate", *args, stdin=inside, stdout=inside, stderr=inside, **how)
        os.close(inside)
        self.seen = ""

    def reads(self, words: str, seconds: float = 120) -> str:
        """What appears up to and with these words."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"{words!r} has not come: {self.seen!r}"
            try:
                part = os.read(self.terminal, 4096)
            except OSError:  # Linux: the program has closed the terminal
                part = b""
            assert part, f"the program has ended before {words!r}: {self.seen!r}"
            self.seen += part.decode(errors="replace").replace("\r\n", "\n")
        found, _, self.seen = self.seen.partition(words)
        return found + words

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux terminal")
def test_prompts_are_asked_for_on_a_terminal(trained: Path, ebmvk: Command, device: str, tmp_path: Path) -> None:
    args = ("--checkpoint", trained, "--max-tokens", 6, "--device", device, "--sampler", "exact")
    wanted = [ebmvk("generate", *args, "--quiet", "--prompt", prompt).out.rstrip("\n") for prompt in ("The cat", "")]
    person = Person(*args, "--output", tmp_path / "texts.jsonl")
    try:
        assert "Ctrl-D ends" in person.reads("Prompt: ")
        for prompt, text in zip(("The cat", ""), wanted, strict=True):
            person.types(prompt + "\n")
            assert person.reads("Prompt: ").strip("\n").endswith(text + "\nPrompt: ")
        person.types("\x04")
        assert person.process.wait(60) == 0
    finally:
        person.process.kill()
        os.close(person.terminal)
    lines = (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert '"prompt": "The cat"' in lines[0]


def test_nobody_is_asked_without_a_terminal(trained: Path, ebmvk: Command, device: str) -> None:
    said = ebmvk("generate", "--checkpoint", trained, "--max-tokens", 2, "--device", device, "--sampler", "exact")
    assert said.status == 0
    assert "Prompt" not in said.out + said.err
