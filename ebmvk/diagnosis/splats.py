"""Splats in figures: what is active, dead or double, how they are spread and used, and what they are near to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmvk.diagnosis.subject import Absent, Row, Subject
from ebmvk.engine.api import Backend
from ebmvk.memory.files import load
from ebmvk.model.language import LanguageModel
from ebmvk.report.tables import STATIC, TRAINED
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.sphere.geometry import projx
from ebmvk.splats.coverage import posterior
from ebmvk.splats.health import gini, health, nearest_angles, neighbours, spaced
from ebmvk.splats.soc import ACTIVE_CHECKS, NEAR
from ebmvk.splats.store import SplatStore

TWIN_COSINE = 0.999  # 2.6 degrees
TWIN_LAW = 0.1  # total variation of the token laws of twins, at most
TWINS = 8  # nearest splats among which a twin is looked for
BINS = 24  # of a histogram, at most
CHOSEN = 10  # splats whose tokens are shown
TOKENS = 6  # of each
LABELS = 60  # at most this many points of a map have a label; labels without room are left out
_LAWS = 1 << 22  # probabilities held at once


def splats(subject: Subject) -> Row | Absent:
    """Of the splats that training consolidated and of the static memory, whichever the checkpoint has."""
    stores = {TRAINED: subject.store, STATIC: _static(subject)}
    found = [_described(subject, name, store) for name, store in stores.items() if store]
    return (
        {"stores": found} if found else Absent("the checkpoint has no memory splats, of training or of `ebmvk memory`")
    )


def _static(subject: Subject) -> SplatStore | None:
    folder = subject.run.checkpoint.path
    return load(folder, subject.run.model, "episodic").static if (folder / MEMORY_FILE).is_file() else None


def _described(subject: Subject, name: str, store: SplatStore) -> Row:
    backend, step = subject.device.backend, subject.run.checkpoint.step
    since = step - ACTIVE_CHECKS * subject.run.config.splats.soc_check_interval
    length = max(1, int(subject.history.facts.get("steps_per_epoch", 0)) or step)
    lived = bool((store.last_use > 0).any())  # a store that was built from a text at once knows no training
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
    """Tokens as splats: directions mu_v, concentrations kappa_v; those that training never showed, and near twins."""
    model, sizes = subject.model, subject.sizes
    kappa = model.concentrations()
    if not model.on_sphere or kappa is None:
        return Absent(f"tokens of --model {subject.kind} are no splats: their rows have any length, and no kappa")
    backend, counts = subject.device.backend, subject.text.counts
    with torch.no_grad():
        mu, kappa = model.embeddings().float(), kappa.double().cpu()
    ask = spaced(len(mu), sizes.splats)
    ids, cosines = neighbours(mu.cpu(), backend, ask, 1)
    both = torch.stack((ask, ids[:, 0]), dim=1).sort(1).values  # a pair may have been found from either side
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


# ---- neighbours ----------------------------------------------------------------------------------------------------


def twins(store: SplatStore, backend: Backend, ask: Tensor) -> list[int]:
    """Those of ask (m,) with a double of a lower number: a direction within 2.6 degrees and nearly the same token law.

    They could be merged at no cost; a group of n counts n - 1 times.
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


# ---- for pictures --------------------------------------------------------------------------------------------------


def histogram(values: Tensor) -> Row:
    """edges (bins + 1) and counts (bins) of values (n,), float64; one bin where all are alike."""
    y = values.double().numpy()
    if not len(y):
        return {"edges": [0.0, 1.0], "counts": [0]}
    bins: Any = BINS if float(y.max() - y.min()) > 1e-9 * max(1.0, float(abs(y).max())) else 1
    counts, edges = np.histogram(y, bins=bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def flat_map(subject: Subject, store: SplatStore, usage: Tensor) -> Row:
    """`projected` for evenly chosen splats; the most used ones are labelled with their likeliest tokens."""
    ask = spaced(store.n, subject.sizes.drawn)
    most = usage[ask].argsort(descending=True)[:LABELS]
    likeliest = store.token_law(ask[most][:, None], torch.ones(len(most), 1)).argmax(1)
    labels = list(zip(most.tolist(), _texts(subject, likeliest.tolist()), strict=True))
    return projected(store.mu[ask], usage[ask]) | {"labels": labels}


def projected(mu: Tensor, usage: Tensor) -> Row:
    """x, y of mu (n, d) along its two directions of largest variance, the share of the variance that they have, and the
    rank of each one's usage (n,), 0 to 1."""
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
    """The most used splats and some at even ranks below them: their token law, and the tokens nearest to them."""
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
    """Tokens whose directions are nearest to points (m, d)."""
    rows = backend.points(projx(model.embeddings().float().cpu()))
    ids: list[list[int]] = backend.topk(points.contiguous(), rows, min(TOKENS, rows.n)).ids.tolist()
    return ids


def _texts(subject: Subject, ids: Iterable[int]) -> list[str]:
    return [subject.run.tokenizer.label(i) for i in ids]
