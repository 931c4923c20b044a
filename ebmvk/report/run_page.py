"""One self-contained page about a run: it needs no network, no script and no other file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebmvk.report.diagnosis_sections import SETTLED_NOTE, level_mark
from ebmvk.report.page import render
from ebmvk.report.plots import Curve, heat_maps, is_course, line_plot
from ebmvk.report.series import smooth, thin
from ebmvk.report.tables import against_trigram, duration, number, per_word, percent, shown, why_no_word
from ebmvk.runs.metrics import METRICS_FILE, History, Row, read_metrics

SAMPLES = 6


def write_report(run: Path, target: Path) -> Path:
    """Write the report of a run folder (metrics.jsonl, config.toml, samples.txt) to `target`.

    Raises:
        OSError: a file cannot be read or written.
    """
    history = read_metrics(run / METRICS_FILE)
    samples = run / "samples.txt"
    text = samples.read_text(encoding="utf-8", errors="replace") if samples.is_file() else ""
    page = render(
        "report.html.j2",
        name=run.name,
        history=history,
        status=status(history),
        tiles=list(_tiles(history)),
        plots=list(_plots(history)),
        figures=_figures(history),
        remarks=list(_remarks(history)),
        levels=_levels(history),
        settled=SETTLED_NOTE,
        dispatched=any(count["dispatches"] for count in history.counts.values()),
        attention=attention_picture(history.end.get("looks")) if history.end else None,
        experts=(history.end.get("looks") or {}).get("experts", []) if history.end else [],
        shown=shown,
        advice=history.end.get("advice", []) if history.end else [],
        samples="".join(re.split(r"(?m)^(?=--- step )", text)[-SAMPLES:]).rstrip(),
        config=tomllib.loads((run / "config.toml").read_text(encoding="utf-8")),
        facts=_facts(history),
    )
    target.write_text(page, encoding="utf-8")
    return target


def status(history: History) -> str:
    """Finished, or where it stands."""
    total = history.facts.get("steps", 0)
    return f"finished, {history.step:,} steps" if history.end else f"stopped at step {history.step:,} of {total:,}"


def _last_validation(history: History) -> tuple[Row | None, str]:
    """The figures to show first: of the whole validation split if there are, else of its evaluated part."""
    if history.end:
        return history.end["validation"], "whole validation split"
    return (history.evals[-1]["validation"], "part of validation") if history.evals else (None, "")


def _tiles(history: History) -> Iterator[tuple[str, str, str]]:
    """(value, name, note) of the few figures that matter most."""
    found, where = _last_validation(history)
    if found:
        note = where
        if history.end:
            base = history.end["trigram"]["bits_per_byte"]
            change = 1 - found["bits_per_byte"] / base
            note = f"{percent(abs(change))} {'below' if change >= 0 else 'above'} the trigram's {number(base, '.3f')}"
        yield number(found["bits_per_byte"], ".3f"), "bits per byte", note
        yield number(found["ppl_token"], ",.1f"), "perplexity per token", f"{found['tokens']:,} tokens, exact"
        if (word := per_word(found)) is not None:
            yield number(word, ",.1f"), "perplexity per word", f"{found['words']:,} words"
    if history.facts:
        yield f"{history.facts['parameters'] / 1e6:.2f} M", "parameters", f"{history.facts['vocabulary']:,} tokens"
    if history.steps:
        seconds = sum(row["seconds"] for row in history.steps)
        tokens = history.steps[-1]["tokens"]
        rate = number(tokens / max(seconds, 1e-9), ",.0f")
        yield duration(seconds), "training", f"{tokens:,} tokens, {rate} per second"


def _plots(history: History) -> Iterator[tuple[str, str, str]]:
    """(title, explanation, svg) of every curve there is data for."""
    steps, loss = _series(history.steps, "loss")
    if steps:
        x, y = thin(steps, smooth(loss))
        curves = [Curve("each step", *thin(steps, loss), faint=True), Curve("smoothed", x, y)]
        yield from _plot("Training loss", "nats; the objective with all its parts", curves, ylabel="loss")
    for unit in ("token", "word"):
        x, y = _series(history.evals, "validation", f"ppl_{unit}")
        if x and (unit == "token" or per_word(history.evals[-1]["validation"]) is not None):
            tokens = history.evals[-1]["validation"]["tokens"]
            note = f"exact, on the first {tokens:,} tokens of validation"
            base = history.end["trigram"] if history.end else None
            lines = {"trigram": base[f"ppl_{unit}"]} if base and base["tokens"] == tokens else {}  # of the same tokens
            curve = Curve(f"per {unit}", x, y, dots=True, colour=unit == "word")
            yield from _plot(f"Perplexity per {unit}", note, [curve], ylabel="perplexity", log=True, lines=lines)
    energies = [Curve("of tokens, E(v|c)", *_series(history.evals, "validation", "nats_per_token"), dots=True)]
    latent = _series(history.evals, "langevin", "energy")
    energies += [Curve("of Langevin states, E(x|c)", *latent, dots=True, colour=1)] if latent[0] else []
    if energies[0].x:
        of_states = ", and of states where the chains end" if latent[0] else ""
        note = f"mean energy on validation: of the true next tokens{of_states}"
        yield from _plot("Energy", note, energies, ylabel="nats")
    yield from _part_plots(history)
    yield from _splat_plots(history)
    x, y = _series(history.evals, "langevin", "kinetic_temperature")
    if x:
        note = "mean |v|² / (d−1) right after the noise; the law asks for the dashed line"
        _, targets = _series(history.evals, "langevin", "temperature")  # a resume may leave samples away
        target = {"target": targets[-1]}
        curves = [Curve("kinetic temperature", x, y, dots=True)]
        yield from _plot("Langevin temperature", note, curves, ylabel="temperature", lines=target, span=0.1)
    x, y = _series(history.steps, "grad_norm")
    if x:
        curves = [Curve("gradient norm", *thin(x, y))]
        yield from _plot("Gradient norm", "before clipping", curves, ylabel="norm")


def _part_plots(history: History) -> Iterator[tuple[str, str, str]]:
    """Score matching by noise level, and the parts of the loss."""
    levels = history.evals[-1].get("score_matching", []) if history.evals else []
    if levels:
        labels = [f"κ = {level['kappa']:.0f} {level_mark(level)}".strip() for level in levels]
        curves = [Curve(label, *_level(history, i), dots=True, colour=i) for i, label in enumerate(labels)]
        note = "relative squared error of the score, by noise level; predicting no score at all gets 1"
        yield from _plot("Score matching", note, curves, ylabel="L_κ", lines={"zero score": 1.0})
    names = dict.fromkeys(name for row in history.steps for name in row["parts"])
    curves = []
    for name in names:
        x, y = _series(history.steps, "parts", name)
        curves.append(Curve(name, *thin(x, smooth(y)), colour=len(curves)))
    if curves:
        yield from _plot("Parts of the loss", "before their weights, smoothed", curves, ylabel="nats")


def _levels(history: History) -> list[Row]:
    """Rows of the table of score matching, of the last evaluation; those of before levels had names have none."""
    levels = history.evals[-1].get("score_matching", []) if history.evals else []
    return [level | {"label": level_mark(level)} for level in levels if "ratio" in level]


def attention_picture(looks: Row | None, prefix: str = "") -> str | None:
    """Heat maps of every head, with its mean entropy in nats and how many tokens it looks back; None without any.

    prefix: of its name, which keeps its ids apart from those of another one on the page."""
    if not looks or not looks["attention"]:
        return None
    rows = [(own["layer"].removesuffix(".attention"), own["weights"]) for own in looks["attention"]]
    titles = [
        [f"{nats:.1f} nats, {back:.1f} back" for nats, back in zip(own["entropy"], own["distance"], strict=True)]
        for own in looks["attention"]
    ]
    return heat_maps(f"{prefix}Attention by layer and head", rows, titles, [shown(t) for t in looks.get("tokens", [])])


def _splat_plots(history: History) -> Iterator[tuple[str, str, str]]:
    """Consolidation during training: how many splats, how much they leave uncovered, how much happens."""
    if not history.soc:
        return
    curves = [Curve("splats", *_series(history.soc, "splats"), dots=True)]
    curves.append(Curve("capacity", *_series(history.soc, "capacity"), faint=True))
    note = "consolidated during training; faint: the capacity of the phase"
    yield from _plot("Memory splats", note, curves, ylabel="splats")
    names = ("phi", "threshold")
    curves = [Curve(name, *_series(history.soc, name), dots=True, colour=i) for i, name in enumerate(names)]
    note = "phi: share of held-out training contexts that no splat explains; splats are created above the threshold"
    yield from _plot("Uncovered share", note, curves, ylabel="share", span=0.1)
    events = ("created", "split", "merged", "pruned")
    curves = [Curve(name, *_series(history.soc, name), dots=True, colour=i) for i, name in enumerate(events)]
    yield from _plot(
        "Consolidation events", "splats at each check; their sum is the avalanche", curves, ylabel="splats"
    )


def _level(history: History, index: int) -> tuple[list[float], list[float]]:
    rows = [row for row in history.evals if len(row.get("score_matching", [])) > index]
    return [float(row["step"]) for row in rows], [float(row["score_matching"][index]["loss"]) for row in rows]


def _plot(title: str, note: str, curves: list[Curve], **how: Any) -> Iterator[tuple[str, str, str]]:
    """The picture, if there is more than one value to draw."""
    if is_course(curves):
        yield title, note, line_plot(title, curves, **how)


def _series(rows: list[Row], *keys: str) -> tuple[list[float], list[float]]:
    """Steps and values at a path of keys, where there is one."""
    x, y = [], []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            x.append(float(row["step"]))
            y.append(float(value))
    return x, y


def _figures(history: History) -> list[tuple[str, Row]]:
    """Rows of the table of exact figures."""
    rows: list[tuple[str, Row]] = []
    if history.end:
        rows += [("this model", history.end["validation"]), ("Kneser–Ney trigram, same tokens", history.end["trigram"])]
    if history.best:
        rows.append(
            (f"best evaluation (step {history.best['step']:,}, part of validation)", history.best["validation"])
        )
    return rows


def _remarks(history: History) -> Iterator[str]:
    """Lines below the exact figures: whether the model or the trigram is better; why perplexity per word is missing."""
    if history.end:
        line = against_trigram(history.end["validation"], history.end["trigram"])
        yield f"{line[0].upper()}{line[1:]}."
    found, _ = _last_validation(history)
    if found and per_word(found) is None:
        yield f"Perplexity per word: {why_no_word(found)}."


def _facts(history: History) -> list[tuple[str, str]]:
    """What the run ran on."""
    facts = history.facts
    if not facts:
        return []
    text, threads = facts["text"]["train"], f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    lines = [
        ("corpus", facts["corpus"]["reason"]),
        ("training text", f"{text['tokens']:,} tokens, {text['words']:,} words, {text['bytes']:,} bytes"),
        ("engine", facts["device"]),
        (
            "trunk",
            f"torch {facts['torch']} on {facts['torch_device']}, {threads}",
        ),
        ("platform", facts["platform"]),
        ("ebmvk", facts["ebmvk"]),
        ("begun", facts["time"]),
    ]
    unknown = sum(size.get("unknown", 0) for size in facts["text"].values())
    trouble = (
        ("unknown characters", unknown),
        ("restarts", history.restarts),
        (f"unreadable lines of {METRICS_FILE}", history.broken_lines),
    )
    return lines + [(what, str(count)) for what, count in trouble if count]
