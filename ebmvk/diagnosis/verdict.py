"""Tells whether a loss has converged, by a test that the report states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from ebmvk.report.tables import number, percent

Word = Literal["converging", "converged", "stalled", "diverging", "undecided"]
Values = npt.NDArray[np.float64]
LEVEL = 0.05  # of the tests, two-sided
JUMP_LEVEL = 1e-4  # small, because the last tenth is compared with the best of ten
MATERIAL = 0.01  # share of the present level: a smaller change over the second half counts as none
NOISY = 0.05  # share of the present level: with a wider interval nothing can be concluded
PROGRESS = 0.05  # share of the first level: a run that gained less has stalled, not converged
ERRORS = 3.0  # standard errors that the progress has to exceed, too
BLOCKS, LEAST = 20, 8  # most and fewest means that the trend is tested on
RELATED = 0.98  # the largest correlation of neighbours that is believed
FEW = 5  # with fewer values in a stretch, its own correlation can't be estimated
TEST = (
    "Mann-Kendall test for a trend in the second half, at the 5 % level, on at most 20 means of equal stretches. Its "
    "variance is corrected for autocorrelation (Hamed and Rao); for a fall, the correction is at most that by the "
    "correlation within the stretches. A sign test of the changes from mean to mean, at half that level, may also find "
    "a trend. The change is a Theil-Sen slope with its 95 % interval; a change below 1 % of the level counts as none. "
    "Diverging: a rise, or a last tenth more than 2 % above the best tenth (Welch test, p < 1e-4). Undecided: no "
    "trend, but the interval reaches beyond 5 % of the level. Converged: no trend, and the level is 5 % and three "
    "standard errors below the first one; otherwise stalled. Training decides, unless validation is diverging or "
    "training is undecided"
)


@dataclass(frozen=True)
class Verdict:
    """The result of the test. The figures are None if there are too few values. reason: one line.

    n: number of means tested. change: the change over the second half, in the unit of the values,
    with its interval from low to high. p: the p-value of the trend. level: mean of the second
    half. fallen: how far the loss has fallen, as a share of its first level.
    """

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
    """The verdict on the losses of steps or evaluations. values: > 0; smaller is better."""
    y = np.asarray(values, dtype=np.float64)
    second = y[len(y) // 2 :]
    if len(second) < LEAST:
        return Verdict("undecided", f"has {len(y)} values, but {2 * LEAST} are needed", len(second))
    means = np.array([part.mean() for part in np.array_split(second, min(BLOCKS, len(second)))])
    found = _trend(means, _reach(second, len(second) // len(means)))
    level, beginning, end = float(second.mean()), y[: max(1, len(y) // 50)], second[len(second) // 2 :]
    fallen = float((beginning.mean() - end.mean()) / max(beginning.mean(), 1e-300))
    noise = float(end.std() * math.sqrt(1 / len(beginning) + 1 / len(end)) / max(beginning.mean(), 1e-300))
    found |= {"level": level, "fallen": fallen}
    word, reason = _judged(found, jumped=_jumped(y), learned=fallen > max(PROGRESS, ERRORS * noise))
    return Verdict(word, reason, len(means), **found)


def _trend(means: Values, most: float) -> dict[str, float]:
    """Mann and Kendall's p, and Theil and Sen's slope (Sen 1968) times the span of the means.

    The variance of Kendall's S is that of Hamed and Rao, J. Hydrol. 204 (1998), with
    autocorrelations r^k.

    most: the largest r that is used for a fall. A falling loss bends, and jumps where an epoch
    ends, so the residuals of a line look more correlated than the noise is. For a rise, r isn't
    limited: a rise raises an alarm, and noise may be correlated over more than neighbouring values.
    """
    n, span = len(means), len(means) - 1
    first, second = np.triu_indices(n, 1)
    slopes = np.sort((means[second] - means[first]) / (second - first))
    s, slope = float(np.sign(slopes).sum()), float(np.median(slopes))
    ties = np.unique(means, return_counts=True)[1]
    variance = (n * span * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    lag = np.arange(1, n)
    r = min(_related(means - slope * np.arange(n)), most if slope < 0 else 1.0)
    variance *= 1 + 2 * float(((n - lag) * (n - lag - 1) * (n - lag - 2) * r**lag).sum()) / (n * span * (n - 2))
    reach = float(stats.norm.isf(LEVEL / 2)) * math.sqrt(variance)
    low, high = (round((len(slopes) - 1 + side * reach) / 2) for side in (-1, 1))
    p = 2 * float(stats.norm.sf(max(0.0, abs(s) - 1) / math.sqrt(variance))) if variance > 0 else 1.0
    return {
        "change": slope * span,
        "low": float(slopes[max(0, low)]) * span,
        "high": float(slopes[min(len(slopes) - 1, high)]) * span,
        "p": min(1.0, p, 2 * _sign_test(np.diff(means))),
    }


def _reach(y: Values, m: int) -> float:
    """Correlation of neighbouring means of m values that follows from the correlation of the
    values; 1 if m is small.

    It is estimated from differences, which slow changes hardly affect: neighbouring differences of
    an AR(1) process with r have the correlation -(1 - r) / 2. Two standard errors are added.
    """
    d = np.diff(y) - np.diff(y).mean()
    own = float(d @ d)
    if m < FEW or own == 0:
        return 1.0
    r = min(1 - 1e-6, max(0.0, 1 + 2 * float(d[1:] @ d[:-1]) / own + 4 / math.sqrt(len(d))))
    return r * ((1 - r**m) / (1 - r)) ** 2 / (m * _of_mean(r, m))


def _sign_test(rises: Values) -> float:
    """p-value of the number of rises and falls under a random walk, the most correlated noise. It
    finds a trend in few means that all rise, for which a correlation can't be estimated."""
    up, down = int((rises > 0).sum()), int((rises < 0).sum())
    return float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def _related(residuals: Values) -> float:
    """Correlation r of the ranks of neighbours, 0 to `RELATED`. Fitting a line to n values makes r
    appear smaller by (2 + 4 r) / n, which is corrected (Kendall, Biometrika 41, 1954, with a line
    in place of a mean)."""
    n = len(residuals)
    ranks = stats.rankdata(residuals) - (n + 1) / 2
    own = float(ranks @ ranks)
    return min(RELATED, max(0.0, (n * float(ranks[1:] @ ranks[:-1]) / own + 2) / (n - 4))) if own else 0.0


def _jumped(y: Values) -> bool:
    """True if the last tenth lies above the best tenth by more than noise and by a material amount.

    The variance of a mean of m values with autocorrelations r^k is from Bayley and Hammersley, J.
    R. Stat. Soc. 8 (1946).
    """
    parts = np.array_split(y, 10)
    if min(map(len, parts)) < 2:
        return False
    best, last = min(parts, key=lambda part: float(part.mean())), parts[-1]
    above = float(last.mean() - best.mean())
    if above <= 2 * MATERIAL * best.mean():
        return False
    before = y[len(y) // 2 : -len(last)]  # the jump itself isn't autocorrelation
    place = np.arange(len(before))
    r = _related(before - np.polyval(np.polyfit(place, before, 1), place))
    one, other = (float(part.var(ddof=1)) / len(part) * _inflation(r, len(part)) for part in (last, best))
    if one + other == 0:
        return True
    share = one / (one + other)
    freedom = 1 / (share**2 / (len(last) - 1) + (1 - share) ** 2 / (len(best) - 1))
    return bool(stats.t.sf(above / math.sqrt(one + other), freedom) < JUMP_LEVEL)


def _inflation(r: float, m: int) -> float:
    """Variance of a mean of m values with correlations r^k, divided by s^2 / m."""
    of_mean = _of_mean(r, m)
    return of_mean / (1 - (of_mean - 1) / (m - 1))


def _of_mean(r: float, m: int) -> float:
    """Variance of a mean of m values with correlations r^k, divided by their variance over m."""
    lag = np.arange(1, m)
    return 1 + 2 * float(((1 - lag / m) * r**lag).sum())


def _judged(found: dict[str, float], *, jumped: bool, learned: bool) -> tuple[Word, str]:
    change, level = found["change"], found["level"]
    moved, low, high = (number(value, "+.4f") for value in (change, found["low"], found["high"]))
    said = f"{moved} over the second half (95 % {low} to {high}), p = {number(found['p'], '.2g')}"
    if jumped:
        return "diverging", f"has its last tenth above its best tenth; {said}"
    if found["p"] < LEVEL and abs(change) > MATERIAL * level:
        return ("converging", f"still falls: {said}") if change < 0 else ("diverging", f"rises: {said}")
    if max(abs(found["low"]), abs(found["high"])) > NOISY * level:
        return "undecided", f"is too noisy to tell: {said}"
    if not learned:
        return "stalled", f"is flat, and {percent(max(0.0, found['fallen']))} below where it began: {said}"
    return "converged", f"is flat, {percent(found['fallen'], 0)} below where it began: {said}"
