"""What a diagnosis measures: sums, verdicts on made-up curves, planted duplicates."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor

from ebmvk.data.windows import TokenStream
from ebmvk.diagnosis.course import epochs, spikes
from ebmvk.diagnosis.diagnosis import Diagnosis, together
from ebmvk.diagnosis.likelihood import EDGES, buckets
from ebmvk.diagnosis.splats import histogram, projected, twins
from ebmvk.diagnosis.verdict import verdict
from ebmvk.diagnosis.writing import balance, figures, passages
from ebmvk.engine.reference import Reference
from ebmvk.report import shared
from ebmvk.report.charts import Bars, Chart, Curve, Lines
from ebmvk.report.drawing import draw
from ebmvk.report.page import Page, marked, render
from ebmvk.report.section import Part
from ebmvk.runs.metrics import METRICS_FILE, History, read_metrics
from ebmvk.sphere.geometry import projx
from ebmvk.splats.health import gini, nearest_angles, spaced
from ebmvk.splats.store import SplatStore

D, V = 16, 40


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- likelihood ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_buckets_divide_the_text_and_the_vocabulary(seed: int) -> None:
    g = _random(seed)
    counts = (10 ** (6 * torch.rand(200, generator=g)) - 1).long()
    tokens = torch.randint(200, (3000,), generator=g)
    nats = torch.rand(3000, generator=g, dtype=torch.float64) * 9
    found = buckets(nats, tokens, counts)
    assert sum(bucket.nats for bucket in found) == pytest.approx(float(nats.sum()), rel=1e-12)
    assert (sum(bucket.tokens for bucket in found), sum(bucket.types for bucket in found)) == (3000, 200)
    for bucket in found:
        high = np.inf if bucket.high is None else bucket.high
        mine = [i for i, token in enumerate(tokens.tolist()) if bucket.low <= int(counts[token]) <= high]
        assert bucket.tokens == len(mine)
        assert bucket.nats == pytest.approx(float(nats[mine].sum()))
        smoothed = (counts[tokens[mine]].double() + 1) / (counts + 1).sum()
        assert bucket.unigram == pytest.approx(float(-smoothed.log().sum()))


def test_buckets_meet_at_their_edges() -> None:
    counts = torch.tensor([edge + shift for edge in EDGES[1:] for shift in (-1, 0)])
    found = buckets(torch.ones(len(counts)).double(), torch.arange(len(counts)), counts)
    assert [bucket.low for bucket in found] == list(EDGES)
    assert [bucket.types for bucket in found] == [1, *[2] * (len(EDGES) - 2), 1]
    empty = buckets(torch.ones(1).double(), torch.zeros(1, dtype=torch.int64), counts)[-1].record()
    assert (empty["tokens"], empty["nats_per_token"]) == (0, None)


# ---- the course of a run -------------------------------------------------------------------------


def _curve(kind: str, steps: int, noise: float, seed: int) -> list[float]:
    t = np.linspace(0, 1, steps)
    shapes = {
        "converged": 3 + 4 * np.exp(-20 * t),
        "converging": 3 + 4 * np.exp(-2 * t),
        "stalled": np.full(steps, 6.5),
        "diverging": 3 + 4 * np.exp(-20 * t) + 1.5 * t**2,
        "undecided": np.full(steps, 6.5),
    }
    return list(shapes[kind] + noise * np.random.default_rng(seed).normal(size=steps))


@pytest.mark.parametrize("kind", ["converged", "converging", "stalled", "diverging"])
@pytest.mark.parametrize(("steps", "noise"), [(60, 0.0), (200, 0.05), (1500, 0.2)])
def test_verdicts_on_made_up_curves(kind: str, steps: int, noise: float) -> None:
    found = [verdict(_curve(kind, steps, noise, seed)) for seed in range(5)]
    assert Counter(own.word for own in found) == {kind: 5}
    for own in found:
        assert own.low is not None
        assert own.high is not None
        assert own.change is not None
        assert own.low <= own.change <= own.high


def test_a_jump_at_the_end_is_divergence() -> None:
    for seed in range(5):
        y = _curve("converged", 400, 0.1, seed)
        assert verdict(y).word == "converged"
        assert verdict(y[:-30] + [value + 2 for value in y[-30:]]).word == "diverging"


def test_too_few_or_too_noisy_values_are_undecided() -> None:
    few = verdict([5.0, 4.0, 3.0])
    assert (few.word, few.change, few.p) == ("undecided", None, None)
    assert "16 are needed" in few.reason
    assert verdict(_curve("undecided", 30, 2.5, 0)).word == "undecided"


def test_noise_is_rarely_mistaken_for_a_trend() -> None:
    """At the 5 % level, or even less often, because changes below 1 % of the loss are ignored."""
    words = Counter(verdict(_curve("stalled", 120, 0.6, seed)).word for seed in range(200))
    # 23 of 200 at the 5 % level has a probability of 1e-4.
    assert words["converging"] + words["diverging"] < 23
    assert words["converged"] == 0


def _related(r: float, steps: int, seed: int) -> list[float]:
    """A flat curve with autocorrelated noise, AR(1), of standard deviation 0.4."""
    noise = np.random.default_rng(seed).normal(size=steps)
    noise[1:] *= np.sqrt(1 - r * r)
    return list(6.5 + 0.4 * lfilter([1.0], [1.0, -r], noise))


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_with_bends_and_steps_is_found(seed: int) -> None:
    """A real loss: it dropped when the second epoch began, and hardly fell at the end."""
    fell = (4.39, 4.37, 4.32, 4.33, 4.27, 4.26, 4.19, 4.12, 3.96, 3.90, 3.88, 3.86, 3.89, 3.87, 3.86, 3.88, 3.80)
    course = np.interp(np.linspace(-21, 19, 900), (-21, *range(20)), (7.0, *fell, 3.86, 3.81, 3.85))
    found = verdict(course + np.random.default_rng(seed).normal(0, 0.1, 900))
    assert found.word == "converging"


@pytest.mark.parametrize(("r", "steps", "most"), [(0.5, 120, 0.13), (0.9, 400, 0.13), (0.9, 40, 0.23)])
def test_autocorrelated_noise_is_rarely_mistaken_for_a_trend(r: float, steps: int, most: float) -> None:
    """A trend no longer than the correlation looks like noise: 40 steps with r = 0.9 are worst."""
    words = [verdict(_related(r, steps, seed)).word for seed in range(200)]
    assert sum(word in ("converging", "diverging") for word in words) < most * 200


@pytest.mark.parametrize("r", [0.5, 0.9])
def test_a_trend_is_found_in_autocorrelated_noise(r: float) -> None:
    fall = np.linspace(0, 6, 400)
    words = Counter(verdict(list(_related(r, 400, seed) - fall + 4)).word for seed in range(20))
    assert words["converging"] >= 18


@pytest.mark.parametrize("n", [16, 18, 20, 30])
def test_a_trend_is_found_in_few_values_without_noise(n: int) -> None:
    """Validation losses are like that, because they are for the same tokens each time."""
    for kind in ("converging", "diverging"):
        assert verdict(_curve(kind, n, 0.0, 0)).word == kind


@pytest.mark.parametrize("values", [[5.0] * 60, [5.0] * 40 + [6.0] * 20, [9.0] * 10 + [5.0] * 50])
def test_constant_stretches_get_a_verdict(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verdict(values).word == {6.0: "diverging", 5.0: "stalled" if values[0] == 5 else "converged"}[values[-1]]


def test_spikes_are_found_where_they_were_planted() -> None:
    y = np.array(_curve("converging", 500, 0.1, 3))
    assert spikes(y) == 0
    y[[7, 123, 124, 499]] += 3.0
    assert spikes(y) == 4
    assert spikes(y[:10]) == 0


def test_every_step_belongs_to_one_epoch() -> None:
    energies = np.random.default_rng(1).random(95) + 2
    steps = [{"step": i + 1, "parts": {"ce": float(value)}} for i, value in enumerate(energies)]
    evals = [{"step": 40, "validation": {"nats_per_token": 2.5}}]
    found = epochs(History(starts=[{"step": 0, "steps_per_epoch": 20}], steps=steps, evals=evals))
    assert [own["steps"] for own in found] == [20, 20, 20, 20, 15]
    assert [own["validation"] for own in found] == [None, 2.5, None, None, None]
    weighted = sum(own["energy"] * own["steps"] for own in found) / 95
    assert weighted == pytest.approx(float(energies.mean()))


def test_a_history_until_a_step_has_nothing_later() -> None:
    rows = [{"step": step} for step in range(1, 9)]
    whole = History(steps=rows, evals=rows[3::4], soc=rows[1::2], end=rows[-1])
    part = whole.until(5)
    assert [row["step"] for row in part.steps] == [1, 2, 3, 4, 5]
    assert ([row["step"] for row in part.evals], [row["step"] for row in part.soc]) == ([4], [2, 4])
    assert (part.end, part.step, whole.until(8)) == (None, 5, whole)


def test_a_resumed_run_may_have_longer_epochs() -> None:
    steps = [{"step": i + 1, "parts": {"ce": 2.0}} for i in range(50)]
    starts = [{"step": 0, "steps_per_epoch": 20}, {"step": 30, "steps_per_epoch": 10}]
    whole = History(starts=starts, steps=steps)
    assert [(own["epoch"], own["steps"], own["of"]) for own in epochs(whole)] == [
        (1, 20, 20), (2, 15, 15), (3, 10, 10), (4, 5, 10),
    ]  # fmt: skip
    assert [whole.until(step).facts["steps_per_epoch"] for step in (20, 30, 31)] == [20, 20, 10]


def _metrics(tmp_path: Path, *lines: str) -> History:
    (tmp_path / METRICS_FILE).write_text("\n".join(lines), encoding="utf-8")
    return read_metrics(tmp_path / METRICS_FILE)


STEP = '{"event": "step", "step": 1, "parts": {"ce": 2.5}, "grad_norm": 1, "seconds": 0.5, "tokens": 64}'


def test_events_of_other_kinds_are_skipped(tmp_path: Path) -> None:
    found = _metrics(tmp_path, STEP, '{"event": "system", "step": "many"}', '{"event": "st')
    assert (len(found.steps), found.broken_lines) == (1, 1)


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "step", "step": 2}',
        '{"event": "alert", "step": 2}',
        '{"event": "eval", "step": 2, "validation": {"nats_per_token": 2.5}}',
        '{"event": "resume", "step": 2}',
        '{"event": ["step"]}',
        "[1]",
        *(
            STEP.replace('"step": 1', f'"step": {other}')
            for other in ('"2"', "true", "2.0", "1e999", "null", "[2]", "NaN")
        ),
        *(STEP.replace("2.5", other) for other in ("1e999", '"2.5"', "NaN", "null", "true", "{}")),
        STEP.replace('{"ce": 2.5}', "3"),
    ],
)
def test_lines_without_the_needed_values_are_counted(line: str, tmp_path: Path) -> None:
    found = _metrics(tmp_path, STEP, line)
    assert (len(found.steps), found.broken_lines, found.restarts) == (1, 1, 0)


# ---- splats --------------------------------------------------------------------------------------


def _store(points: Tensor, tokens: Tensor) -> SplatStore:
    """A splat at each point, which predicts its token."""
    n = len(points)
    return SplatStore.gather(
        points.repeat_interleave(4, 0), tokens.repeat_interleave(4), torch.arange(n).repeat_interleave(4),
        vocab_size=V, beta=0.01, kappa=(10.0, 500.0),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_doubles_are_found_where_they_were_planted(seed: int) -> None:
    g = _random(seed)
    points, tokens = projx(torch.randn(60, D, generator=g)), torch.randint(V, (60,), generator=g)
    assert twins(_store(points, tokens), Reference(), torch.arange(60)) == []
    # A pair, a group of three, and one in the same place that predicts another token.
    for own, other in ((41, 7), (50, 3), (55, 3), (20, 9)):
        points[own], tokens[own] = points[other].clone(), tokens[other].clone()
    tokens[20] = (tokens[20] + 1) % V
    points[41] = projx(points[41] + 0.003 * torch.randn(D, generator=g))
    store = _store(points, tokens)
    assert twins(store, Reference(), torch.arange(60)) == [41, 50, 55]
    assert twins(store, Reference(), torch.tensor([3, 50])) == [50]
    merged = store.kept(~torch.isin(torch.arange(60), torch.tensor([41, 50, 55])))
    assert twins(merged, Reference(), torch.arange(57)) == []


def test_nearest_angles_agree_with_all_pairs() -> None:
    g = _random(0)
    points = projx(torch.randn(30, D, generator=g))
    points[11] = points[4]  # equal points: each is the other's neighbour, not its own
    store = _store(points, torch.zeros(30, dtype=torch.int64))
    asked, angles = nearest_angles(store, Reference(), 10)
    cosines = points.double() @ points.double().T
    cosines.fill_diagonal_(-1)
    assert asked.tolist() == list(range(0, 30, 3))
    torch.testing.assert_close(angles, cosines[asked].amax(1).clamp(-1, 1).acos(), atol=1e-3, rtol=0)
    assert nearest_angles(store.kept(torch.arange(30) == 2), Reference(), 10)[1].tolist() == []
    every, all_angles = nearest_angles(store, Reference(), 100)
    assert len(every) == 30
    assert all_angles[[4, 11]].tolist() == pytest.approx([0, 0], abs=1e-3)


@pytest.mark.parametrize(("n", "most"), [(1, 5), (10, 10), (11, 10), (1000, 7)])
def test_spaced_returns_at_most_the_number_asked_for(n: int, most: int) -> None:
    found = spaced(n, most).tolist()
    assert len(found) <= most
    assert found == sorted(set(found))
    assert 0 <= found[0] <= found[-1] < n


def test_a_histogram_counts_every_value() -> None:
    values = torch.randn(777, generator=_random(2)).double()
    for own in (values, torch.full((777,), 5.0), values * 1e-12 + 3):
        found = histogram(own)
        assert sum(found["counts"]) == 777
        assert len(found["edges"]) == len(found["counts"]) + 1
        assert found["edges"][0] <= float(own.min()) <= float(own.max()) <= found["edges"][-1]


def test_a_map_of_points_in_a_plane_keeps_their_distances() -> None:
    g = _random(5)
    flat = torch.zeros(40, D)
    flat[:, [2, 9]] = torch.randn(40, 2, generator=g)
    found = projected(flat, torch.arange(40.0))
    places = torch.tensor([found["x"], found["y"]]).T
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(flat, flat), atol=1e-3, rtol=0)
    assert found["variance"] == pytest.approx(1)
    assert found["usage"] == pytest.approx([i / 39 for i in range(40)], abs=1e-3)
    noise = projected(torch.randn(4000, D, generator=g), torch.zeros(4000))
    assert noise["variance"] == pytest.approx(2 / D, rel=0.15)  # the largest two of sixteen that are alike


@pytest.mark.parametrize("n", [2, 5, 40])
def test_gini_and_balance_of_known_shares(n: int) -> None:
    assert gini(torch.arange(1.0, n + 1)) == pytest.approx((n - 1) / (3 * n))
    assert balance([1 / n] * n) == pytest.approx({"effective": n, "largest": 1 / n, "gini": 0}, abs=1e-6)
    one = [1.0, *[0.0] * (n - 1)]
    assert balance(one) == pytest.approx({"effective": 1, "largest": 1, "gini": (n - 1) / n})


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "length"), [(1, 5), (4, 20), (3, 300)])
def test_passages_are_parts_of_the_text(count: int, length: int) -> None:
    stream = TokenStream("made up", np.arange(100, dtype=np.int32), np.zeros(1, dtype=np.int64))
    found = passages(stream, count, length)
    assert all(passage == list(range(passage[0], passage[0] + min(length, 100))) for passage in found)
    assert len(found) == (count if length < 100 else 1)


def test_repetition_and_diversity_of_known_texts() -> None:
    found = figures([[1, 2, 3, 4] * 10])
    assert found["repetition_rate"] > 0.8
    assert found["distinct_1"] == 4 / 40
    assert figures([list(range(40))]) == {"repetition_rate": 0, "distinct_1": 1, "distinct_2": 1, "distinct_3": 1}


def test_marking_commands_keeps_the_line() -> None:
    line = "use --dropout 0.2 or --patience 3: `ebmvk train --resume`, e.g. --init corpus"
    assert "".join(text for text, _ in marked(line)) == line.replace("`", "")
    assert [text for text, code in marked(line) if code] == [
        "--dropout 0.2",
        "--patience 3",
        "ebmvk train --resume",
        "--init",
    ]


# ---- several runs in one picture -----------------------------------------------------------------


def _diagnosis(folder: str, step: int) -> Diagnosis:
    return Diagnosis({"folder": folder, "step": step}, torch.rand(9).double(), folder.encode(), np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/x/a", "/x/a"], ["a, step 3", "a, step 4"]),
        (["/x/a/run", "/x/b/run"], ["a/run, step 3", "b/run, step 4"]),
        (["a/run", "/x/a/run", "b"], ["a/run, step 3", "x/a/run, step 4", "b, step 5"]),
    ],
)
def test_runs_with_equal_folder_names_get_longer_names(folders: list[str], names: list[str]) -> None:
    found = together([_diagnosis(folder, step) for step, folder in enumerate(folders, start=3)])
    assert [own["name"] for own in found["checkpoints"]] == names


def test_legends_show_names_with_special_characters() -> None:
    names = ["_hidden", r"a$\foo$", "plain"]
    curves = [Curve(name, [1.0, 2.0], [1.0, i], colour=i) for i, name in enumerate(names)]
    charts: list[Chart] = [
        Lines(curves, ylabel="y"),
        Bars(["1", "2"], {name: [1.0, 2.0] for name in names}, xlabel="x", ylabel="y"),
    ]
    assert [name for chart in charts for name in names if f">{name}<" not in draw(chart, "chart")] == []


def test_two_pictures_of_a_page_share_no_ids() -> None:
    layer = {"layer": "one", "weights": [[[1.0, 0.0], [0.5, 0.5]]], "entropy": [0.3], "distance": [0.2]}
    part = Part("Attention", shared.attention([layer], []))
    svgs = re.findall(r"<svg.*?</svg>", render(Page("two", "test", "", [part, part])), flags=re.DOTALL)
    one, two = (set(re.findall(r' id="([^"]+)"', svg)) for svg in svgs)
    assert one
    assert one & two == set()
