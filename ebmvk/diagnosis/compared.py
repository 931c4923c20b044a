"""The pictures of several checkpoints together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ebmvk.diagnosis.chains import score_errors
from ebmvk.diagnosis.likelihood import X_FREQUENCY, short_label
from ebmvk.diagnosis.subject import Row
from ebmvk.report.charts import COLOURS, Bars, Curve, Lines, is_course
from ebmvk.report.section import Picture
from ebmvk.report.series import smooth, thin
from ebmvk.report.tables import TRAINED, at

MOST = COLOURS  # most checkpoints in one picture; if there are more, it shows the last ones
TRENDS: dict[str, tuple[Any, ...]] = {
    "Bits per byte": ("Exact, on the same tokens for each checkpoint.", "likelihood", "validation", "bits_per_byte"),
    "Nats of training text": ("Exact, per token of its beginning.", "likelihood", "training", "nats_per_token"),
    "Coverage": (
        "Share of validation contexts that training's splats explain.", "splats", "stores", TRAINED, "coverage"
    ),
    "Distinct-2 of samples": (
        "Different pairs of tokens, divided by all pairs in the samples.", "samples", "model", "distinct_2"
    ),
}  # fmt: skip
"""{title: (note, path in a record)} of the figures that are drawn by step."""


def compared(records: Sequence[Row]) -> Iterator[Picture]:
    """Pictures that show all checkpoints, or the last ones if there are more checkpoints than
    colours."""
    some = records[-MOST:]
    if len({own["folder"] for own in records}) == 1:
        yield from _trends(records)
    elif courses := [own for own in some if own["curves"]["training"]]:
        yield _courses(courses)
    yield _frequencies(some)
    if scored := [own for own in some if "denoising" in own["sections"]]:
        yield _denoising(scored)


def _trends(records: Sequence[Row]) -> Iterator[Picture]:
    """Figures of the checkpoints of one run, by step."""
    rows = sorted(records, key=lambda own: float(own["step"]))
    for title, (note, *keys) in TRENDS.items():
        points = [(float(own["step"]), float(at(own, *keys))) for own in rows if at(own, *keys) is not None]
        curves = [Curve(title, [x for x, _ in points], [y for _, y in points], dots=True)]
        if is_course(curves):
            yield Picture(title, note, Lines(curves, ylabel=title.lower()))


def _courses(records: Sequence[Row]) -> Picture:
    """Training energies of several runs."""
    drawn = []
    for colour, own in enumerate(records):
        x, y = ([point[i] for point in own["curves"]["training"]] for i in (0, 1))
        drawn.append(Curve(own["name"], *thin(x, smooth(y)), colour=colour))
    return Picture("Training energy", "E(v|c) of the true tokens, smoothed.", Lines(drawn, ylabel="nats"))


def _frequencies(records: Sequence[Row]) -> Picture:
    """Nats per token by frequency; a checkpoint has no bar for a bucket without tokens."""
    found = {
        own["name"]: {short_label(b): b for b in own["sections"]["likelihood"]["buckets"] if b["tokens"]}
        for own in records
    }
    low = {label: bucket["low"] for buckets in found.values() for label, bucket in buckets.items()}
    labels = sorted(low, key=lambda label: int(low[label]))
    series = {
        name: [float(buckets[label]["nats_per_token"]) if label in buckets else 0.0 for label in labels]
        for name, buckets in found.items()
    }
    note = "Tokens are grouped by how often they occur in the training text. Each checkpoint has its own tokens."
    return Picture("Nats per token by frequency", note, Bars(labels, series, X_FREQUENCY, "nats per token"))


def _denoising(records: Sequence[Row]) -> Picture:
    curves = [
        Curve(own["name"], [row["kappa"] for row in levels], [row["loss"] for row in levels], dots=True, colour=colour)
        for colour, own in enumerate(records)
        for levels in [own["sections"]["denoising"]["levels"]]
    ]
    only = f"Checkpoint: {records[0]['name']}. " if len(records) == 1 else ""  # a single curve has no legend
    return Picture("Error of the score", f"{only}The further right, the less noise.", score_errors(curves))
