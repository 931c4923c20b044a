"""What the run wrote, and what it ran on and with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ebmvk.report.run.source import Config, Run
from ebmvk.report.section import Part, Section, Shown
from ebmvk.report.tables import Table, number
from ebmvk.runs.metrics import METRICS_FILE, Row

SAMPLES = 6


def _newest(run: Run) -> list[tuple[str, str]] | None:
    """The newest samples of samples.txt, each with its heading."""
    blocks = re.split(r"(?m)^--- (step \d+, sample \d+\b.*)$", run.samples)[1:]
    return [(title.strip(" -"), text.strip()) for title, text in zip(blocks[::2], blocks[1::2], strict=True)][
        -SAMPLES:
    ] or None


def _samples(found: list[tuple[str, str]]) -> Shown:
    return Shown("What the model wrote during training, the newest text last.", texts=found)


def _operations(counts: Mapping[str, Mapping[str, float]]) -> Shown:
    dispatched = any(count["dispatches"] for count in counts.values())
    rows = [
        (
            op, number(count["calls"], ",.0f"),
            *([number(count["dispatches"], ",.0f")] if dispatched else []), number(count["seconds"], ".2f"),
        )
        for op, count in sorted(counts.items())
    ]  # fmt: skip
    head = ("operation", "calls", *(["dispatches to the device"] if dispatched else []), "seconds")
    note = "Calls of ebmvk's own operations in the last process of the run, and the time that they took."
    return Shown(note, tables=[Table(head, rows)])


def _facts(run: Run) -> list[tuple[str, str]] | None:
    facts = run.history.facts
    if not facts:
        return None
    text, threads = facts["text"]["train"], f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    lines = [
        ("corpus", facts["corpus"]["reason"]),
        ("training text", f"{text['tokens']:,} tokens, {text['words']:,} words, {text['bytes']:,} bytes"),
        ("engine", facts["device"]),
        ("trunk", _trunk(facts, threads)),
        ("platform", facts["platform"]),
        ("ebmvk", facts["ebmvk"]),
        ("begun", facts["time"]),
    ]
    unknown = sum(size.get("unknown", 0) for size in facts["text"].values())
    trouble = (
        ("unknown characters", unknown),
        ("restarts", run.history.restarts),
        (f"unreadable lines of {METRICS_FILE}", run.history.broken_lines),
    )
    return lines + [(what, str(count)) for what, count in trouble if count]


def _trunk(facts: Row, threads: str) -> str:
    """Where the layers were trained."""
    torch = f"torch {facts['torch']} on {facts['torch_device']}, {threads}"
    device = facts.get("trained_on") == "vulkan"
    return f"trained on the engine's device; evaluated by {torch}" if device else torch


def _where(lines: list[tuple[str, str]]) -> Shown:
    note = "The engine computes ebmvk's own operations; the trunk is the part of the network that torch computes."
    return Shown(note, tables=[Table((), lines, words=True)])


def _settings(config: Config) -> Shown:
    note = "All settings of the run, as in its config.toml."
    return Shown(note, parts=[Part(name, _table(values)) for name, values in config.items() if values])


def _table(values: Mapping[str, Any]) -> Shown:
    return Shown(tables=[Table((), [(key, _value(value)) for key, value in values.items()], words=True)])


def _value(value: Any) -> str:
    """A value as TOML writes it, except for quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


SAMPLES_: Section[Run, list[tuple[str, str]]] = Section("samples", "Samples", _newest, _samples)
OPERATIONS: Section[Run, Any] = Section(
    "operations", "Operations of the engine", lambda run: run.history.counts or None, _operations
)
FACTS: Section[Run, list[tuple[str, str]]] = Section("facts", "Where it ran", _facts, _where)
SETTINGS: Section[Run, Config] = Section("settings", "Settings", lambda run: run.config, _settings)
SECTIONS = (SAMPLES_, OPERATIONS, FACTS, SETTINGS)
