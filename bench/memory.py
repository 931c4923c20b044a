"""`python -m bench.memory`: what the static memory of a trained model is worth, and why.

Concentration, background and gate are fitted on half of the validation documents; the other half
scores them, so no figure is in sample. There are three tables:

- the gain by number of splats, with building time and coverage, and for comparison the gain of a
  calibration without memory and of two scrambled controls (with the memory's gate, and with their
  own share and gate);
- merging by description length, by angle, of near pairs at random and of any pairs at random, at
  equal size;
- what the search from coarse to fine costs and misses, at the model's d and at 640. For 640 the
  states are rotated into 640 dimensions at random, with noise of a third of their length.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.measure import facts, introduce, table, write
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.engine.device import Device, open_device
from ebmvk.memory.fit import Fit
from ebmvk.memory.law import Memory
from ebmvk.memory.static import Reading, gather, read_states, token_marks
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.runs.text import check_own, own_text
from ebmvk.splats.build import cluster, marked
from ebmvk.splats.consolidation import Cost, consolidate, merge_cost
from ebmvk.splats.coverage import posterior
from ebmvk.splats.store import SplatStore


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure.

    splats: numbers of splats for the gain. start, merged: splats before and after merging.
    contexts: how many of the training text; None: all. tokens: how many of the validation text, for
    tuning and scoring together. searched: splats for the search from coarse to fine.
    """

    splats: tuple[int, ...]
    start: int
    merged: tuple[int, ...]
    contexts: int | None
    tokens: int
    searched: int


FULL = Sizes((5_000, 50_000, 150_000), 20_000, (10_000, 2_500), None, 30_000, 50_000)
QUICK = Sizes((20, 60), 60, (30,), 2_000, 400, 60)
WIDE, NOISE, ASKED = 640, 1 / 3, 4096


def by_angle(_: SplatStore, __: Tensor, ___: Tensor, cosine: Tensor) -> Tensor:
    """Costs that merge the nearest pairs first."""
    return -cosine


def at_random(seed: int) -> Cost:
    """Costs that merge near pairs in random order."""
    random = torch.Generator().manual_seed(seed)
    return lambda _, i, __, ___: torch.rand(len(i), generator=random)


def any_pairs(store: SplatStore, target: int, seed: int) -> SplatStore:
    """Merges disjoint pairs of any splats, repeatedly if one round isn't enough."""
    random = torch.Generator().manual_seed(seed)
    while store.n > target:
        order, pairs = torch.randperm(store.n, generator=random), min(store.n - target, store.n // 2)
        owner = torch.arange(store.n)
        owner[order[:pairs]] = order[pairs : 2 * pairs]
        store = store.merged(owner)
    return store


def halves(stream: TokenStream) -> tuple[TokenStream, TokenStream]:
    """A stream in two parts, divided at the document border nearest to its middle."""
    inner = stream.starts[1:]
    cut = int(inner[np.abs(inner - len(stream) // 2).argmin()]) if len(inner) else len(stream) // 2
    first = TokenStream(stream.name, stream.tokens[:cut], stream.starts[stream.starts < cut], stream.word_level)
    other = np.unique(np.concatenate(([0], stream.starts[stream.starts >= cut] - cut)))
    return first, TokenStream(stream.name, stream.tokens[cut:], other, stream.word_level)


class Bench:
    """A model, the states of its training text, and two parts of its validation text."""

    def __init__(self, run: OpenRun, device: Device, data_dir: Path | None, sizes: Sizes) -> None:
        corpus = own_text(run.config, data_dir=data_dir)
        check_own(run, corpus, "train", "validation")
        train = encode_split(corpus, "train", run.tokenizer, apart=run.config.data.apart)
        train = train if sizes.contexts is None else train.take(min(len(train), sizes.contexts + 1))
        context, self.model, self.backend = run.config.data.seq_length, run.model.to(device.torch), device.backend
        reading = Reading.training(context, bfloat16=run.config.training.precision == "bfloat16")
        began = time.perf_counter()
        self.states, self.tokens = read_states(self.model, train, reading=reading, device=device)
        self.reading_s = time.perf_counter() - began
        valid = encode_split(corpus, "validation", run.tokenizer, apart=run.config.data.apart)
        parts = halves(valid.take(min(len(valid), sizes.tokens + 1)))
        reading = Reading.evaluation(context)
        self.tuning, self.scoring = (Fit(self.model, part, reading=reading, device=device) for part in parts)

    def build(self, splats: int, seed: int) -> SplatStore:
        """Splats of the training states."""
        owner = cluster(self.states, self.tokens, splats, self.backend, seed, token_marks(self.model))
        return gather(self.states, self.tokens, owner, self.model.vocab_size)

    def worth(self, store: SplatStore) -> dict[str, Any]:
        """The gain of splats on the scoring part, and their coverage.

        The gain is in nats per token, over the model without memory, calibrated or not.
        """
        return self._fitted(store)[1]

    def controlled(self, store: SplatStore) -> dict[str, Any]:
        """`worth`, with both scrambled controls."""
        memory, found = self._fitted(store)
        anew = self.tuning.controlled(memory, "static", lambda _: None)
        for name, own in (("", memory.scrambled()), ("_fitted_anew", anew.scrambled())):
            nats = self.scoring.nats(own, "static")
            found[f"scrambled_gain{name}"] = nats["static"] - nats["none"]
        return found

    def _fitted(self, store: SplatStore) -> tuple[Memory, dict[str, Any]]:
        d, vocab_size = self.model.config.latent_dim, self.model.vocab_size
        memory = self.tuning.fit_static(Memory.unfitted(store, d=d, vocab_size=vocab_size), lambda _: None)
        nats = self.scoring.nats(memory, "static")
        fitted = memory.static or store
        return memory, {
            "splats": store.n,
            "kappa": fitted.kappa_max,
            "share": memory.share,
            "nats": nats["static"],
            "gain": nats["static"] - nats["none"],
            "calibrated_gain": nats["calibrated"] - nats["none"],
            "gain_over_calibrated": nats["static"] - nats["calibrated"],
            "coverage": float(posterior(fitted, self.scoring.h, self.backend, memory.k)[1].sum(1).mean()),
        }


def gains(bench: Bench, sizes: Sizes, seeds: int) -> Iterator[dict[str, Any]]:
    """The gain and the building time for each number of splats and each seed."""
    for splats in sizes.splats:
        for seed in range(seeds):
            began = time.perf_counter()
            store = bench.build(splats, seed)
            spent = time.perf_counter() - began
            row = {"asked": splats, "seed": seed, "build_s": spent, **bench.controlled(store)}
            print(
                f"{store.n:>9,} splats, seed {seed}: built in {spent:.1f} s; {row['gain']:+.4f} nats per token, "
                f"{row['gain_over_calibrated']:+.4f} over a calibration "
                f"(scrambled {row['scrambled_gain']:+.4f}, fitted again {row['scrambled_gain_fitted_anew']:+.4f}), "
                f"covers {row['coverage']:.2%}",
                flush=True,
            )
            yield row


def mergers(bench: Bench, sizes: Sizes, seeds: int) -> Iterator[dict[str, Any]]:
    """The gain after merging in each way, at equal size."""
    for seed in range(seeds):
        store = bench.build(sizes.start, seed)
        for target in sizes.merged:
            ways = {
                "description length": consolidate(store, target, bench.backend, merge_cost),
                "angle": consolidate(store, target, bench.backend, by_angle),
                "near pairs at random": consolidate(store, target, bench.backend, at_random(seed)),
                "any pairs at random": any_pairs(store, target, seed),
            }
            for way, merged in ways.items():
                row = {"way": way, "seed": seed, "from": store.n, **bench.worth(merged)}
                over = row["gain_over_calibrated"]
                said = f"{row['gain']:+.4f}, {over:+.4f} over a calibration"
                print(f"{store.n:,} to {merged.n:,}, seed {seed}, {way}: {said}", flush=True)
                yield row


def searches(bench: Bench, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The cost and the misses of the search from coarse to fine.

    Seconds of clustering, the share of states that joined the nearest centroid of all, and the mean
    cosine to the joined centroid and to the nearest one.
    """
    marks = token_marks(bench.model)
    for d in dict.fromkeys((bench.states.shape[1], WIDE)):
        states = bench.states if d == bench.states.shape[1] else widened(bench.states, d)
        began = time.perf_counter()
        owner = cluster(states, bench.tokens, sizes.searched, bench.backend, 0, marks)
        spent = time.perf_counter() - began
        place = torch.unique(owner, return_inverse=True)[1]
        rows = partial(marked, states, bench.tokens, marks)
        total = torch.zeros(int(place.max()) + 1, d + marks.shape[1])
        for part in torch.split(torch.arange(len(states)), 1 << 16):
            total.index_add_(0, place[part], rows(part))
        asked = torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:ASKED]
        centroids, query = normalize(total, dim=1), normalize(rows(asked), dim=1)
        found = bench.backend.topk(query, bench.backend.points(centroids), 1)
        own = (query * centroids[place[asked]]).sum(1)
        row = {"d": d, "states": len(states), "splats": len(total), "cluster_s": spent}
        row |= {"recall": float((found.ids[:, 0].cpu() == place[asked]).double().mean())}
        row |= {"cosine": float(own.mean()), "cosine_of_nearest": float(found.scores.mean())}
        print(
            f"d {d}: {len(states):,} states into {len(total):,} splats in {spent:.1f} s; {row['recall']:.1%} joined "
            f"the nearest, cosine {row['cosine']:.4f}, of the nearest {row['cosine_of_nearest']:.4f}",
            flush=True,
        )
        yield row


def widened(states: Tensor, d: int) -> Tensor:
    """Unit rows (n, d) in half precision: states rotated at random into d dimensions, and noise."""
    random = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(d, states.shape[1], generator=random))[0].T
    wide = torch.empty(len(states), d, dtype=torch.float16)
    for rows in torch.split(torch.arange(len(states)), 1 << 16):
        noise = torch.randn(len(rows), d, generator=random) * (NOISE / math.sqrt(d))
        wide[rows] = normalize(states[rows].float() @ turn + noise, dim=1).half()
    return wide


def summary(rows: Sequence[dict[str, Any]], key: str) -> list[list[str]]:
    """The mean and range of the gain over seeds, for each size and value of `key`."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["splats"] if key == "way" else row["asked"], row[key]), []).append(row)
    found = []
    for (size, value), own in groups.items():
        gain = [row["gain"] for row in own]
        name = value if key == "way" else ""
        over = statistics.mean(row["gain_over_calibrated"] for row in own)
        spread = f"{min(gain):+.4f} to {max(gain):+.4f}"
        found.append([f"{size:,}", name, f"{statistics.mean(gain):+.4f}", spread, f"{over:+.4f}"])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run folder, or one checkpoint folder")
    parser.add_argument(
        "--data-dir", type=Path, default=None, help="folder with local data sets; by default EBMVK_DATA_DIR"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, vulkan, vulkan:INDEX or reference")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, for clustering and random merging")
    parser.add_argument("--quick", action="store_true", help="small sizes; only tests that it runs")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error("--seeds has to be at least 1")
    sizes = QUICK if options.quick else FULL
    device = open_device(options.device)
    where = facts(device.backend, "bench.memory", argv)
    introduce(where)
    run = open_run(options.checkpoint, "--checkpoint", lambda text: print(text, file=sys.stderr))
    bench = Bench(run, device, options.data_dir, sizes)
    n, scored = len(bench.states), len(bench.scoring.tokens)
    print(f"{n:,} training states read in {bench.reading_s:.1f} s; {scored:,} validation tokens scored", flush=True)
    by_number, by_way = list(gains(bench, sizes, options.seeds)), list(mergers(bench, sizes, options.seeds))
    by_search = list(searches(bench, sizes))
    head = ["splats", "merged by", "gain, nats per token", "over seeds", "over a calibration"]
    print(table([head, *summary(by_number, "asked"), *summary(by_way, "way")]))
    size = {"training_states": n, "tuned_tokens": len(bench.tuning.tokens), "scored_tokens": scored}
    write(
        options.json,
        {
            "device": where,
            "step": run.checkpoint.step,
            "dataset": run.config.data.dataset,
            **size,
            "reading_s": bench.reading_s,
            "gain_over_splats": by_number,
            "merging": by_way,
            "search": by_search,
        },
    )


if __name__ == "__main__":
    main()
