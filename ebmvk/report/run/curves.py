"""The course of training in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ebmvk.report.charts import Curve, Lines, is_course
from ebmvk.report.run.source import Run
from ebmvk.report.section import Picture, Section, Shown
from ebmvk.report.series import smooth, thin
from ebmvk.report.shared import level_label
from ebmvk.report.tables import per_word
from ebmvk.runs.metrics import History, Row

PARTS = {
    "ce": "cross-entropy",
    "denoise": "denoising",
    "spread": "spread of directions",
    "moe_balance": "balance of experts",
    "moe_z": "size of router logits",
    "phi": "1 − Φ",
}
"""Names of the parts of the loss, by their key in metrics.jsonl."""


def pictures(history: History) -> list[Picture]:
    """Every curve that has more than one point to draw."""
    every = (
        _loss,
        _parts,
        _perplexity,
        _energy,
        _denoising,
        _splats,
        _uncovered,
        _events,
        _temperature,
        _gradient,
    )
    return [picture for draw in every for picture in draw(history) if _drawable(picture)]


def _drawable(picture: Picture) -> bool:
    return isinstance(picture.chart, Lines) and is_course(picture.chart.curves)


def _loss(history: History) -> Iterator[Picture]:
    steps, loss = _series(history.steps, "loss")
    curves = [
        Curve("each step", *thin(steps, loss), faint=True),
        Curve("smoothed", *thin(steps, smooth(loss))),
    ]
    note = "What training minimises: all parts of the loss, weighted and added. The faint curve shows every step."
    yield Picture("Training loss", note, Lines(curves, ylabel="nats"))


def _parts(history: History) -> Iterator[Picture]:
    names = dict.fromkeys(name for row in history.steps for name in row["parts"])
    if len(names) < 2:  # it is the loss itself
        return
    curves: list[Curve] = []
    for name in names:
        x, y = _series(history.steps, "parts", name)
        curves.append(Curve(PARTS.get(name, name), *thin(x, smooth(y)), colour=len(curves)))
    yield Picture("Parts of the loss", "Each part before it is weighted, smoothed.", Lines(curves, ylabel="value"))


def _perplexity(history: History) -> Iterator[Picture]:
    if not history.evals:
        return
    last = history.evals[-1]["validation"]
    base = history.end["trigram"] if history.end else None
    for unit in ("token", "word"):
        if unit == "word" and per_word(last) is None:
            continue
        curve = Curve(f"per {unit}", *_series(history.evals, "validation", f"ppl_{unit}"), dots=True)
        same = base is not None and base["tokens"] == last["tokens"]
        marks = {"trigram": base[f"ppl_{unit}"]} if base is not None and same else {}
        note = f"Exact, on the first {last['tokens']:,} tokens of validation. Lower is better."
        yield Picture(f"Perplexity per {unit}", note, Lines([curve], ylabel="perplexity", log=True, marks=marks))


def _energy(history: History) -> Iterator[Picture]:
    curves = [Curve("of tokens, E(v|c)", *_series(history.evals, "validation", "nats_per_token"), dots=True)]
    note = "Mean energy of the true next tokens of validation."
    latent = _series(history.evals, "langevin", "energy")
    if latent[0]:
        curves.append(Curve("of Langevin states, E(x|c)", *latent, dots=True, colour=1))
        note = "Mean energy on validation: of the true next tokens, and of the points where Langevin chains end."
    yield Picture("Energy", note, Lines(curves, ylabel="nats"))


def _denoising(history: History) -> Iterator[Picture]:
    levels = history.evals[-1].get("score_matching", []) if history.evals else []
    if not levels:
        return
    curves = [
        Curve(f"κ = {level_label(level, 0)}", *_level(history, i), dots=True, colour=i)
        for i, level in enumerate(levels)
    ]
    note = "Relative squared error of the score at each noise level. A model that predicts no score at all has 1."
    chart = Lines(curves, ylabel="relative squared error", marks={"zero score": 1.0})
    yield Picture("Denoising error", note, chart)


def _level(history: History, index: int) -> tuple[list[float], list[float]]:
    rows = [row for row in history.evals if len(row.get("score_matching", [])) > index]
    return [float(row["step"]) for row in rows], [float(row["score_matching"][index]["loss"]) for row in rows]


def _splats(history: History) -> Iterator[Picture]:
    curves = [
        Curve("splats", *_series(history.soc, "splats"), dots=True),
        Curve("capacity", *_series(history.soc, "capacity"), faint=True),
    ]
    note = "Their number, as consolidation creates and merges them. The faint curve is the largest number allowed."
    yield Picture("Memory splats", note, Lines(curves, ylabel="splats"))


def _uncovered(history: History) -> Iterator[Picture]:
    curves = _each(history.soc, {"phi": "φ", "threshold": "threshold"})
    note = "φ: share of held-out training contexts that no splat explains. While it is above the threshold, splats "
    yield Picture("Uncovered share", f"{note}are created.", Lines(curves, ylabel="share", span=0.1))


def _events(history: History) -> Iterator[Picture]:
    curves = _each(history.soc, {name: name for name in ("created", "split", "merged", "pruned")})
    note = "How many splats were created, split, merged and pruned at each check."
    yield Picture("Consolidation events", note, Lines(curves, ylabel="splats"))


def _temperature(history: History) -> Iterator[Picture]:
    curve = Curve("kinetic temperature", *_series(history.evals, "langevin", "kinetic_temperature"), dots=True)
    _, targets = _series(history.evals, "langevin", "temperature")  # a resumed run may lack some
    marks = {"target": targets[-1]} if targets else {}
    note = "Kinetic temperature of Langevin chains just after noise was added. It should stay at the dashed line."
    yield Picture("Langevin temperature", note, Lines([curve], ylabel="temperature", marks=marks, span=0.1))


def _gradient(history: History) -> Iterator[Picture]:
    curve = Curve("gradient norm", *thin(*_series(history.steps, "grad_norm")))
    yield Picture("Gradient norm", "Length of the gradient before it is clipped.", Lines([curve], ylabel="norm"))


def _each(rows: Sequence[Row], names: dict[str, str]) -> list[Curve]:
    return [
        Curve(label, *_series(rows, key), dots=True, colour=i) for i, (key, label) in enumerate(names.items())
    ]  # fmt: skip


def _series(rows: Sequence[Row], *keys: str) -> tuple[list[float], list[float]]:
    """Steps and values at a path of keys, for the rows that have it."""
    x, y = [], []
    for row in rows:
        value: object = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            x.append(float(row["step"]))
            y.append(float(value))
    return x, y


def _shown(found: list[Picture]) -> Shown:
    return Shown(pictures=found)


SECTIONS: tuple[Section[Run, list[Picture]]] = (
    Section("curves", "Course of training", lambda run: pictures(run.history) or None, _shown),
)
