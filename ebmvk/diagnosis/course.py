"""The course of a run: its energy per epoch, and whether it has converged."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from ebmvk.diagnosis.subject import Absent, Row, Subject
from ebmvk.diagnosis.verdict import TEST, Values, verdict
from ebmvk.runs.metrics import METRICS_FILE, History

EPOCHS = 24  # in the table at most: of more, those at even distances
SPIKE = 6.0  # robust standard deviations above a neighbourhood
NEIGHBOURHOOD = 25  # steps


def convergence(subject: Subject) -> Row | Absent:
    """Verdicts on training and validation energies; together, validation's where that is diverging."""
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
    """Energy E(v|c) of the true tokens by epoch, its spread between steps, and how steady the run was."""
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
    """Steps and the passes over the training text at them, to interpolate between: a resumed run may have had another
    batch size. The last is one pass beyond the last step."""
    starts = [(row["step"], row["steps_per_epoch"]) for row in history.starts] or [(0, history.step)]
    steps, lengths = zip(*starts, strict=True)
    at = np.array([0, *steps[1:], max(history.step, steps[-1]) + max(1, lengths[-1])], dtype=np.float64)
    return at, np.concatenate([[0.0], np.cumsum(np.diff(at) / np.maximum(1, lengths))])


def epochs(history: History) -> list[Row]:
    """Of each pass over the training text: steps, mean energy in nats, standard deviation between steps, change per
    100 steps within it (least squares), and the last validation in it."""
    at, done = passes(history)
    last = math.ceil(done[-1] - 1e-9) - 2
    chosen = sorted({round(float(i)) for i in np.linspace(0, last, min(EPOCHS, last + 1))})
    found = []
    for number in chosen:
        low, high = (round(float(step)) for step in np.interp((number, number + 1), done, at))
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
            "of": high - low,
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
