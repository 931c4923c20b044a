"""The page of a diagnosis: of one checkpoint, or of several side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ebmvk.diagnosis.compared import MOST, compared
from ebmvk.diagnosis.overview import TITLES, overview, parts
from ebmvk.diagnosis.subject import Row
from ebmvk.report.page import Page, render
from ebmvk.report.section import Banner, Part, Shown, State, Tile
from ebmvk.report.tables import Table, number, per_word

VERDICTS: dict[str, tuple[str, State]] = {
    "converging": ("still learning", "going"),
    "converged": ("flat, and far below where it began", "good"),
    "stalled": ("flat, and hardly below where it began", "doubt"),
    "diverging": ("getting worse", "bad"),
    "undecided": ("too little to tell", "plain"),
}
SIZES = {
    "tokens": "tokens of validation, and of training text, for likelihood",
    "scored": "tokens for denoising",
    "remembered": "tokens read with a memory",
    "contexts": "contexts for samplers",
    "chains": "Langevin chains in each context (a quarter as many for other samplers)",
    "samples": "samples",
    "sample_tokens": "tokens of each sample",
    "looked": "tokens shown to attention heads",
    "routed": "tokens shown to experts",
    "splats": "splats whose nearest neighbours are looked up",
    "drawn": "points on a map",
}


def page(record: Row) -> str:
    """The HTML of the record of one checkpoint or several."""
    found = record["checkpoints"]
    return _several(found, record["ebmvk"]) if len(found) > 1 else _one(found[0], record["ebmvk"])


def _one(own: Row, version: str) -> str:
    size = f"{own['parameters'] / 1e6:.2f} M parameters"
    lead = f"--model {own['model']} · {size} · {own['corpus']} · {own['device']}"
    shown = [Part("", Shown(banners=_banners(own), tiles=list(_tiles(own)))), _recommended(own), *_details(own)]
    return render(Page(own["name"], "diagnosis", lead, shown, version))


def _several(found: Sequence[Row], version: str) -> str:
    lead = (
        "Each checkpoint reads the validation text of its own corpus. Differences are paired token by token if both "
        "read the same tokens. Bits per byte can be compared across tokenizers, too."
    )
    note = f"Only the last {MOST} checkpoints are drawn, because there are {MOST} colours." if len(found) > MOST else ""
    sides = [Part(own["name"], Shown(banners=_banners(own), points=_advice(own))) for own in found]
    texts = [(own["name"], own["sections"]["samples"]["texts"][0].strip()) for own in found]
    shown = [
        Part("Verdicts and recommendations", Shown(parts=sides)),
        Part("Figures", Shown(tables=[overview(found)])),
        Part("Pictures", Shown(note, pictures=list(compared(found)))),
        Part("Samples", Shown(texts=texts)),
        *(_folded(own) for own in found),
    ]
    return render(Page(f"{len(found)} checkpoints side by side", "diagnosis", lead, shown, version))


def _folded(own: Row) -> Part:
    return Part(f"Details of {own['name']}, {own['model']}", Shown(parts=list(_details(own))), folded=True)


def _banners(own: Row) -> list[Banner]:
    """The verdict, and what is wrong with a run of an earlier version."""
    found = own["sections"].get("convergence")
    banners = []
    if found is not None:
        words, state = VERDICTS[found["verdict"]]
        reason = found["reason"]
        banners.append(Banner(found["verdict"], words, f"{reason[0].upper()}{reason[1:]}.", state))
    return banners + [Banner("Made by an earlier version", fault) for fault in own["known_faults"]]


def _tiles(record: Row) -> Iterator[Tile]:
    """The few figures that matter most."""
    found = record["sections"]["likelihood"]
    own = found["validation"]
    unigram = sum(bucket["unigram"] for bucket in found["buckets"]) / math.log(2) / max(1, own["bytes"])
    note = f"exact; a model that knows only token frequencies: {number(unigram, '.3f')}"
    yield Tile(number(own["bits_per_byte"], ".3f"), "bits per byte", note)
    yield Tile(number(own["ppl_token"], ",.1f"), "perplexity per token", f"{own['tokens']:,} tokens")
    if (word := per_word(own)) is not None:
        yield Tile(number(word, ",.1f"), "perplexity per word", f"{own['words']:,} words")
    size = f"{record['parameters'] / 1e6:.2f} M"
    yield Tile(size, "parameters", f"vocabulary of {record['vocabulary']:,} tokens, {record['d']} dimensions")


def _advice(own: Row) -> list[str]:
    return own["sections"]["recommendations"] or ["nothing stands out"]


def _recommended(own: Row) -> Part:
    return Part("What to do next", Shown(points=_advice(own)))


def _details(own: Row) -> Iterator[Part]:
    yield from parts(own)
    if own["absent"]:
        rows = [(TITLES.get(name, name), f"{why[0].upper()}{why[1:]}.") for name, why in own["absent"].items()]
        yield Part("What does not apply", Shown(tables=[Table((), rows, words=True, prose=True)]))
    sizes = [(SIZES.get(what, what), number(value, ",d")) for what, value in own["sizes"].items()]
    sizes += [("seed", f"{own['seed']}"), ("seconds", number(own["seconds"], ".1f"))]
    yield Part("How much was looked at", Shown(tables=[Table((), sizes)]))
