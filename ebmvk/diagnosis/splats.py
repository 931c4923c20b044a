"""Splats: how many are active, dead or duplicates, how they are used, which tokens are near."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.engine.api import Backend
from ebmvk.memory.files import load
from ebmvk.model.language import LanguageModel
from ebmvk.report.charts import Histogram, Map
from ebmvk.report.section import Absent, Picture, Section, Shown
from ebmvk.report.tables import STATIC, TRAINED, Table, number, percent, shown
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.sphere.geometry import projx
from ebmvk.splats.coverage import posterior
from ebmvk.splats.health import gini, health, nearest_angles, neighbours, spaced
from ebmvk.splats.soc import ACTIVE_CHECKS, NEAR
from ebmvk.splats.store import SplatStore

TWIN_COSINE = 0.999  # 2.6 degrees
TWIN_LAW = 0.1  # the token laws of twins have at most this total variation
TWINS = 8  # a twin is looked for among this many nearest splats
BINS = 24  # most bins of a histogram
CHOSEN = 10  # splats whose tokens are shown
TOKENS = 6  # tokens shown for each
LABELS = 60  # most points of a map that have a label; a label without room is omitted
_LAWS = 1 << 22  # probabilities in memory at once
_HISTOGRAMS = {
    "kappa": ("Concentration", "The larger κ, the smaller the region.", "κ"),
    "nearest_angle": ("Angle to the nearest other one", "At 0° two are in the same place.", "degrees"),
    "log10_usage": ("Usage", "How often each is recalled, or how much it holds.", "log₁₀ of the usage"),
    "age_epochs": ("Age", "Time since each was created.", "epochs"),
}
"""{figure: (title, note, label of the x axis)}."""


def splats(subject: Subject) -> Row | Absent:
    """Figures of the splats that training consolidated and of those of a static memory, if the
    checkpoint has them."""
    stores = {TRAINED: subject.store, STATIC: _static(subject)}
    found = [_described(subject, name, store) for name, store in stores.items() if store]
    if not found:
        return Absent("the checkpoint has no memory splats, neither from training nor from `ebmvk memory`")
    return {"stores": found}


def _static(subject: Subject) -> SplatStore | None:
    folder = subject.run.checkpoint.path
    return load(folder, subject.run.model, "episodic").static if (folder / MEMORY_FILE).is_file() else None


def _described(subject: Subject, name: str, store: SplatStore) -> Row:
    backend, step = subject.device.backend, subject.run.checkpoint.step
    since = step - ACTIVE_CHECKS * subject.run.config.splats.soc_check_interval
    length = max(1, int(subject.history.facts.get("steps_per_epoch", 0)) or step)
    lived = bool((store.last_use > 0).any())  # false for a store that was built at once
    recalled = bool((store.frequency > 0).any())
    usage = store.frequency if recalled else store.mass
    states = subject.states
    covered = float(posterior(store, states, backend, NEAR)[1].sum(1).mean())
    asked, angles = nearest_angles(store, backend, subject.sizes.splats)
    told = health(store, angles, step=step, since=since, steps_per_epoch=length)
    return {
        "name": name,
        **(told if lived else told | {"active": None, "dead": None, "age_epochs": None}),
        "usage_gini": gini(usage),
        "usage_is": "frequency" if recalled else "mass",
        "coverage": covered,
        "coverage_tokens": len(states),
        "twins": len(twins(store, backend, asked)),
        "asked": len(asked),
        "histograms": {
            "kappa": histogram(store.kappa.double()),
            "nearest_angle": histogram(angles * 180 / math.pi),
            "log10_usage": histogram(usage.clamp_min(1e-3).log10()),
        }
        | ({"age_epochs": histogram((step - store.birth).double() / length)} if lived else {}),
        "map": flat_map(subject, store, usage),
        "chosen": _chosen(subject, store, usage),
    }


def lexical(subject: Subject) -> Row | Absent:
    """Tokens seen as splats: directions mu_v, concentrations kappa_v, unseen tokens, twins."""
    model, sizes = subject.model, subject.sizes
    kappa = model.concentrations()
    if not model.on_sphere or kappa is None:
        return Absent(f"the tokens of --model {subject.kind} have no direction on a sphere and no concentration")
    backend, counts = subject.device.backend, subject.text.counts
    with torch.no_grad():
        mu, kappa = model.embeddings().float(), kappa.double().cpu()
    ask = spaced(len(mu), sizes.splats)
    ids, cosines = neighbours(mu.cpu(), backend, ask, 1)
    both = torch.stack((ask, ids[:, 0]), dim=1).sort(1).values  # a pair can be found from either side
    pairs = dict.fromkeys(tuple(both[i].tolist()) for i in cosines[:, 0].argsort(descending=True))
    return {
        "tokens": len(mu),
        "asked": len(ask),
        "unseen": int((counts == 0).sum()),
        "usage_gini": gini(counts.double()),
        "twins": int((cosines[:, 0] >= TWIN_COSINE).sum()),
        "histograms": {
            "kappa": histogram(kappa),
            "nearest_angle": histogram(cosines[:, 0].double().clamp(-1, 1).acos() * 180 / math.pi),
        },
        "nearest": [
            {"tokens": _texts(subject, pair), "cosine": float(mu[pair[0]] @ mu[pair[1]])}
            for pair in list(pairs)[:CHOSEN]
        ],
        "map": projected(mu.cpu()[(order := counts.argsort(descending=True)[: sizes.drawn])], counts[order].double())
        | {"labels": list(enumerate(_texts(subject, order[:LABELS].tolist())))},
    }


# ---- neighbours ----------------------------------------------------------------------------------


def twins(store: SplatStore, backend: Backend, ask: Tensor) -> list[int]:
    """The splats among `ask` (m,) that duplicate a splat with a lower number: within 2.6 degrees,
    with nearly the same token law.

    They could be merged at no cost. A group of n duplicates counts n - 1 times.
    """
    ids, cosines = neighbours(store.mu, backend, ask, TWINS)
    near = ((cosines >= TWIN_COSINE) & (ids < ask[:, None])).nonzero()
    found: set[int] = set()
    for part in torch.split(near, max(1, _LAWS // store.vocab_size)):
        own, other = ask[part[:, 0]], ids[part[:, 0], part[:, 1]]
        one, two = (store.token_law(who[:, None], torch.ones(len(who), 1)) for who in (own, other))
        same = (one - two).abs().sum(1) / 2 <= TWIN_LAW
        found |= set(own[same].tolist())
    return sorted(found)


# ---- for pictures --------------------------------------------------------------------------------


def histogram(values: Tensor) -> Row:
    """edges (bins + 1) and counts (bins) of values (n,) float64; one bin if all are equal."""
    y = values.double().numpy()
    if not len(y):
        return {"edges": [0.0, 1.0], "counts": [0]}
    bins: Any = BINS if float(y.max() - y.min()) > 1e-9 * max(1.0, float(abs(y).max())) else 1
    counts, edges = np.histogram(y, bins=bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def flat_map(subject: Subject, store: SplatStore, usage: Tensor) -> Row:
    """A map of evenly spaced splats; the most used have their likeliest tokens as labels."""
    ask = spaced(store.n, subject.sizes.drawn)
    most = usage[ask].argsort(descending=True)[:LABELS]
    likeliest = store.token_law(ask[most][:, None], torch.ones(len(most), 1)).argmax(1)
    labels = list(zip(most.tolist(), _texts(subject, likeliest.tolist()), strict=True))
    return projected(store.mu[ask], usage[ask]) | {"labels": labels}


def projected(mu: Tensor, usage: Tensor) -> Row:
    """A map of mu (n, d).

    x, y: along the two directions of largest variance. `variance`: the share of the variance along
    them. Also the rank of each splat's usage (n,), from 0 to 1.
    """
    centred = (mu - mu.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    places = centred @ directions[:, -2:].flip(1)
    rank = usage.argsort().argsort().double() / max(1, len(usage) - 1)
    share = float(variances[-2:].sum() / variances.sum().clamp_min(1e-300))
    return {
        **{name: [round(value, 4) for value in column.tolist()] for name, column in zip("xy", places.T, strict=True)},
        "usage": [round(value, 3) for value in rank.tolist()],
        "variance": share,
    }


@torch.no_grad()
def _chosen(subject: Subject, store: SplatStore, usage: Tensor) -> list[Row]:
    """The most used splats and some others, with their likeliest and their nearest tokens."""
    order = usage.argsort(descending=True)
    half = CHOSEN // 2
    picked = torch.cat((order[:half], order[half:][spaced(max(0, store.n - half), CHOSEN - half)]))
    law = store.token_law(picked[:, None], torch.ones(len(picked), 1)).topk(min(TOKENS, store.vocab_size), dim=1)
    near = _near_tokens(subject.model, subject.device.backend, store.mu[picked])
    return [
        {
            "id": int(i),
            "mass": float(store.mass[i]),
            "kappa": float(store.kappa[i]),
            "usage": float(usage[i]),
            "law": list(zip(_texts(subject, likeliest), p, strict=True)),
            "near": _texts(subject, nearest),
        }
        for i, likeliest, p, nearest in zip(picked, law.indices.tolist(), law.values.tolist(), near, strict=True)
    ]


def _near_tokens(model: LanguageModel, backend: Backend, points: Tensor) -> list[list[int]]:
    """For each of points (m, d), the tokens whose directions are nearest."""
    rows = backend.points(projx(model.embeddings().float().cpu()))
    ids: list[list[int]] = backend.topk(points.contiguous(), rows, min(TOKENS, rows.n)).ids.tolist()
    return ids


def _texts(subject: Subject, ids: Iterable[int]) -> list[str]:
    return [subject.run.tokenizer.label(i) for i in ids]


# ---- on the page ---------------------------------------------------------------------------------


def show_lexical(found: Row) -> Shown:
    """Tokens seen as splats."""
    note = (
        "Every token has a direction μ on the sphere and a concentration κ, as a splat has. "
        f"{found['unseen']:,} of {found['tokens']:,} tokens never occur in the training text; {found['twins']:,} of "
        f"{found['asked']:,} lie within 2.6° of another one. Gini coefficient of their frequencies: "
        f"{number(found['usage_gini'], '.3f')}."
    )
    rows = [(" and ".join(map(shown, own["tokens"])), number(own["cosine"])) for own in found["nearest"]]
    pictures = _histograms(found["histograms"], "Tokens", "tokens")
    pictures.append(
        _map(found["map"], "Map of tokens", "the most frequent tokens", "the more often in the training text")
    )
    return Shown(note, tables=[Table(("tokens nearest to each other", "cosine"), rows)], pictures=pictures)


def show_splats(found: Row) -> Shown:
    """Memory splats of training and of a static memory."""
    stores = found["stores"]
    note = (
        f"Coverage: the mean share of {stores[0]['coverage_tokens']:,} validation contexts that the splats explain. "
        "Duplicates lie within 2.6° of another splat and predict nearly the same tokens. Dead splats were not recalled "
        "at the last checks. Mass: how many contexts a splat holds. Usage: how often it is recalled in training, or "
        "its mass if the memory was built at once."
    )
    pictures = [picture for own in stores for picture in _store_pictures(own)]
    return Shown(note, tables=[_stores(stores), *map(_chosen_table, stores)], pictures=pictures)


def _stores(stores: list[Row]) -> Table:
    rows = [
        (
            own["name"], f"{own['splats']:,}", number(own["active"], ",d"), number(own["dead"], ",d"),
            f"{own['twins']:,} of {own['asked']:,}", percent(own["coverage"]), number(own["usage_gini"], ".3f"),
            number(own["kappa_quantiles"][2], ".3g"), f"{number(math.degrees(own['nearest_angle']), '.1f')}°",
            number(own["age_epochs"], ".2f"), number(own["tokens_per_splat"], ".1f"),
        )
        for own in stores
    ]  # fmt: skip
    head = (
        "splats", "number", "active", "dead", "duplicates", "coverage", "Gini of usage", "median κ", "nearest other",
        "age, epochs", "tokens each",
    )  # fmt: skip
    return Table(head, rows)


def _chosen_table(own: Row) -> Table:
    rows = [
        (
            f"{splat['id']}", number(splat["mass"], ",.1f"), number(splat["kappa"], ".3g"),
            ", ".join(f"{shown(token)} {number(p, '.2f')}" for token, p in splat["law"]),
            ", ".join(map(shown, splat["near"])),
        )
        for splat in own["chosen"]
    ]  # fmt: skip
    head = (f"{own['name']}: splat", "mass", "κ", "its likeliest tokens, with probability", "tokens nearest to it")
    return Table(head, rows, words=True)


def _store_pictures(own: Row) -> list[Picture]:
    name = own["name"]
    usage = "the more often it is recalled" if own["usage_is"] == "frequency" else "the more contexts it holds"
    title = f"{name[0].upper()}{name[1:]}"
    return [
        *_histograms(own["histograms"], title, "splats"),
        _map(own["map"], f"Map: {name}", "splats, with the token each predicts", usage),
    ]


def _histograms(found: Row, of: str, counted: str) -> list[Picture]:
    """A picture for each histogram with more than one bin. If all values are equal, the value is in
    a table instead.
    """
    drawn = []
    for what, own in found.items():
        title, note, xlabel = _HISTOGRAMS[what]
        if len(own["counts"]) > 1:
            chart = Histogram(own["edges"], own["counts"], xlabel, counted)
            drawn.append(Picture(title, f"{of}. {note}", chart))
    return drawn


def _map(found: Row, title: str, of: str, fuller: str) -> Picture:
    labels = [(i, shown(text)) for i, text in found.get("labels", [])]
    note = (
        f"Directions of {of}, along the two axes of largest variance ({percent(found['variance'], 0)} of it). The "
        f"darker a point, {fuller}."
    )
    return Picture(title, note, Map(found["x"], found["y"], found["usage"], labels), wide=True)


SECTIONS: tuple[Section[Subject, Row], ...] = (
    Section("lexical", "Tokens as splats", lexical, show_lexical),
    Section("splats", "Memory splats", splats, show_splats),
)
