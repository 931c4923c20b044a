"""Memory: how much the gate lets through, and what it gains over the model without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebmvk.data.ngram import perplexity
from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.evaluation.intervals import basis, paired
from ebmvk.memory.files import load
from ebmvk.memory.fit import Fit
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.memory.law import TIERS, Law, Mode, log_probs
from ebmvk.memory.static import Reading
from ebmvk.memory.while_training import nats_calibrated, nats_with
from ebmvk.model.infinito import ExternalMemory, Infinito
from ebmvk.report.section import Absent, Section, Shown
from ebmvk.report.tables import DASH, Table, interval, number, percent
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.splats.health import quantiles

SHARES = (0.05, 0.5, 0.95)  # quantiles in the record
OF_TRAINING = "splats of training"  # tried if the checkpoint has no memory file


def memory(subject: Subject) -> Row | Absent:
    """The memory that `ebmvk memory` built; without one, training's splats as a static memory."""
    folder = subject.run.checkpoint.path
    if (folder / MEMORY_FILE).is_file():
        return _fitted(subject)
    if subject.store is None:
        return Absent("the checkpoint has no memory; `ebmvk memory --checkpoint RUN` builds one")
    fit = _fit(subject)
    nats = {"without": nats_with(None, fit), "calibrated": nats_calibrated(fit), "with": nats_with(subject.store, fit)}
    return {"of": OF_TRAINING, "tokens": len(fit.tokens) // 2, **nats}


def _fit(subject: Subject) -> Fit:
    part = subject.text.validation.take(subject.sizes.remembered + 1)
    return Fit(
        subject.model, part, reading=Reading.evaluation(subject.run.config.data.seq_length), device=subject.device
    )


def _fitted(subject: Subject) -> Row:
    """Measure each mode of the memory on the start of validation; record if its gates saw that
    text."""
    found = load(subject.run.checkpoint.path, subject.run.model, "episodic")
    fitted_on = FittedOn.read(subject.run.checkpoint.path / MEMORY_FILE)
    mode: Mode = "episodic" if found.static is None else "both"
    fit = _fit(subject)
    starts = subject.text.validation.take(subject.sizes.remembered + 1).starts
    terms = fit.terms(found, mode)
    nats = {name: -log_p for name, log_p in log_probs(terms, found.gates, mode).items()}
    gates = found.gates[mode].log_weights(terms.features).exp()
    return {
        "of": MEMORY_FILE,
        "tokens": len(fit.tokens),
        "fitted_on": None if fitted_on is None else dataclasses.asdict(fitted_on),
        "in_sample_tokens": None if fitted_on is None else fitted_on.among(subject.text.validation, len(fit.tokens)),
        "nats_per_token": {name: float(own.mean()) for name, own in nats.items()},
        "gains": _gains(nats, "none", starts),
        "gains_over_calibrated": _gains(nats, "calibrated", starts) if "calibrated" in nats else {},
        "signs": [alert.record() for alert in fit.signs(found)],
        "gate": {
            name: {"mean": float(column.mean()), "quantiles": quantiles(column, SHARES)}
            for name, column in zip(("model", *TIERS[mode]), gates.T, strict=True)
        },
        "splats": 0 if found.static is None else found.static.n,
    }


def _gains(nats: Mapping[Law, Tensor], base: Law, starts: npt.NDArray[np.int64]) -> dict[str, Row]:
    """Gains over `base` of the laws with a memory, and of `calibrated` if `base` is "none"."""
    without = {"none", base}
    return {law: paired(own, nats[base], starts).record() for law, own in nats.items() if law not in without}


@torch.no_grad()
def external(subject: Subject) -> Row | Absent:
    """infinito's memory: how strongly tokens write to it, and what the model loses without it."""
    model = subject.model
    if not isinstance(model, Infinito) or model.memory is None:
        return Absent("only --model infinito has an external memory")
    stream = subject.validation
    strength: list[Tensor] = []
    hook = model.memory.register_forward_pre_hook(lambda own, args: strength.append(_strength(own, args[0])))
    try:
        nats = subject.nats_of(stream)
    finally:
        hook.remove()
    with _without(model):
        base = subject.nats_of(stream)
    written = torch.cat(strength)
    return {
        "slots": len(model.memory.addresses),
        "threshold": float(model.memory.threshold),
        "strength": {"mean": float(written.mean()), "quantiles": quantiles(written, SHARES)},
        "gain": paired(nats, base, stream.starts).record(),
        "tokens": len(nats),
    }


def _strength(own: torch.nn.Module, x: Tensor) -> Tensor:
    assert isinstance(own, ExternalMemory)
    return own.strength(x).flatten().float().cpu()


@contextmanager
def _without(model: Infinito) -> Iterator[None]:
    """A block in which the model has no memory."""
    own, model.memory = model.memory, None
    try:
        yield
    finally:
        model.memory = own


# ---- on the page ---------------------------------------------------------------------------------


def show(found: Row) -> Shown:
    """What the memory gains, and how much the gate lets through."""
    return _show_trained(found) if found["of"] == OF_TRAINING else _show_fitted(found)


def _show_trained(found: Row) -> Shown:
    note = (
        "The checkpoint has no memory file, so this tries training's splats as a static memory. Its gate was fitted on "
        f"one half of {2 * found['tokens']:,} validation tokens and measured on the other. Calibrated: without memory, "
        "the model's probabilities made flatter or sharper by a gate that was fitted in the same way. A memory is "
        "worth what it gains over that."
    )
    rows = [(name, number(found[name])) for name in ("without", "calibrated", "with") if name in found]
    return Shown(note, tables=[Table(("memory", "nats / token"), rows)])


def _show_fitted(found: Row) -> Shown:
    rows = [
        (law, number(nats), number(perplexity(nats), ",.1f"), _gain(found["gains"], law),
         _gain(found.get("gains_over_calibrated", {}), law))
        for law, nats in found["nats_per_token"].items()
    ]  # fmt: skip
    gates = [
        (name, percent(own["mean"]), *(percent(value) for value in own["quantiles"]))
        for name, own in found["gate"].items()
    ]
    note = (
        f"A memory with {found['splats']:,} static splats, on the first {found['tokens']:,} tokens of validation. "
        "Below zero, a tier makes the model better; its probabilities include the model's own. Intervals (95 %): "
        f"{basis(next(iter(found['gains'].values())))}. {_calibration(found)} {_in_sample(found)}"
    )
    tables = [
        Table(("memory", "nats / token", "perplexity", "against none", "against calibrated"), rows),
        Table(("share that the gate gives", "mean", "5 %", "median", "95 %"), gates),
    ]
    return Shown(note, tables=tables)


def _gain(gains: Row, law: str) -> str:
    return interval(gains[law]) if law in gains else DASH


def _calibration(found: Row) -> str:
    if "calibrated" in found["nats_per_token"]:
        return (
            "Calibrated: without memory, the model's probabilities made flatter or sharper by a gate that was fitted "
            "on the same tokens. A memory is worth what it gains over that."
        )
    return (
        "An earlier version wrote the memory's file, without a calibration: a part of the gain may come from "
        "making the model's own probabilities flatter."
    )


def _in_sample(found: Row) -> str:
    fitted_on, here = found["fitted_on"], found["in_sample_tokens"]
    flatter = "these figures are in sample and flatter the memory. Build it with --fit-on training to avoid that."
    if fitted_on is None:
        return f"The earlier version didn't record what the gates were fitted on. If it was validation, {flatter}"
    text = f"Gates were fitted on {fitted_on['tokens']:,} tokens of {fitted_on['text']}"
    return f"{text}, {here:,} of them measured here: {flatter}" if here else f"{text}, none of them measured here."


def show_external(found: Row) -> Shown:
    """What infinito's memory gains."""
    low, middle, high = (number(value, ".3f") for value in found["strength"]["quantiles"])
    note = (
        f"A memory inside the network, with {found['slots']} slots. Tokens write to it with a mean strength of "
        f"{number(found['strength']['mean'], '.3f')} (5 % {low}, median {middle}, 95 % {high}); the threshold is "
        f"{number(found['threshold'], '.3f')}. Below zero, the memory makes the model better."
    )
    rows = [("with the memory, against the model without it", f"{interval(found['gain'])}, {basis(found['gain'])}")]
    return Shown(note, tables=[Table(("", "nats / token (95 %)"), rows)])


SECTIONS: tuple[Section[Subject, Row], ...] = (
    Section("memory", "Memory and its gate", memory, show),
    Section("external", "External memory", external, show_external),
)
