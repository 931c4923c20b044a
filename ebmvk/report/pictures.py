"""The pictures of a diagnosis: of a section of one checkpoint, and of several checkpoints together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ebmvk.report.charts import bar_plot, histogram_plot, map_plot
from ebmvk.report.plots import SERIES, Curve, is_course, line_plot
from ebmvk.report.run_page import attention_picture
from ebmvk.report.series import smooth, thin
from ebmvk.report.tables import TRAINED, at, percent, shown
from ebmvk.runs.metrics import Row

Points = Sequence[tuple[float, float]]

FREQUENCY: dict[str, str] = {"xlabel": "occurrences in the training text", "ylabel": "nats per token"}
MOST_CURVES = len(SERIES)
TRENDS: dict[str, tuple[Any, ...]] = {
    "Bits per byte": ("exact, on the same tokens for each checkpoint", "likelihood", "validation", "bits_per_byte"),
    "Nats of training text": ("per token, exact, of its beginning", "likelihood", "training", "nats_per_token"),
    "Coverage": (
        "share of validation contexts that memory splats of training explain",
        "splats",
        "stores",
        TRAINED,
        "coverage",
    ),
    "Distinct-2 of samples": ("different pairs of tokens over all", "samples", "model", "distinct_2"),
}
LABELS = {
    "kappa": ("Concentration", "κ"),
    "nearest_angle": ("Angle to the nearest other one", "degrees"),
    "log10_usage": ("Usage", "log₁₀ of the usage"),
    "age_epochs": ("Age", "epochs"),
}


@dataclass(frozen=True)
class Picture:
    """wide: over the whole width of the page."""

    title: str
    note: str
    svg: str
    wide: bool = False


# ---- of one checkpoint ---------------------------------------------------------------------------------------------

Draw = Callable[[Row, str], Iterator[Picture]]
"""Pictures of a section of a record; the names of pictures begin with a prefix, so that their ids stay apart."""


def _likelihood(record: Row, prefix: str) -> Iterator[Picture]:
    found = record["sections"]["likelihood"]
    rows = [bucket for bucket in found["buckets"] if bucket["tokens"]]
    labels, whole = [_short(bucket) for bucket in rows], found["validation"]
    series = {
        "the model": [bucket["nats_per_token"] for bucket in rows],
        "frequencies alone": [bucket["unigram_nats_per_token"] for bucket in rows],
    }
    name = "Nats per token by frequency"
    note = "tokens of validation, by how often training showed them"
    yield Picture(name, note, bar_plot(prefix + name, labels, series, **FREQUENCY))
    series = {what: [100 * bucket[what] / whole[what] for bucket in rows] for what in ("nats", "tokens")}
    name = "Where the nats are"
    svg = bar_plot(prefix + name, labels, series, **(FREQUENCY | {"ylabel": "per cent"}))
    yield Picture(name, "share of all nats, and of all tokens", svg)


def _short(bucket: Row) -> str:
    """The label of a bucket on an axis."""
    low = bucket["low"]
    said = f"{low // 1000}k" if low >= 1000 else f"{low}"
    return said if bucket["high"] == low else f"{said}+"


def _energy(record: Row, prefix: str) -> Iterator[Picture]:
    curves = record["curves"]
    x, y = _columns(curves["training"])
    drawn = [
        Curve("each step", *thin(x, y), faint=True),
        Curve("training, smoothed", *thin(x, smooth(y))),
    ]
    if curves["validation"]:
        drawn.append(_dots("validation", curves["validation"], 1))
    name = "Energy of the true tokens"
    yield Picture(name, "E(v|c) by step: what the verdict is about", line_plot(prefix + name, drawn, ylabel="nats"))


def _denoising(record: Row, prefix: str) -> Iterator[Picture]:
    levels = record["sections"]["denoising"]["levels"]
    drawn = [
        _dots(label, [(level["kappa"], level[key]) for level in levels], colour)
        for label, key, colour in (("the model", "loss", 0), ("frequencies alone", "unigram_loss", 1))
    ]
    yield Picture("Error of the score", "the further right, the less noise", _errors(f"{prefix}Denoising", drawn))


def _errors(name: str, drawn: Sequence[Curve]) -> str:
    lines = {"zero score": 1.0}
    return line_plot(name, drawn, ylabel="relative squared error", xlabel="κ", log_x=True, lines=lines)


def _langevin(record: Row, prefix: str) -> Iterator[Picture]:
    drawn = [
        _dots(own["sampler"], [(row["entropy"], row["bound"]) for row in own["contexts"]], colour)
        for colour, own in enumerate(record["sections"]["langevin"]["samplers"])
    ]
    name, ylabel = "Tokens of chains against p(v|c)", "total variation, at most (99 %)"
    svg = line_plot(prefix + name, drawn, ylabel=ylabel, xlabel="entropy of p(v|c), nats", span=0.05)
    yield Picture(name, "the largest that these chains can't rule out; more chains bring a right law nearer to 0", svg)


def _lexical(record: Row, prefix: str) -> Iterator[Picture]:
    found = record["sections"]["lexical"]
    yield from _histograms(found["histograms"], f"{prefix}tokens", "tokens", "tokens")
    yield _map(found["map"], f"{prefix}tokens", "the most frequent tokens", "the fuller, the more often in training")


def _splats(record: Row, prefix: str) -> Iterator[Picture]:
    for own in record["sections"]["splats"]["stores"]:
        name = own["name"]
        yield from _histograms(own["histograms"], f"{prefix}{name}", name, "splats")
        usage = "recalled" if own["usage_is"] == "frequency" else "contexts it holds"
        yield _map(own["map"], f"{prefix}{name}", name, f"the fuller, the more {usage}")


def _histograms(found: Row, name: str, note: str, counted: str) -> Iterator[Picture]:
    for what, own in found.items():
        if len(own["counts"]) == 1:  # all are alike, and a table has the value
            continue
        title, xlabel = LABELS[what]
        svg = histogram_plot(f"{name}: {what}", own["edges"], own["counts"], xlabel=xlabel, ylabel=counted)
        yield Picture(title, note, svg)


def _map(found: Row, name: str, of: str, note: str) -> Picture:
    labels = [(i, shown(text)) for i, text in found.get("labels", [])]
    svg = map_plot(f"{name}: map", found["x"], found["y"], found["usage"], labels)
    share = f"{percent(found['variance'], 0)} of it"
    said = f"{of}: directions along the two axes of largest variance ({share}); {note}"
    return Picture("Map", said, svg, wide=True)


def _attention(record: Row, prefix: str) -> Iterator[Picture]:
    found = record["sections"]["attention"]
    svg = attention_picture({"attention": found["layers"], "tokens": found.get("tokens", [])}, prefix)
    assert svg is not None  # the section is absent where there is none
    yield Picture("What each head looks at", "position t (down) at position s (across); darker is more", svg, wide=True)


PICTURES: dict[str, Draw] = {
    "likelihood": _likelihood,
    "energy": _energy,
    "denoising": _denoising,
    "langevin": _langevin,
    "lexical": _lexical,
    "splats": _splats,
    "attention": _attention,
}


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _dots(label: str, points: Points, colour: int) -> Curve:
    return Curve(label, *_columns(points), dots=True, colour=colour)


# ---- of several checkpoints ----------------------------------------------------------------------------------------


def compared(records: Sequence[Row]) -> Iterator[Picture]:
    """One picture of all for what has curves; of more checkpoints than there are colours, of the last ones."""
    some = records[-MOST_CURVES:]
    if len({own["folder"] for own in records}) == 1:
        yield from _trend(records)
    elif courses := [own for own in some if own["curves"]["training"]]:
        yield _courses(courses)
    yield _frequencies(some)
    scored = [own for own in some if "denoising" in own["sections"]]
    if scored:
        drawn = [
            _dots(own["name"], [(row["kappa"], row["loss"]) for row in own["sections"]["denoising"]["levels"]], colour)
            for colour, own in enumerate(scored)
        ]
        yield Picture("Error of the score", "the further right, the less noise", _errors("Scores compared", drawn))


def _trend(records: Sequence[Row]) -> Iterator[Picture]:
    """Checkpoints of one run, by step."""
    rows = sorted(records, key=lambda own: float(own["step"]))
    for title, (note, *keys) in TRENDS.items():
        points = [(float(own["step"]), float(at(own, *keys))) for own in rows if at(own, *keys) is not None]
        if is_course(curves := [_dots(title, points, 0)]):
            svg = line_plot(f"{title} by checkpoint", curves, ylabel=title.lower())
            yield Picture(title, note, svg)


def _courses(records: Sequence[Row]) -> Picture:
    """Training energies of several runs."""
    drawn = []
    for colour, own in enumerate(records):
        x, y = _columns(own["curves"]["training"])
        drawn.append(Curve(own["name"], *thin(x, smooth(y)), colour=colour))
    svg = line_plot("Courses", drawn, ylabel="nats")
    return Picture("Training energy", "E(v|c) of the true tokens, smoothed", svg)


def _frequencies(records: Sequence[Row]) -> Picture:
    """Nats per token by frequency; a bucket that a checkpoint has no tokens in has no bar."""
    found = {
        own["name"]: {_short(b): b for b in own["sections"]["likelihood"]["buckets"] if b["tokens"]} for own in records
    }
    low = {label: bucket["low"] for buckets in found.values() for label, bucket in buckets.items()}
    labels = sorted(low, key=lambda label: int(low[label]))
    series = {
        name: [float(buckets[label]["nats_per_token"]) if label in buckets else 0.0 for label in labels]
        for name, buckets in found.items()
    }
    svg = bar_plot("Compared by frequency", labels, series, **FREQUENCY)
    return Picture("Nats per token by frequency", "of each checkpoint's own tokens", svg)
