"""The course of a run: its energy per epoch, and whether it has converged."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.diagnosis.verdict import TEST, Values, verdict
from ebmvk.report.charts import Curve, Lines
from ebmvk.report.section import Absent, Picture, Section, Shown
from ebmvk.report.series import smooth, thin
from ebmvk.report.tables import DASH, Table, number, percent
from ebmvk.runs.metrics import METRICS_FILE, History

EPOCHS = 24  # most rows of the table; with more epochs, evenly spaced ones are shown
SPIKE = 6.0  # a spike lies this many robust standard deviations above its neighbourhood
NEIGHBOURHOOD = 25  # steps


def convergence(subject: Subject) -> Row | Absent:
    """Verdicts on the energies of training and validation. The overall verdict is training's. It is
    validation's if validation is diverging, or if only training is undecided."""
    history = subject.history
    if not history.steps:
        return Absent(f"the run folder has no {METRICS_FILE} with training steps")
    training = verdict([row["parts"]["ce"] for row in history.steps])
    validation = verdict([row["validation"]["nats_per_token"] for row in history.evals])
    word, reason = training.word, f"training energy {training.reason}"
    if validation.word == "diverging" or (word == "undecided" and validation.word != "undecided"):
        word, reason = validation.word, f"validation energy {validation.reason}"
    parts = {"training": asdict(training), "validation": asdict(validation)}
    return {"verdict": word, "reason": reason, "test": TEST, "steps": len(history.steps), **parts}


def energy(subject: Subject) -> Row | Absent:
    """Energy E(v|c) of the true tokens by epoch; spikes; norms of the gradient."""
    history = subject.history
    if not history.steps:
        return Absent(f"the run folder has no {METRICS_FILE} with training steps")
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


def passes(history: History) -> tuple[Values, Values]:
    """Some steps and, for each, the number of passes over the training text so far. Values between
    them can be interpolated. There are several steps because a resumed run may have changed its
    batch size. The last step lies one pass beyond the end of the run."""
    starts = [(row["step"], row["steps_per_epoch"]) for row in history.starts] or [(0, history.step)]
    steps, lengths = zip(*starts, strict=True)
    at = np.array([0, *steps[1:], max(history.step, steps[-1]) + max(1, lengths[-1])], dtype=np.float64)
    return at, np.concatenate([[0.0], np.cumsum(np.diff(at) / np.maximum(1, lengths))])


def epochs(history: History) -> list[Row]:
    """A row for each pass over the training text: steps, mean energy in nats, standard deviation
    between steps, change per 100 steps within the pass (least squares), and the pass's last
    validation."""
    at, done = passes(history)
    last = math.ceil(done[-1] - 1e-9) - 2
    chosen = sorted({round(float(i)) for i in np.linspace(0, last, min(EPOCHS, last + 1))})
    found = []
    for place in chosen:
        low, high = (round(float(step)) for step in np.interp((place, place + 1), done, at))
        rows = [row for row in history.steps if low < row["step"] <= high]
        if not rows:
            continue
        y = np.array([row["parts"]["ce"] for row in rows])
        x = np.array([row["step"] for row in rows], dtype=np.float64)
        slope = float(np.polyfit(x - x.mean(), y, 1)[0]) if len(rows) > 2 else 0.0
        seen = [row["validation"]["nats_per_token"] for row in history.evals if low < row["step"] <= high]
        found.append({
            "epoch": place + 1,
            "steps": len(rows),
            "of": high - low,
            "energy": float(y.mean()),
            "deviation": float(y.std()),
            "per_100_steps": 100 * slope,
            "validation": seen[-1] if seen else None,
        })  # fmt: skip
    return found


def spikes(y: Values) -> int:
    """The number of values that lie more than six robust standard deviations above the moving
    median."""
    if len(y) < NEIGHBOURHOOD:
        return 0
    half = NEIGHBOURHOOD // 2
    around = np.lib.stride_tricks.sliding_window_view(np.pad(y, half, mode="reflect"), NEIGHBOURHOOD)
    above = y - np.median(around, axis=1)
    scale = 1.4826 * float(np.median(np.abs(above)))
    return int((above > SPIKE * max(scale, 1e-12)).sum())


# ---- on the page ---------------------------------------------------------------------------------


def show_convergence(found: Row) -> Shown:
    """The table behind the verdict."""
    rows = [
        (
            name, own["word"], f"{own['n']}", number(own["change"], "+.4f"),
            DASH if own["p"] is None else f"{number(own['low'], '+.4f')} to {number(own['high'], '+.4f')}",
            number(own["p"], ".2g"),
            percent(own["fallen"], 0),
        )
        for name, own in ((name, found[name]) for name in ("training", "validation"))
    ]  # fmt: skip
    head = ("energy of", "verdict", "means tested", "change, nats", "95 % interval", "p-value", "fallen since start")
    note = f"Does the energy still change in the second half of the run? The test: {found['test']}."
    return Shown(note, tables=[Table(head, rows)])


def show_energy(found: Row) -> Shown:
    """Energy by epoch. found: what `energy` measured, with the record's `curves`."""
    latent = "" if found["langevin"] is None else f" Langevin chains end at energy {number(found['langevin'], '.3f')}."
    note = (
        f"Mean energy E(v|c) = −log p(v|c) of the true next tokens, in nats. {found['spikes']} of {found['steps']:,} "
        "steps spike (more than six robust standard deviations above their neighbours). Norm of the gradient: median "
        f"{number(found['grad_norm_median'], '.3g')}, 99 % of steps below {number(found['grad_norm_99'], '.3g')}."
        f"{latent}"
    )
    rows = [
        (
            f"{own['epoch']}", f"{own['steps']:,} of {own['of']:,}", number(own["energy"]), number(own["deviation"]),
            number(own["per_100_steps"], "+.4f"), number(own["validation"]),
        )
        for own in found["epochs"]
    ]  # fmt: skip
    head = ("epoch", "steps", "mean", "± between steps", "change per 100 steps", "validation at its end")
    return Shown(note, tables=[Table(head, rows)], pictures=[_course(found["curves"])])


def _course(curves: Row) -> Picture:
    x, y = ([point[i] for point in curves["training"]] for i in (0, 1))
    drawn = [Curve("each step", *thin(x, y), faint=True), Curve("training, smoothed", *thin(x, smooth(y)))]
    if curves["validation"]:
        at, nats = ([point[i] for point in curves["validation"]] for i in (0, 1))
        drawn.append(Curve("validation", at, nats, dots=True, colour=1))
    note = "The verdict is about these curves. Faint curves show every step."
    return Picture("Energy of the true tokens", note, Lines(drawn, ylabel="nats"))


SECTIONS: tuple[Section[Subject, Row], ...] = (
    Section("convergence", "Convergence", convergence, show_convergence),
    Section("energy", "Energy per epoch", energy, show_energy, also=("curves",)),
)
