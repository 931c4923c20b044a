"""Memory: what the gate lets through, and what it is worth in nats, paired by token with the model without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebmvk.diagnosis.subject import Absent, Row, Subject
from ebmvk.evaluation.intervals import paired
from ebmvk.memory.files import load
from ebmvk.memory.fit import Fit
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.memory.law import TIERS, Law, Mode, log_probs
from ebmvk.memory.static import Reading
from ebmvk.memory.while_training import nats_calibrated, nats_with
from ebmvk.model.infinito import ExternalMemory, Infinito
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.splats.health import quantiles

SHARES = (0.05, 0.5, 0.95)  # of the quantiles that are told


def memory(subject: Subject) -> Row | Absent:
    """Of `ebmvk memory`, if the checkpoint has one; else what the splats of training are worth as a static memory."""
    folder = subject.run.checkpoint.path
    if (folder / MEMORY_FILE).is_file():
        return _fitted(subject)
    if subject.store is None:
        return Absent("the checkpoint has no memory: `ebmvk memory --checkpoint RUN` gives it one")
    fit = _fit(subject)
    nats = {"without": nats_with(None, fit), "calibrated": nats_calibrated(fit), "with": nats_with(subject.store, fit)}
    return {"of": "splats of training", "tokens": len(fit.tokens) // 2, **nats}


def _fit(subject: Subject) -> Fit:
    part = subject.text.validation.take(subject.sizes.remembered + 1)
    return Fit(
        subject.model, part, reading=Reading.evaluation(subject.run.config.data.seq_length), device=subject.device
    )


def _fitted(subject: Subject) -> Row:
    """Each mode that the memory has, on the beginning of validation, and whether that is what its gates were fitted
    on."""
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
    """The gains of each law that has a memory, and of the calibrated law over the plain model."""
    without = {"none", base}
    return {law: paired(own, nats[base], starts).record() for law, own in nats.items() if law not in without}


@torch.no_grad()
def external(subject: Subject) -> Row | Absent:
    """infinito's memory: how strongly tokens write, and what the likelihood loses without it."""
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
    """The model with its memory taken out."""
    own, model.memory = model.memory, None
    try:
        yield
    finally:
        model.memory = own
