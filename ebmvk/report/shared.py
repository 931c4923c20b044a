"""Content that both pages have: denoising by noise level, attention maps, experts."""

from __future__ import annotations

from collections.abc import Sequence

from ebmvk.report.charts import Heads
from ebmvk.report.section import Picture, Shown
from ebmvk.report.tables import DASH, SETTLED, Table, below, number, percent, shown
from ebmvk.runs.metrics import Row


def level_label(level: Row, digits: int = 1) -> str:
    """κ of a noise level, followed by the level's name if it has one, such as (½ κ_c)."""
    kappa = number(level["kappa"], f".{digits}f")
    return f"{kappa} ({level['name'].replace('1/2', '½').replace('kappa', 'κ')})" if level.get("name") else kappa


def denoising(levels: Sequence[Row]) -> Shown:
    """The denoising error by noise level. levels: the rows of score matching, one or more."""
    note = (
        "Noise moves a token's point away and the model estimates the score, which leads back; the higher κ, the less "
        "noise. Errors are relative squared errors: a score of zero has 1, a perfect one 0. The reference is the "
        "unigram Bayes denoiser. Measured "
        f"on {levels[0]['tokens']:,} tokens of validation. A dash: the reference's error is below {SETTLED:g}, so "
        "a ratio to it means nothing."
    )
    rows = [
        (
            level_label(level), f"{number(level['angle'], '.1f')}°", number(level["sigma"], ".3g"),
            number(level["loss"]), number(level["unigram_loss"]), below(level),
        )
        for level in levels
    ]  # fmt: skip
    head = (
        "noise level κ",
        "mean angle",
        "σ per coordinate",
        "error of the model",
        "of the reference",
        "model lower by",
    )
    return Shown(note, tables=[Table(head, rows)])


def attention(layers: Sequence[Row], tokens: Sequence[str]) -> Shown:
    """Attention maps. layers: one or more, each with the weights, entropies and distances of its
    heads.
    """
    note = (
        f"What each attention head looks at, on the first {len(tokens)} tokens of validation. Above each map: the mean "
        "entropy of a position's weights, and how many tokens back it looks on average. In the first half of the "
        "heads a position stands for the token before it."
    )
    return Shown(note, pictures=[heads(layers, tokens)])


def heads(layers: Sequence[Row], tokens: Sequence[str]) -> Picture:
    """The attention maps of all heads."""
    rows = [(own["layer"].removesuffix(".attention"), own["weights"]) for own in layers]
    titles = [
        [f"{nats:.1f} nats, {back:.1f} back" for nats, back in zip(own["entropy"], own["distance"], strict=True)]
        for own in layers
    ]
    note = "Position t (down) looks at position s (across); darker is more."
    return Picture("Attention by layer and head", note, Heads(rows, titles, [shown(token) for token in tokens]), True)


def experts(layers: Sequence[Row]) -> Shown:
    """The load of each layer's experts, and the tokens that go to them. layers: one or more."""
    rows = [
        (
            f"{own['layer']}, {place}", percent(load),
            ", ".join(f"{shown(token)} {percent(share, 0)}" for token, share in own["top"][place - 1]) or DASH,
        )
        for own in layers
        for place, load in enumerate(own["load"], start=1)
    ]  # fmt: skip
    note = (
        "The load of an expert is its share of all tokens. Beside it: the tokens that prefer this expert most, "
        "each with the percentage of its occurrences that go there."
    )
    return Shown(note, tables=[Table(("layer, expert", "load", "tokens"), rows, words=True)])
