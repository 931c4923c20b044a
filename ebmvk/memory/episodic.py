"""Episodic memory: splats of the text that is being read (model section 8).

Each context becomes a splat of mass 1 with the token that followed it. The latest contexts are all
compared with the next query; older ones are folded into a store, where the k nearest are looked up.
When the store is full, the splats whose merging costs least in description length are merged. So
the text is summarised, never cut off, and fades only with age.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.errors import ConfigError
from ebmvk.sphere.vmf import log_c_ratio
from ebmvk.splats.consolidation import consolidate
from ebmvk.splats.recall import Recall, Splats, log_density
from ebmvk.splats.store import SplatStore

RECENT = 512  # most contexts that are not folded yet
FORGOTTEN = 1e-6  # splats that have faded below this mass are dropped
# A full store is reduced by 1/4 of its capacity at once, because searching for pairs is expensive
SLACK = 4


@dataclass(frozen=True)
class EpisodicConfig:
    """How to read a text with episodic memory.

    capacity: most splats. kappa: concentration of each splat. share: weight of the memory's law in
    the pool with the lexical law. half_life: tokens after which a splat's mass is halved. k: folded
    splats looked up per context.
    scramble: a control for experiments, which stores each context with the token of another one.
    """

    capacity: int = 10_000
    kappa: float = 14.0
    share: float = 0.7
    half_life: float = 1500.0
    k: int = 256
    scramble: bool = False


class Episodic:
    """The memory of one text, read from its beginning.

    Raises:
        ConfigError: the capacity is below 2.
    """

    def __init__(self, config: EpisodicConfig, backend: Backend, d: int, vocab_size: int) -> None:
        if config.capacity < 2:
            raise ConfigError(f"--memory-capacity {config.capacity} is below 2", hint="give at least 2 splats")
        self.config, self.backend, self.vocab_size = config, backend, vocab_size
        self.recent = min(RECENT, config.capacity // 2)
        self.folded: Splats | None = None
        self.states, self.tokens = torch.zeros(0, d), torch.zeros(0, dtype=torch.int64)
        self._shift = float(log_c_ratio(torch.tensor(config.kappa, dtype=torch.float64), d))
        # Masses halve with age. Instead of fading the store at each token, weigh later contexts
        # more until the next fold.
        self._weight = torch.exp(math.log(2) / config.half_life * torch.arange(self.recent + 1, dtype=torch.float64))
        self._random = torch.Generator().manual_seed(0)

    @property
    def mass(self) -> float:
        """The number of contexts held, each weighed by how much it has faded."""
        now = len(self.tokens)
        return float((self._folded_mass() + self._weight[:now].sum()) / self._weight[now])

    def _folded_mass(self) -> float:
        return float(self.folded.store.mass.sum()) if self.folded else 0.0

    @property
    def n(self) -> int:
        """The number of splats held."""
        return len(self.tokens) + (self.folded.store.n if self.folded else 0)

    def recall(self, h: Tensor) -> Recall:
        """What the text so far predicts for contexts h (B, d), float32 unit rows on the CPU."""
        return self._recall(h, torch.full((len(h),), len(self.tokens)))

    def read(self, h: Tensor, tokens: Tensor) -> Recall:
        """Look up contexts h (B, d), and store each with the token that followed it, tokens (B,).

        The contexts are in the order of the text. A lookup finds only earlier contexts.
        """
        recalls: list[Recall] = []
        at = 0
        while at < len(h) or not recalls:
            before = len(self.tokens)
            piece = slice(at, at + self.recent - before)
            at += self.recent - before
            states, following = h[piece], tokens[piece]
            self.states = torch.cat((self.states, states))
            self.tokens = torch.cat((self.tokens, self._stored(following)))
            recalls.append(self._recall(states, before + torch.arange(len(states))))
            self._fold_if_full()
        return Recall.join(recalls)

    def _stored(self, tokens: Tensor) -> Tensor:
        """The tokens to store.

        In the control, each is drawn from the tokens read so far, including itself.
        """
        if not self.config.scramble:
            return tokens
        known = torch.cat((self.tokens, tokens))
        place = len(self.tokens) + torch.arange(len(tokens))
        return known[(torch.rand(len(tokens), generator=self._random) * (place + 1)).long()]

    def _recall(self, h: Tensor, seen: Tensor) -> Recall:
        """Recall for queries h; seen: (B,), the number of recent contexts that each may use."""
        queries, recent = len(h), len(self.tokens)
        hidden = torch.arange(recent) >= seen[:, None]
        cosine = (h @ self.states.T).masked_fill(hidden, -math.inf)
        closest = torch.cat((torch.full((queries, 1), -1.0), cosine), dim=1).amax(1)
        mass = torch.cat((torch.zeros(1).double(), self._weight)).cumsum(0)[seen] + self._folded_mass()
        background = torch.where(mass > 0, mass, 1.0).log()  # alpha_inf = 1/2
        own = self.config.kappa * cosine + (self._shift + self._weight[:recent].log()).float()
        scores = torch.cat((background[:, None].float(), own), dim=1)
        old = self.folded.find(h) if self.folded else None
        if old is not None:
            scores, closest = torch.cat((scores, old.scores), dim=1), torch.maximum(closest, old.closest)
        weights = torch.softmax(scores, dim=1)
        law = (weights[:, :1] / self.vocab_size).repeat(1, self.vocab_size)
        law.scatter_add_(1, self.tokens.expand(queries, -1), weights[:, 1 : 1 + recent])
        if self.folded and old:
            law += self.folded.store.token_law(old.ids, weights[:, 1 + recent :])
        # Nothing read yet: log 1
        density = log_density(scores[:, 1:], mass, torch.where(mass > 0, mass, 1.0))
        return Recall(law, closest, density.float())

    def _fold_if_full(self) -> None:
        if len(self.tokens) < self.recent:
            return
        capacity, kappa = self.config.capacity, self.config.kappa
        places, bounds = torch.arange(self.recent), (kappa, kappa)
        store = SplatStore.gather(self.states, self.tokens, places, vocab_size=self.vocab_size, beta=0.0, kappa=bounds)
        store = store.scaled(self._weight[: self.recent])
        store = self.folded.store.joined(store) if self.folded else store
        store = store.scaled((1 / self._weight[self.recent]).expand(store.n))
        store = store.kept(store.mass > FORGOTTEN)
        if store.n > capacity - self.recent:
            store = consolidate(store, max(1, capacity - self.recent - capacity // SLACK), self.backend)
        self.folded = Splats.open(store, self.backend, self.config.k)
        self.states, self.tokens = self.states[:0], self.tokens[:0]
