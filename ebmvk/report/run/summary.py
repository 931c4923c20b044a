"""What matters most: what was trained, how good it is, what is wrong, what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from ebmvk.report.run.source import Run
from ebmvk.report.section import Banner, Section, Shown, State, Tile
from ebmvk.report.tables import Table, duration, number, per_word, percent
from ebmvk.report.trigram import Verdict, against_trigram, verdict
from ebmvk.runs.metrics import History, Row


def lead(run: Run) -> str:
    """One line: model, size, text, machine and how far training got."""
    history, model = run.history, run.config.get("model", {}).get("model")
    words = [f"--model {model}" if model else "", status(history)]
    if facts := history.facts:
        size = f"{number(facts['parameters'] / 1e6, '.2f')} M parameters"
        words[1:1] = [size, f"trained on {facts['corpus']['name']}"]
    return " · ".join(filter(None, words))


def status(history: History) -> str:
    """Finished, or where the run stopped."""
    total = history.facts.get("steps", 0)
    return f"finished, {history.step:,} steps" if history.end else f"stopped at step {history.step:,} of {total:,}"


def _result(run: Run) -> Shown:
    return Shown(banners=list(_against_trigram(run.history)), tiles=list(tiles(run)))


def _against_trigram(history: History) -> Iterator[Banner]:
    if not history.end:
        return
    own, base = history.end["validation"], history.end["trigram"]
    words: dict[Verdict, tuple[str, State]] = {
        "better": ("Better than the trigram", "good"),
        "worse": ("Worse than the trigram", "bad"),
        "too short": ("Too short to compare", "doubt"),
    }
    word, state = words[verdict(own, base)]
    said = against_trigram(own, base)
    yield Banner(word, f"{said[0].upper()}{said[1:]}.", state=state)


def tiles(run: Run) -> Iterator[Tile]:
    """The few figures that matter most."""
    history, found = run.history, run.last_validation
    if found:
        yield Tile(number(found["bits_per_byte"], ".3f"), "bits per byte", _where(history))
        yield Tile(number(found["ppl_token"], ",.1f"), "perplexity per token", f"{found['tokens']:,} tokens, exact")
        if (word := per_word(found)) is not None:
            yield Tile(number(word, ",.1f"), "perplexity per word", f"{found['words']:,} words")
    if history.facts:
        size = f"{number(history.facts['parameters'] / 1e6, '.2f')} M"
        yield Tile(size, "parameters", f"vocabulary of {history.facts['vocabulary']:,} tokens")
    if history.steps:
        seconds = sum(row["seconds"] for row in history.steps)
        tokens = history.steps[-1]["tokens"]
        rate = number(tokens / max(seconds, 1e-9), ",.0f")
        yield Tile(duration(seconds), "training", f"{tokens:,} tokens, {rate} per second")


def _where(history: History) -> str:
    """Which text the first figure is for, and how it compares."""
    if not history.end:
        return "part of validation"
    if verdict(history.end["validation"], history.end["trigram"]) == "too short":
        return "all of validation"
    own, base = (history.end[name]["bits_per_byte"] for name in ("validation", "trigram"))
    change = 1 - own / base
    return f"{percent(abs(change))} {'below' if change >= 0 else 'above'} the trigram's {number(base, '.3f')}"


def _alerts(found: list[Row]) -> Shown:
    rows = [
        (f"step {alert['step']:,}: {alert['sign']}", alert["reason"], f"{alert['advice']}")
        for alert in found
    ]  # fmt: skip
    note = "Signs of trouble that training noticed, each the first time it appeared."
    return Shown(note, tables=[Table(("what", "what was seen", "what to do"), rows, words=True, prose=True)])


def _next(run: Run) -> list[str]:
    """Advice from the end of training, then commands to go on with."""
    history, path = run.history, run.path
    if not history.end:
        return [f"Go on with training: `python -m ebmvk.train --resume --run-dir {path}`"]
    return [
        *(history.end.get("advice") or _longer(run)),
        f"See what is fine and what to change: `python -m ebmvk.diagnose --checkpoint {path} --report`",
        f"Let it write: `python -m ebmvk.generate --checkpoint {path} --max-tokens 100`",
    ]


def _longer(run: Run) -> Iterator[str]:
    """What to do if the trigram is better and training itself had no advice."""
    end = run.history.end
    if end and verdict(end["validation"], end["trigram"]) == "worse":
        command = f"`python -m ebmvk.train --resume --run-dir {run.path} --steps {2 * end['step']}`"
        yield f"The model has not caught up with the trigram; train longer: {command}"


RESULT: Section[Run, Run] = Section("result", "", lambda run: run, _result)
ALERTS: Section[Run, list[Row]] = Section("alerts", "Alerts", lambda run: run.history.alerts or None, _alerts)
NEXT: Section[Run, list[str]] = Section("next", "What to do next", _next, lambda lines: Shown(points=lines))
SECTIONS = (RESULT, ALERTS, NEXT)
