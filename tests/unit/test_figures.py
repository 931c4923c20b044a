"""How figures are written: one way for pages and terminal, and nothing absurd whatever the value is."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ebmvk.cli.compare_decoding import _lines as decoding_lines
from ebmvk.cli.sweep import _lines as sweep_lines
from ebmvk.monitoring.display import figures
from ebmvk.report.diagnosis_sections import SECTIONS
from ebmvk.report.overview import lines
from ebmvk.report.page import render
from ebmvk.report.plots import SERIES, Curve, heat_maps, is_course, line_plot
from ebmvk.report.run_page import _levels, _plots, _remarks, _tiles
from ebmvk.report.tables import against_trigram, below, interval, number, per_word, percent, why_no_word
from ebmvk.runs.metrics import History
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
def test_a_figure_is_written_for_people(value: float | None, form: str, text: str) -> None:
    assert number(value, form) == text


def test_a_share_has_the_same_rules() -> None:
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


def _row(nats: float, **other: Any) -> dict[str, Any]:
    found = {"tokens": 1000, "words": 700, "bytes": 4000, "context": 64, "stride": 64, "seconds": 1.0} | other
    bits = nats * found["tokens"] / math.log(2) / found["bytes"]
    words = math.exp(nats * found["tokens"] / found["words"]) if found["words"] else None
    return found | {"nats_per_token": nats, "ppl_token": math.exp(nats), "ppl_word": words, "bits_per_byte": bits}


def _history(**values: Any) -> History:
    """A run of two evaluations that has ended."""
    rows = [
        {"event": "eval", "step": step, "validation": values["own"], "score_matching": [SETTLED, PLAIN]}
        for step in (200, 400)
    ]
    steps = [
        {"event": "step", "step": 400, "loss": 1.0, "parts": {"ce": 1.0}, "grad_norm": 1.0, "seconds": 1.0, "tokens": 9}
    ]
    end = {"event": "end", "step": 400, "validation": values["own"], "trigram": values["base"], "looks": None}
    return History(steps=steps, evals=rows, end=end)


def test_the_run_report_shows_no_ratio_to_zero_either() -> None:
    history = _history(own=_row(3.0), base=_row(2.0))
    page = render(
        "report.html.j2", name="run", history=history, status="finished", tiles=list(_tiles(history)), plots=[],
        figures=[], remarks=[], levels=_levels(history), settled="", dispatched=False, attention=None, experts=[],
        advice=[],
        shown=str, samples="", config={}, facts=[],
    )  # fmt: skip
    assert "20.0 % ± 2.0" in page
    assert "12941590" not in page
    table = SECTIONS["denoising"]({"levels": [SETTLED, PLAIN]}).tables[0]
    assert [row[-1] for row in table.rows] == ["–", "20.0 % ± 2.0"]


# ---- words ---------------------------------------------------------------------------------------------------------


def test_perplexity_per_word_is_shown_where_words_are_units_of_the_text() -> None:
    assert per_word(_row(3.0)) == pytest.approx(math.exp(3.0 / 0.7))
    characters = _row(2.0, words=180)
    assert per_word(characters) is None
    assert "5.6 tokens per word" in why_no_word(characters)
    assert per_word(_row(2.0, words=0)) is None
    assert why_no_word(_row(2.0, words=0)) == "the text has no words"


def test_code_has_no_tile_per_word_but_a_line_that_says_why() -> None:
    history = _history(own=_row(5.0, words=200), base=_row(4.0, words=200))
    assert [name for _, name, _ in _tiles(history)] == ["bits per byte", "perplexity per token", "training"]
    assert [title for title, _, _ in _plots(history) if "word" in title] == []
    assert "5.0 tokens per word" in list(_remarks(history))[1]
    assert max(len(value) for value, _, _ in _tiles(_history(own=_row(40.0), base=_row(4.0)))) <= 10


# ---- comparisons ---------------------------------------------------------------------------------------------------


def test_a_model_that_the_trigram_beats_is_told_so() -> None:
    worse = against_trigram(_row(3.0), _row(2.5))
    assert worse.startswith("the trigram on the same tokens is better")
    assert against_trigram(_row(2.5), _row(3.0)).startswith("the model is better than the trigram")
    assert worse[0].upper() + worse[1:] + "." in list(_remarks(_history(own=_row(3.0), base=_row(2.5))))


def test_a_trigram_on_more_tokens_is_no_line_beside_a_part() -> None:
    same, other = _row(3.0), _row(2.5, tokens=5000)
    drawn = {title: svg for title, _, svg in _plots(_history(own=same, base=_row(2.5)))}
    assert ">trigram<" in drawn["Perplexity per token"]
    drawn = {title: svg for title, _, svg in _plots(_history(own=same, base=other))}
    assert ">trigram<" not in drawn["Perplexity per token"]


def test_an_interval_that_could_not_be_taken_is_said_so() -> None:
    assert interval({"nats_per_token": -0.1, "low": -0.2, "high": 0.05}) == "−0.1000 (−0.2000 to +0.0500)"
    assert interval({"nats_per_token": -0.1, "low": None, "high": None}) == "−0.1000 (no interval)"


@pytest.mark.parametrize(("train", "words"), [(3.0, "costs 0.5000 more"), (4.0, "costs 0.5000 less")])
def test_validation_costs_more_or_less_and_never_minus_more(train: float, words: str) -> None:
    own = _row(3.5) | {"nats": 3500.0}
    found = {"validation": own, "training": {"nats_per_token": train, "tokens": 9}, "whole_split": True, "buckets": []}
    assert words in SECTIONS["likelihood"](found).note


def test_a_growth_is_told_in_words() -> None:
    found: dict[str, Any] = dict.fromkeys(("created", "split", "merged", "pruned"), 0)
    found |= {"splats": 281, "capacity": 300, "phi": 0.012, "threshold": 0.2}
    growth = {"phase": 2, "accepted": False, "before": 1.0, "after": 1.0014}
    said = consolidated(found | {"growth": growth})
    assert said.endswith("; growth to phase 2 refused: 0.0014 nats per token worse on validation with it")
    assert consolidated(found | {"growth": None}).endswith("; no event")
    assert consolidated(found | {"growth": None, "created": 3, "merged": 1}).endswith("; 3 created, 1 merged")


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_steps_are_drawn_from_the_beginning_and_a_single_dot_not_at_all() -> None:
    curve = Curve("one", [200.0, 400.0, 600.0], [1.0, 2.0, 3.0])
    assert ">0<" in line_plot("late", [curve], ylabel="y")
    assert not is_course([Curve("dot", [200.0], [1.0]), Curve("other", [200.0], [2.0])])
    assert is_course([curve])
    assert "Perplexity per token" not in [title for title, _, _ in _plots(_one_evaluation())]


def test_the_temperature_is_drawn_though_a_resume_left_samples_away() -> None:
    history = _history(own=_row(3.0), base=_row(2.0))
    sampled = {"langevin": {"kinetic_temperature": 0.9, "temperature": 0.8}}
    history.evals[:] = [history.evals[0] | sampled | {"step": step} for step in (100, 200)] + history.evals[1:]
    titles = [title for title, _, _ in _plots(history)]
    assert "Langevin temperature" in titles


def _one_evaluation() -> History:
    history = _history(own=_row(3.0), base=_row(2.5))
    del history.evals[1:]
    return history


def test_lines_that_share_a_picture_differ() -> None:
    assert len(set(SERIES)) == len(SERIES) >= 7  # levels of noise have seven
    curves = [Curve(f"{i}", [0.0, 1.0], [float(i), i + 1.0], colour=i) for i in range(2 * len(SERIES))]
    svg = line_plot("many", curves, ylabel="y")
    assert svg.count("stroke-dasharray") > len(SERIES)  # in the picture and its legend


def test_heads_are_shown_with_their_tokens_in_rows_that_fit() -> None:
    weights = [[[1.0, 0.0], [0.5, 0.5]]] * 14
    svg = heat_maps("maps", [("layer", weights)], [["1 nat"] * 14], ["The", "$x"])
    assert "1 The  2 $x" in svg
    assert svg.count(">layer<") == 3  # six, six and two beside each other


# ---- the terminal --------------------------------------------------------------------------------------------------


def test_a_diagnosis_has_its_verdict_first_and_last() -> None:
    course = {"word": "diverging", "n": 9, "change": 1.0, "low": None, "high": None, "p": None, "fallen": NAN}
    convergence = {"verdict": "diverging", "reason": "rising", "test": "t", "training": course, "validation": course}
    record: dict[str, Any] = {
        "checkpoint": "run", "model": "ebm", "corpus": "text", "parameters": 9, "absent": {},
        "known_faults": [],
        "sections": {"convergence": convergence, "recommendations": ["take --lr 1"]},
    }  # fmt: skip
    told = "\n".join(lines(record)).splitlines()
    assert told[0] == told[-1] == "Verdict: diverging, rising"
    assert "nan" not in "\n".join(told)


def test_tables_of_sweeps_and_decoding_write_figures_the_same_way() -> None:
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
