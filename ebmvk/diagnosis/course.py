"""The course of a run: its energy per epoch, and whether it has converged, by a test that is stated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from ebmvk.diagnosis.subject import Absent, Row, Subject
from ebmvk.report.metrics import History

Word = Literal["converging", "converged", "stalled", "diverging", "undecided"]
Values = npt.NDArray[np.float64]
LEVEL = 0.05  # of the tests, two-sided
JUMP_LEVEL = 1e-4  # the stretch that is compared with is the best of ten, so the level must be small
MATERIAL = 0.01  # of the present level: a smaller change over the second half of a run is none
NOISY = 0.05  # of the present level: with a wider interval nothing can be said
PROGRESS = 0.05  # of the first level: who has not come so far has stalled, not converged
ERRORS = 3.0  # standard errors that the progress has to exceed, too
BLOCKS, LEAST = 20, 8  # means that the trend is tested on, at most and at least
EPOCHS = 24  # in the table at most: of more, those at even distances
SPIKE = 6.0  # robust standard deviations above a neighbourhood
NEIGHBOURHOOD = 25  # steps
TEST = (
    "trend of the second half: Mann-Kendall at the 5 % level, Theil-Sen slope with its 95 % interval, on up to 20 "
    "means of as many stretches; a change below 1 % of the level counts as none. Diverging also where the last tenth "
    "lies above the best tenth (Welch, p < 1e-4). Without a trend, undecided where the interval reaches beyond 5 % of "
    "the level; converged where the level is 5 % and three standard errors below the first, else stalled"
)


@dataclass(frozen=True)
class Verdict:
    """change: over the second half, in the unit of the values, with its interval; p: of the trend; n: means tested;
    level: mean of the second half; fallen: share of the first level that was gained since; all None where there are too
    few values to test. reason: one line."""

    word: Word
    reason: str
    n: int
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    level: float | None = None
    fallen: float | None = None


def verdict(values: Sequence[float]) -> Verdict:
    """Of a loss by step or by evaluation: the smaller the better, values > 0."""
    y = np.asarray(values, dtype=np.float64)
    second = y[len(y) // 2 :]
    if len(second) < LEAST:
        return Verdict("undecided", f"of {len(y)} values, where {2 * LEAST} are needed", len(second))
    means = np.array([part.mean() for part in np.array_split(second, min(BLOCKS, len(second)))])
    found = _trend(means)
    level, beginning, end = float(second.mean()), y[: max(1, len(y) // 50)], second[len(second) // 2 :]
    fallen = float((beginning.mean() - end.mean()) / max(beginning.mean(), 1e-300))
    noise = float(end.std() * math.sqrt(1 / len(beginning) + 1 / len(end)) / max(beginning.mean(), 1e-300))
    found |= {"level": level, "fallen": fallen}
    word, reason = _judged(found, jumped=_jumped(y), learned=fallen > max(PROGRESS, ERRORS * noise))
    return Verdict(word, reason, len(means), **found)


def _trend(means: Values) -> dict[str, float]:
    """Mann and Kendall's p and Theil and Sen's slope, as a change from the first mean to the last."""
    place = np.arange(len(means))
    slope, _, low, high = (float(value) for value in stats.theilslopes(means, place, 1 - LEVEL))
    p = float(stats.kendalltau(place, means).pvalue)
    span = len(means) - 1
    return {
        "change": slope * span, "low": low * span, "high": high * span, "p": p if math.isfinite(p) else 1.0
    }  # fmt: skip


def _jumped(y: Values) -> bool:
    """Whether the last tenth lies above the best tenth by more than noise and by a material amount."""
    parts = np.array_split(y, 10)
    if min(map(len, parts)) < 2:
        return False
    best, last = min(parts, key=lambda part: float(part.mean())), parts[-1]
    if last.mean() - best.mean() <= 2 * MATERIAL * best.mean():
        return False
    return bool(stats.ttest_ind(last, best, equal_var=False, alternative="greater").pvalue < JUMP_LEVEL)


def _judged(found: dict[str, float], *, jumped: bool, learned: bool) -> tuple[Word, str]:
    change, level = found["change"], found["level"]
    said = (
        f"{change:+.4f} over the second half (95 % {found['low']:+.4f} to {found['high']:+.4f}), p = {found['p']:.2g}"
    )
    said = said.replace("-", "−")
    if jumped:
        return "diverging", f"with its last tenth above its best tenth; {said}"
    if found["p"] < LEVEL and abs(change) > MATERIAL * level:
        return ("converging", f"still falling: {said}") if change < 0 else ("diverging", f"rising: {said}")
    if max(abs(found["low"]), abs(found["high"])) > NOISY * level:
        return "undecided", f"too noisy to tell: {said}"
    if not learned:
        return "stalled", f"flat, and {max(0.0, 100 * found['fallen']):.1f} % below where it began: {said}"
    return "converged", f"flat, {100 * found['fallen']:.0f} % below where it began: {said}"


def convergence(subject: Subject) -> Row | Absent:
    """Verdicts on training and validation energies; together, validation's where that is diverging."""
    history = subject.history
    if not history.steps:
        return Absent("the run folder has no metrics.jsonl with training steps")
    training = verdict([row["parts"]["ce"] for row in history.steps])
    validation = verdict([row["validation"]["nats_per_token"] for row in history.evals])
    word, reason = training.word, f"training energy {training.reason}"
    if validation.word == "diverging" or (word == "undecided" and validation.word != "undecided"):
        word, reason = validation.word, f"validation energy {validation.reason}"
    parts = {"training": asdict(training), "validation": asdict(validation)}
    return {"verdict": word, "reason": reason, "test": TEST, "steps": len(history.steps), **parts}


def energy(subject: Subject) -> Row | Absent:
    """Energy E(v|c) of the true tokens by epoch, its spread between steps, and how steady the run was."""
    history = subject.history
    if not history.steps:
        return Absent("the run folder has no metrics.jsonl with training steps")
    ce = np.array([row["parts"]["ce"] for row in history.steps], dtype=np.float64)
    norms = np.array([row["grad_norm"] for row in history.steps], dtype=np.float64)
    chains = [row["langevin"]["energy"] for row in history.evals if "langevin" in row]
    return {
        "epochs": epochs(history),
        "spikes": spikes(ce),
        "steps": len(ce),
        "grad_norm_median": float(np.median(norms)),
        "grad_norm_99": float(np.quantile(norms, 0.99)),
        "langevin": chains[-1] if chains else None,
    }


def epochs(history: History) -> list[Row]:
    """Of each pass over the training text: steps, mean energy in nats, standard deviation between steps, change per
    100 steps within it (least squares), and the last validation in it."""
    length = max(1, int(history.facts.get("steps_per_epoch", 0)) or history.step)
    last = (history.step - 1) // length
    chosen = sorted({round(float(i)) for i in np.linspace(0, last, min(EPOCHS, last + 1))})
    found = []
    for number in chosen:
        low, high = number * length, (number + 1) * length
        rows = [row for row in history.steps if low < row["step"] <= high]
        if not rows:
            continue
        y = np.array([row["parts"]["ce"] for row in rows])
        x = np.array([row["step"] for row in rows], dtype=np.float64)
        slope = float(np.polyfit(x - x.mean(), y, 1)[0]) if len(rows) > 2 else 0.0
        seen = [row["validation"]["nats_per_token"] for row in history.evals if low < row["step"] <= high]
        found.append({
            "epoch": number + 1,
            "steps": len(rows),
            "of": length,
            "energy": float(y.mean()),
            "deviation": float(y.std()),
            "per_100_steps": 100 * slope,
            "validation": seen[-1] if seen else None,
        })  # fmt: skip
    return found


def spikes(y: Values) -> int:
    """Steps that lie far above the median of those around them: six robust standard deviations of such differences."""
    if len(y) < NEIGHBOURHOOD:
        return 0
    half = NEIGHBOURHOOD // 2
    around = np.lib.stride_tricks.sliding_window_view(np.pad(y, half, mode="reflect"), NEIGHBOURHOOD)
    above = y - np.median(around, axis=1)
    scale = 1.4826 * float(np.median(np.abs(above)))
    return int((above > SPIKE * max(scale, 1e-12)).sum())
