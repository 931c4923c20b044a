"""Intervals over documents: coverage by simulation, arithmetic against plain matrices, and the case
of one document.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.signal import lfilter
from scipy.stats import t

from ebmvk.evaluation.intervals import STRETCH, Interval, basis, freedom, half_width, paired, ratio_error

Floats = npt.NDArray[np.float64]
TEXTS = 1500  # simulated, each with an interval of its own: the error of a coverage of .95 is .006

# How a document's mean difference departs from the mean of all, in expectation 0.
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": lambda random, size: random.normal(size=size),
    "t3": lambda random, size: random.standard_t(3, size=size),
    "skewed": lambda random, size: random.exponential(size=size) - 1,
    "none": lambda random, size: np.zeros(size),
}
LENGTHS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "equal": lambda random, size: np.full(size, 1000.0),
    # WikiText-2's articles: the median has some 3,300 tokens, one in forty has four times as many.
    "articles": lambda random, size: np.clip(np.exp(random.normal(8.1, 0.75, size)).round(), 100, 30_000),
}


def _texts(law: str, lengths: str, documents: int) -> tuple[Floats, Floats]:
    """Sums (TEXTS, documents) of differences with mean 0, and their numbers of tokens. The
    differences scatter by .05 nats between documents and by 1 nat between the tokens of one."""
    random, size = np.random.default_rng([documents, *law.encode(), *lengths.encode()]), (TEXTS, documents)
    tokens = LENGTHS[lengths](random, size)
    return tokens * 0.05 * LAWS[law](random, size) + np.sqrt(tokens) * random.normal(size=size), tokens


@pytest.mark.parametrize("documents", [2, 5, 13, 60])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("law", LAWS)
def test_intervals_over_documents_cover_the_truth(law: str, lengths: str, documents: int) -> None:
    """They should cover it in 95 % of all texts. With a long tail on one side they do in 91 %,
    because few documents may show nothing of the tail.
    """
    total, tokens = _texts(law, lengths, documents)
    means = total.sum(1) / tokens.sum(1)
    halves = [half_width(*text) for text in zip(total, tokens, strict=True)]
    covered = float((np.abs(means) <= halves).mean())
    assert (0.91 if law == "skewed" else 0.935) <= covered <= 0.99


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("tokens", [1500, 20_000])
def test_intervals_within_one_document_cover_its_mean(correlation: float, tokens: int) -> None:
    """Each text is one document in which a token depends on the ones before it."""
    noise = np.random.default_rng(5).normal(size=(400, tokens + 500))
    rows = torch.from_numpy(lfilter([1], [1, -correlation], noise, axis=1)[:, 500:])
    found = [paired(row, torch.zeros_like(row), np.array([0])) for row in rows]
    assert {interval.method for interval in found} == {"stretches"}
    covered = np.mean([interval.low <= 0 <= interval.high for interval in found if interval.low is not None])  # type: ignore[operator]
    assert 0.91 <= covered <= 0.99


def test_the_width_matches_plain_matrices() -> None:
    """CR2 and its degrees of freedom are written out with n x n matrices."""
    random = np.random.default_rng(3)
    for tokens in [*(np.exp(random.normal(7, 1, n)) for n in (2, 3, 7, 40)), np.array([1e7, 3.0, 200.0, 1.0])]:
        n, total = len(tokens), random.normal(size=len(tokens))
        share = tokens / tokens.sum()
        residuals = np.eye(n) - np.outer(tokens, np.ones(n)) / tokens.sum()
        scaled = np.diag((1 - share) ** -0.5) @ residuals
        squared = float(((scaled @ total) ** 2).sum()) / tokens.sum() ** 2
        covariance = scaled @ np.diag(tokens**2) @ scaled.T
        degrees = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
        assert freedom(tokens) == pytest.approx(degrees, rel=1e-6)
        assert half_width(total, tokens) == pytest.approx(t.ppf(0.975, degrees) * squared**0.5, rel=1e-6)
    assert freedom(np.full(9, 17.0)) == pytest.approx(8)


def test_equal_documents_give_students_interval() -> None:
    means = np.array([0.2, -0.1, 0.4, 0.35, 0.05])
    nats = torch.from_numpy(means.repeat(30))
    found = paired(nats, torch.zeros_like(nats), np.array([0, 31, 61, 91, 121]))
    low, high = t.interval(0.95, 4, loc=means.mean(), scale=means.std(ddof=1) / 5**0.5)
    assert (found.nats_per_token, found.low, found.high) == pytest.approx((means.mean(), low, high))
    assert (found.method, found.documents) == ("documents", 5)


def test_one_document_gives_no_interval_over_documents() -> None:
    nats = torch.randn(5 * STRETCH, generator=torch.Generator().manual_seed(0)).double()
    short = paired(nats[:-1], torch.zeros_like(nats[:-1]), np.array([0]))
    assert short == Interval(float(nats[:-1].mean()), None, None, "none", 1)
    within = paired(nats, torch.zeros_like(nats), np.array([0]))
    assert within.method == "stretches"
    assert within.low is not None
    assert within.high is not None
    assert within.low < within.nats_per_token < within.high
    assert basis(short.record()) == "the text is one short document"
    assert "this document only" in basis(within.record())


@pytest.mark.parametrize("starts", [[0, 1, 41], [0, 41, 100], [0, 0, 41]], ids=str)
def test_documents_without_a_token_are_not_counted(starts: list[int]) -> None:
    """One document is empty, at the beginning of the text; one begins with the last target."""
    nats = torch.arange(100).double()
    found = paired(nats, torch.zeros_like(nats), np.array(starts))
    assert found.nats_per_token == pytest.approx(float(nats.mean()))
    assert found.documents == (3 if starts[-1] == 100 else 2)


def test_equal_models_have_a_difference_of_zero() -> None:
    nats = torch.rand(90, generator=torch.Generator().manual_seed(0)).double()
    assert paired(nats, nats, np.array([0, 20, 50])) == Interval(0.0, 0.0, 0.0, "documents", 3)


def test_the_record_says_if_documents_are_few() -> None:
    record = {"method": "documents", "documents": 13}
    assert basis(record) == "over 13 documents, which are few"
    assert basis(record | {"documents": 60}) == "over 60 documents"
    assert basis({"low": 0.0, "high": 1.0}) == "by document"  # a record of an earlier version


def test_the_error_of_a_ratio_counts_documents_not_tokens() -> None:
    """If all documents have the same reference, the error is that of the mean of their ratios,
    whatever their length.
    """
    random = torch.Generator().manual_seed(3)
    ratios = torch.rand(7, generator=random).double()
    for tokens in (1, 50):
        reference = torch.full((7 * tokens,), 0.4).double()
        starts = np.array([0, *range(1 + tokens, 1 + 7 * tokens, tokens)])
        found = ratio_error(ratios.repeat_interleave(tokens) * reference, reference, starts)
        assert found == pytest.approx(float(ratios.std(correction=1)) / 7**0.5, rel=1e-6)


def test_the_error_of_a_ratio_matches_its_scatter() -> None:
    """Measured over 400 texts of 12 documents, which scatter by .1 and have 200 tokens each."""
    random = np.random.default_rng(8)
    starts = np.array([0, *range(201, 2401, 200)])
    reference = random.uniform(0.2, 0.8, (400, 2400))
    effects = np.repeat(random.normal(size=(400, 12)), 200, axis=1)
    values = reference * (0.7 + 0.1 * effects) + 0.1 * random.normal(size=(400, 2400))
    found = [ratio_error(*map(torch.from_numpy, pair), starts) for pair in zip(values, reference, strict=True)]
    scatter = (values.sum(1) / reference.sum(1)).std()
    assert np.sqrt(np.mean(np.square(np.array(found, dtype=float)))) == pytest.approx(scatter, rel=0.1)


def test_short_or_lopsided_texts_give_no_error_of_a_ratio() -> None:
    one, start = torch.ones(5 * STRETCH).double(), np.array([0])
    assert ratio_error(one[1:], one[1:], start) is None
    assert ratio_error(one, one, start) == 0
    assert ratio_error(one, 0 * one, start) is None
    alone = torch.zeros(5 * STRETCH).double()
    alone[3] = 1.0
    assert ratio_error(one, alone, start) is None
