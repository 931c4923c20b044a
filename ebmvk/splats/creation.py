"""Creates new splats where states are surprising and uncovered, and splits broad ones.

Model section 8.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.splats.coverage import posterior
from ebmvk.splats.history import History
from ebmvk.splats.store import SplatStore

MEMBERS = 4  # candidates per new splat; one or two points say nothing about a concentration
LEAST_MASS = 2.0  # a lighter new splat is an outlier; its states wait for others near them
ROUNDS = 16  # most rounds of seeding
SPLIT_MEMBERS = 8  # a splat needs this many of the latest states to be split
SPLITS = 1000  # most splits at once; each takes a millisecond or two

# Of a new store: vocab_size, beta, bounds of kappa_hat
Settings = tuple[int, float, tuple[float, float]]


def candidates(history: History, store: SplatStore | None, backend: Backend, k: int) -> Tensor:
    """Indices (m,) into the history: the states from which new splats may be made.

    Such a state is surprising (energy above the median), is mostly in no splat yet, and isn't
    covered by the present store (q_inf > 1/2).
    """
    n = history.n
    energy = history.energies[:n]
    place = ((energy > energy.median()) & (history.left[:n] > 0.5)).nonzero()[:, 0]
    if store is None or not len(place):
        return place
    return place[1 - posterior(store, history.states[place], backend, k)[1].sum(1) > 0.5]


def seeds(states: Tensor, k: int, random: torch.Generator) -> Tensor:
    """Places (<= k,) of distinct states (n, d), drawn by k-means++.

    The probability of a state is proportional to 1 - its cosine to the nearest seed. For more than
    ROUNDS seeds several are drawn at once, as in k-means|| (Bahmani et al. 2012).
    """
    chosen = torch.randint(len(states), (1,), generator=random)
    distance = 1 - states @ states[chosen[0]]
    while len(chosen) < min(k, len(states)):
        # A copy of a seed may become a seed, but a seed is never drawn twice
        weight = distance.clamp_min(1e-6).index_fill(0, chosen, 0.0)
        new = torch.multinomial(weight, min(math.ceil(k / ROUNDS), k - len(chosen), len(states) - len(chosen)),
                                generator=random)  # fmt: skip
        distance = torch.minimum(distance, (1 - states @ states[new].T).amin(1))
        chosen = torch.cat((chosen, new))
    return chosen


def created(
    history: History, place: Tensor, most: int, how: Settings, backend: Backend, random: torch.Generator, step: int
) -> tuple[SplatStore | None, Tensor]:
    """Up to `most` new splats made from candidates, and the places in the history that they used
    up.

    Some candidates are chosen as seeds. Every candidate joins the nearest seed, with the share of
    its mass that no splat has taken yet. Groups lighter than LEAST_MASS are dropped.

    place: (m,), the candidates' places in the history.
    """
    count = min(most, len(place) // MEMBERS)
    if count < 1:
        return None, place[:0]
    states, left = history.states[place], history.left[place]
    founders = states[seeds(states, count, random)]
    owner = backend.topk(states, backend.points(founders), 1).ids[:, 0].cpu()
    mass = torch.zeros(len(founders), dtype=torch.float64).index_add_(0, owner, left)
    used = mass[owner] >= LEAST_MASS
    if not bool(used.any()):
        return None, place[:0]
    vocab_size, beta, kappa = how
    taken = place[used]
    store = SplatStore.gather(
        states[used],
        history.tokens[taken],
        owner[used],
        vocab_size=vocab_size,
        beta=beta,
        kappa=kappa,
        weight=left[used],
        step=step,
    )
    return store, taken


# ---- splitting -----------------------------------------------------------------------------------


def entropies(store: SplatStore) -> Tensor:
    """The entropy of each splat's token law n_k(v)/n_k, without smoothing: (M,) float64, nats."""
    own = torch.zeros_like(store.mass).index_add_(0, store.row, torch.special.entr(store.count))
    return own / store.mass + store.mass.log()


def split(store: SplatStore, states: Tensor, tokens: Tensor, owner: Tensor, most: int) -> SplatStore:
    """Split up to `most` heavy splats with broad token laws in two, by 2-means of their members.

    A splat qualifies if mass and entropy are both at least the mean. Those with the largest mass
    times entropy, the cost of their tokens, come first.

    Mass, resultants, token counts and frequency are divided between the halves; nothing is added.
    P(second half | token) comes from the members, smoothed by the overall split; resultants move
    apart along the difference of the members' means. Birth and last use stay as they are.

    states, tokens: (n, d) and (n,), the latest states and the tokens that followed. owner: (n,)
    int64, the splat that each state belongs to, -1 for none.
    """
    share = torch.zeros_like(store.count)
    shift = torch.zeros(store.n, store.d, dtype=torch.float64)
    which = torch.zeros(store.n, dtype=torch.bool)
    order, members = owner.argsort(stable=True), torch.bincount(owner + 1, minlength=store.n + 1)
    end = members.cumsum(0)
    for splat in _too_broad(store, members[1:])[: min(most, SPLITS)].tolist():
        mine = order[end[splat] : end[splat + 1]]
        second = _halves(states[mine])
        if not 2 <= int(second.sum()) <= len(second) - 2:
            continue
        cells = slice(int(store.count_start[splat]), int(store.count_start[splat + 1]))
        p = _second_given_token(store.count_token[cells], tokens[mine], second)
        part = float((store.count[cells] * p).sum() / store.mass[splat])
        means = states[mine][second].double().mean(0) - states[mine][~second].double().mean(0)
        move = float(store.mass[splat]) * part * (1 - part) * means
        if _fits(store.resultant[splat].double(), move, float(store.mass[splat]), part):
            share[cells], shift[splat], which[splat] = p, move, True
    return divided(store, which, share, shift) if bool(which.any()) else store


def divided(store: SplatStore, which: Tensor, share: Tensor, shift: Tensor) -> SplatStore:
    """The store after dividing in two each splat that `which` (M,) bool marks; second parts come
    last.

    share: (nnz,), the share of each token count that the second part takes. It also takes the
    resultant in proportion to that mass, plus shift, (M, d) float64.
    """
    taken = torch.where(which[store.row], store.count * share, 0.0)
    mass = torch.zeros_like(store.mass).index_add_(0, store.row, taken)
    part = mass / store.mass
    whole = store.resultant.double()
    moved = whole * part[:, None] + shift
    first = replace(
        store,
        mass=store.mass - mass,
        resultant=(whole - moved).float(),
        count=store.count - taken,
        frequency=store.frequency * (1 - part),
    )
    second = replace(store, mass=mass, resultant=moved.float(), count=taken, frequency=store.frequency * part)
    return first.joined(second.kept(which))


def _too_broad(store: SplatStore, members: Tensor) -> Tensor:
    """The splats to split, those with the largest mass times entropy first.

    members: (M,), the number of each splat's members among the latest states.
    """
    entropy = entropies(store)
    broad = (store.mass >= store.mass.mean()) & (entropy >= entropy.mean()) & (members >= SPLIT_MEMBERS)
    place = broad.nonzero()[:, 0]
    return place[(store.mass * entropy)[place].argsort(descending=True, stable=True)]


def _halves(states: Tensor) -> Tensor:
    """True for states (m, d) in the second of two clusters: (m,); 2-means from two far states."""
    one = states[(states @ states.sum(0)).argmin()]
    centres = torch.stack((one, states[(states @ one).argmin()]))
    second = (states @ centres.T).argmax(1)
    for _ in range(4):
        total = torch.zeros_like(centres).index_add_(0, second, states)
        second = (states @ torch.nn.functional.normalize(total, dim=1).T).argmax(1)
    return second.bool()


def _second_given_token(cells: Tensor, tokens: Tensor, second: Tensor) -> Tensor:
    """P(second half | token) for the tokens `cells` (c,), which are in rising order.

    The counts are smoothed by one extra member with the overall split, so the result is never 0 or
    1.
    """
    share = float(second.double().mean())
    place = torch.searchsorted(cells, tokens).clamp_max(len(cells) - 1)
    known = cells[place] == tokens
    count = torch.zeros(2, len(cells), dtype=torch.float64)
    count.index_put_((second[known].long(), place[known]), torch.ones((), dtype=torch.float64), accumulate=True)
    return (count[1] + share) / (count.sum(0) + 1)


def _fits(resultant: Tensor, move: Tensor, mass: float, part: float) -> bool:
    """True if neither half's resultant is longer than its mass; otherwise the members mislead."""
    second = resultant * part + move
    lengths = torch.linalg.vector_norm(torch.stack((resultant - second, second)), dim=1)
    return bool(lengths[0] <= mass * (1 - part)) and bool(lengths[1] <= mass * part)
