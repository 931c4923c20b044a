"""Pages and terminal write figures in one way, and no value gives an absurd figure."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from ebmvk.cli.compare_decoding import _lines as decoding_lines
from ebmvk.cli.sweep import _lines as sweep_lines
from ebmvk.diagnosis import chains, likelihood
from ebmvk.diagnosis.overview import lines
from ebmvk.monitoring.display import figures
from ebmvk.report import run_page
from ebmvk.report.charts import COLOURS, Curve, Heads, Lines, is_course
from ebmvk.report.drawing import draw
from ebmvk.report.run.curves import pictures
from ebmvk.report.run.likelihood import remarks
from ebmvk.report.run.source import Run
from ebmvk.report.run.summary import tiles
from ebmvk.report.section import Picture
from ebmvk.report.tables import below, interval, number, per_word, percent, why_no_word
from ebmvk.report.trigram import against_trigram
from ebmvk.runs.metrics import History
from ebmvk.sweeps.experiments import _verdict
from ebmvk.training.lines import consolidated

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".4f", "–"),
        (NAN, ".4f", "–"),
        (NAN, "+.4f", "–"),
        (INF, ",.2f", "∞"),
        (-INF, ".4f", "−∞"),
        (INF, "+.1f", "+∞"),
        (1.5, ".4f", "1.5000"),
        (-1.5, "+.4f", "−1.5000"),
        (-0.0, ".4f", "0.0000"),
        (-0.00001, ".4f", "0.0000"),
        (-0.00001, "+.4f", "+0.0000"),
        (-0.4, ",.0f", "0"),
        (550358538.04, ",.2f", "5.50e8"),
        (-12941590534.3, ".1f", "−1.29e10"),
        (999_999.4, ",.1f", "999,999.4"),
        (1e6, "+,.1f", "+1.00e6"),
        (math.exp(700), ",.2f", "> 1e300"),
        (-1e301, ".2f", "< −1e300"),
        (12_345_678, ",d", "12,345,678"),
        (3e-12, ".2g", "3e-12"),
        (0.153, ".1%", "15.3%"),
        (-0.0, ".1%", "0.0%"),
    ],
)
def test_figures_are_written_for_people(value: float | None, form: str, text: str) -> None:
    assert number(value, form) == text


def test_percentages_follow_the_same_rules() -> None:
    told = [percent(None), percent(NAN), percent(-0.00001), percent(0.1234), percent(-129415905.343)]
    assert told == ["–", "–", "0.0 %", "12.3 %", "−1.29e10 %"]
    assert percent(0.5, 0) == "50 %"


SETTLED: dict[str, Any] = {
    "name": "", "kappa": 9.0, "angle": 5.0, "sigma": 0.1, "tokens": 512, "loss": 1e-3, "explained": 0.999,
    "unigram_loss": 7.7e-12, "ratio": 129415906.343, "error": 164936918.15,
}  # fmt: skip
PLAIN = SETTLED | {"unigram_loss": 0.5, "ratio": 0.8, "error": 0.02}


def test_a_ratio_to_an_error_of_zero_is_a_dash() -> None:
    assert below(SETTLED) == below(SETTLED | {"ratio": None}) == "–"
    assert below(PLAIN) == "20.0 % ± 2.0"
    assert below(PLAIN | {"ratio": 1.25}) == "−25.0 % ± 2.0"
    assert below(PLAIN | {"error": None}) == "20.0 %"


def _row(nats: float, **other: Any) -> dict[str, Any]:
    found = {"tokens": 1000, "words": 700, "bytes": 4000, "context": 64, "stride": 64, "seconds": 1.0} | other
    bits = nats * found["tokens"] / math.log(2) / found["bytes"]
    words = math.exp(nats * found["tokens"] / found["words"]) if found["words"] else None
    return found | {"nats_per_token": nats, "ppl_token": math.exp(nats), "ppl_word": words, "bits_per_byte": bits}


def _run(history: History) -> Run:
    return Run(Path("run"), history, "", {"run": {"size": "nano"}})


def _history(**values: Any) -> History:
    """A run with two evaluations that has ended."""
    rows = [
        {"event": "eval", "step": step, "validation": values["own"], "score_matching": [SETTLED, PLAIN]}
        for step in (200, 400)
    ]
    steps = [
        {"event": "step", "step": 400, "loss": 1.0, "parts": {"ce": 1.0}, "grad_norm": 1.0, "seconds": 1.0, "tokens": 9}
    ]
    end = {"event": "end", "step": 400, "validation": values["own"], "trigram": values["base"], "looks": None}
    return History(steps=steps, evals=rows, end=end)


def test_neither_report_shows_a_ratio_to_zero() -> None:
    page = run_page.page(_run(_history(own=_row(3.0), base=_row(2.0))))
    assert "20.0 % ± 2.0" in page
    assert "12941590" not in page
    (table,) = chains.show_denoising({"levels": [SETTLED, PLAIN]}).tables
    assert [row[-1] for row in table.rows] == ["–", "20.0 % ± 2.0"]


# ---- words ---------------------------------------------------------------------------------------


def test_perplexity_per_word_needs_words_of_few_tokens() -> None:
    assert per_word(_row(3.0)) == pytest.approx(math.exp(3.0 / 0.7))
    characters = _row(2.0, words=180)
    assert per_word(characters) is None
    assert "5.6 tokens per word" in why_no_word(characters)
    assert per_word(_row(2.0, words=0)) is None
    assert why_no_word(_row(2.0, words=0)) == "the text has no words"


def test_a_text_without_words_gets_no_tile_per_word_and_a_reason() -> None:
    history = _history(own=_row(5.0, words=200), base=_row(4.0, words=200))
    run = _run(history)
    assert [tile.name for tile in tiles(run)] == ["bits per byte", "perplexity per token", "training"]
    assert [picture.title for picture in pictures(history) if "word" in picture.title] == []
    assert "5.0 tokens per word" in list(remarks(run))[1]
    assert max(len(tile.value) for tile in tiles(_run(_history(own=_row(40.0), base=_row(4.0))))) <= 10


# ---- comparisons ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "base", "said", "banner"),
    [
        (2.5, 3.0, "the model beats the trigram: 0.902 bits per byte against 1.082", "Better than the trigram"),
        (3.0, 2.5, "the trigram still beats the model: 0.902 bits per byte against 1.082", "Worse than the trigram"),
    ],
)
def test_the_model_and_the_trigram_are_compared_in_one_way(own: float, base: float, said: str, banner: str) -> None:
    long = {"tokens": 2000, "bytes": 8000}
    assert against_trigram(_row(own, **long), _row(base, **long)) == said
    run = _run(_history(own=_row(own, **long), base=_row(base, **long)))
    sentence = f"{said[0].upper()}{said[1:]}."
    assert sentence in list(remarks(run))
    page = re.sub("<[^>]*>", "", run_page.page(run))
    assert banner in page
    assert page.count(sentence) == 2
    assert ("caught up with the trigram" in page) == (own > base)


@pytest.mark.parametrize(("own", "base"), [(2.5, 3.0), (3.0, 2.5)])
def test_a_short_text_is_not_compared_with_the_trigram(own: float, base: float) -> None:
    short = {"tokens": 3, "words": 2, "bytes": 11}
    said = against_trigram(_row(own, **short), _row(base, **short))
    assert said.endswith("; too short to compare: 3 tokens of validation; give at least 1,280")
    page = re.sub("<[^>]*>", "", run_page.page(_run(_history(own=_row(own, **short), base=_row(base, **short)))))
    assert "too short to compare: 3 tokens of validation; give at least 1,280." in page
    for claim in ("Better than", "Worse than", "beats", "below the trigram", "above the trigram", "caught up"):
        assert claim not in page


def test_a_short_text_gives_a_sweep_no_verdicts() -> None:
    row = {"nats_per_token": 3.0, "train_ppl": 20.0, "validation_tokens": 1279}
    assert _verdict(row, None, 3.0) == "too short to compare: 1,279 tokens of validation; give at least 1,280"
    assert _verdict(row | {"validation_tokens": 1280}, None, 3.0) == "best"


def test_the_trigram_is_drawn_only_if_it_read_the_same_tokens() -> None:
    same, other = _row(3.0), _row(2.5, tokens=5000)
    for base, marks in ((_row(2.5), ["trigram"]), (other, [])):
        chart = _drawn(_history(own=same, base=base))["Perplexity per token"].chart
        assert isinstance(chart, Lines)
        assert list(chart.marks) == marks


def _drawn(history: History) -> dict[str, Picture]:
    return {picture.title: picture for picture in pictures(history)}


def test_a_missing_interval_is_mentioned() -> None:
    assert interval({"nats_per_token": -0.1, "low": -0.2, "high": 0.05}) == "−0.1000 (−0.2000 to +0.0500)"
    assert interval({"nats_per_token": -0.1, "low": None, "high": None}) == "−0.1000 (no interval)"


@pytest.mark.parametrize(("train", "words"), [(3.0, "costs 0.5000 more"), (4.0, "costs 0.5000 less")])
def test_validation_costs_more_or_less_but_never_minus_more(train: float, words: str) -> None:
    own = _row(3.5) | {"nats": 3500.0}
    found = {"validation": own, "training": {"nats_per_token": train, "tokens": 9}, "whole_split": True, "buckets": []}
    assert words in likelihood.show(found).note


def test_the_outcome_of_growth_is_described_in_words() -> None:
    found: dict[str, Any] = dict.fromkeys(("created", "split", "merged", "pruned"), 0)
    found |= {"splats": 281, "capacity": 300, "phi": 0.012, "threshold": 0.2}
    growth = {"phase": 2, "accepted": False, "before": 1.0, "after": 1.0014}
    said = consolidated(found | {"growth": growth})
    assert said.endswith("; growth to phase 2 refused: 0.0014 nats per token worse on validation with it")
    assert consolidated(found | {"growth": None}).endswith("; no event")
    assert consolidated(found | {"growth": None, "created": 3, "merged": 1}).endswith("; 3 created, 1 merged")


# ---- pictures ------------------------------------------------------------------------------------


def test_step_axes_begin_at_zero_and_single_points_are_not_drawn() -> None:
    curve = Curve("one", [200.0, 400.0, 600.0], [1.0, 2.0, 3.0])
    assert ">0<" in draw(Lines([curve], ylabel="y"), "late")
    assert not is_course([Curve("dot", [200.0], [1.0]), Curve("other", [200.0], [2.0])])
    assert is_course([curve])
    assert "Perplexity per token" not in _drawn(_one_evaluation())


def test_the_temperature_is_drawn_even_if_later_evaluations_lack_it() -> None:
    history = _history(own=_row(3.0), base=_row(2.0))
    sampled = {"langevin": {"kinetic_temperature": 0.9, "temperature": 0.8}}
    history.evals[:] = [history.evals[0] | sampled | {"step": step} for step in (100, 200)] + history.evals[1:]
    assert "Langevin temperature" in _drawn(history)


def _one_evaluation() -> History:
    history = _history(own=_row(3.0), base=_row(2.5))
    del history.evals[1:]
    return history


def test_curves_of_one_picture_look_different() -> None:
    assert COLOURS >= 7  # there are seven noise levels
    curves = [Curve(f"{i}", [0.0, 1.0], [float(i), i + 1.0], colour=i) for i in range(2 * COLOURS)]
    svg = draw(Lines(curves, ylabel="y"), "many")
    assert all(f"var(--series-{i + 1})" in svg for i in range(COLOURS))
    assert svg.count("stroke-dasharray") > COLOURS  # in the picture and its legend


def test_attention_maps_come_in_rows_of_six_with_their_tokens() -> None:
    weights = [[[1.0, 0.0], [0.5, 0.5]]] * 14
    svg = draw(Heads([("layer", weights)], [["1 nat"] * 14], ["The", "$x"]), "maps")
    assert "1 The  2 $x" in svg
    assert svg.count(">layer<") == 3  # six, six and two side by side


# ---- the terminal --------------------------------------------------------------------------------


def test_a_diagnosis_begins_and_ends_with_its_verdict() -> None:
    course = {"word": "diverging", "n": 9, "change": 1.0, "low": None, "high": None, "p": None, "fallen": NAN}
    convergence = {"verdict": "diverging", "reason": "rising", "test": "t", "training": course, "validation": course}
    record: dict[str, Any] = {
        "checkpoint": "run", "model": "ebm", "corpus": "text", "parameters": 9, "absent": {},
        "known_faults": [],
        "sections": {"convergence": convergence, "recommendations": ["use --lr 1"]},
    }  # fmt: skip
    told = "\n".join(lines(record)).splitlines()
    assert told[0] == told[-1] == "Verdict: diverging, rising"
    assert "nan" not in "\n".join(told)


def test_tables_of_sweeps_and_decoding_write_figures_like_reports() -> None:
    row = {"experiment": "1", "learning_rate": 1e-4, "ppl": 5.5e8, "train_ppl": NAN, "minutes": -0.0, "values": {}}
    line = sweep_lines([row])[1]
    assert "5.50e8" in line
    assert "nan" not in line
    assert "-0.0" not in line
    decoded = {f"distinct_{n}": None for n in (1, 2, 3)} | {
        "strategy": "human", "repetition_rate": 0.15, "nats_per_token": INF, "perplexity": math.exp(700),
        "tokens_per_second": None, "judge_unit": None,
    }  # fmt: skip
    assert "> 1e300" in list(decoding_lines([decoded]))[1]
    step = {"event": "step", "step": 2, "loss": 4e9, "parts": {"ce": NAN}, "lr": 0.1, "tokens_per_second": INF}
    assert figures(step)["loss"] == "4.00e9 (ce –)"
