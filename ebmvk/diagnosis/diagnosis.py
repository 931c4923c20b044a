"""The sections of a diagnosis, and several checkpoints side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ebmvk.diagnosis import chains, course, likelihood, memory, splats, writing
from ebmvk.diagnosis.recommendations import recommendations
from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.evaluation.intervals import paired
from ebmvk.report.section import Absent, Section
from ebmvk.report.series import thin
from ebmvk.runs.known_faults import known_faults

SECTIONS: tuple[Section[Subject, Row], ...] = (
    *likelihood.SECTIONS,
    *course.SECTIONS,
    *chains.SECTIONS,
    *splats.SECTIONS,
    *memory.SECTIONS,
    *writing.SECTIONS,
)
"""The sections, in the order of the page."""


@dataclass(frozen=True)
class Diagnosis:
    """record: JSON values, without tensors. nats: (n,), the cost of validation's first tokens, to
    pair with that of another checkpoint; tokens: the ids of these tokens, as bytes; starts: where
    their documents begin."""

    record: Row
    nats: Tensor
    tokens: bytes
    starts: npt.NDArray[np.int64]


def diagnose(subject: Subject, say: Callable[[str], None]) -> Diagnosis:
    """Measure every section of one checkpoint; `say` gets a line for each, with the time it took.

    Raises:
        EbmvkError: the checkpoint's memory is damaged, or a result is not finite.
    """
    sections: Row = {}
    absent: dict[str, str] = {}
    began = time.perf_counter()
    for section in SECTIONS:
        start = time.perf_counter()
        found = section.measure(subject)
        if isinstance(found, Absent):
            absent[section.name] = found.why
        elif found is not None:
            sections[section.name] = found
        say(f"  {section.title}: {time.perf_counter() - start:.1f} s")
    sections["recommendations"] = recommendations(subject, sections)
    record = _facts(subject) | {"sections": sections, "absent": absent, "seconds": time.perf_counter() - began}
    return Diagnosis(record, subject.nats, subject.validation.tokens.tobytes(), subject.validation.starts)


def _facts(subject: Subject) -> Row:
    run = subject.run
    return {
        "name": subject.name,
        "checkpoint": str(run.checkpoint.path),
        "folder": str(run.folder),
        "step": run.checkpoint.step,
        "model": subject.kind,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "vocabulary": run.tokenizer.vocab_size,
        "d": run.config.model.latent_dim,
        "corpus": subject.text.name,
        "device": subject.device.reason,
        "seed": subject.seed,
        "sizes": dataclasses.asdict(subject.sizes),
        "known_faults": known_faults(run),
        "curves": _curves(subject),
    }


def _curves(subject: Subject) -> Row:
    """Training and validation energy by step, for pictures: a few hundred points at most."""
    history = subject.history
    training = thin([row["step"] for row in history.steps], [row["parts"]["ce"] for row in history.steps])
    return {
        "training": list(zip(*training, strict=True)),
        "validation": [(row["step"], row["validation"]["nats_per_token"]) for row in history.evals],
    }


def together(found: Sequence[Diagnosis]) -> Row:
    """The record of one diagnosis or of several.

    `against_first` is a checkpoint's difference from the first one, paired by token. It is None for
    the first checkpoint itself, and for a checkpoint that read other tokens, such as those of
    another tokenizer.
    """
    first, rows = found[0], []
    tails = _tails([own.record["folder"] for own in found])
    for own, tail in zip(found, tails, strict=True):
        gain = None
        if own is not first and own.tokens == first.tokens:
            gain = paired(own.nats, first.nats, own.starts).record()
        name = f"{tail}, step {own.record['step']:,}"
        rows.append(own.record | {"name": name, "against_first": gain})
    return {"checkpoints": rows}


def _tails(folders: Sequence[str]) -> list[str]:
    """The end of each path, just long enough to tell different folders apart."""
    parts = [Path(folder).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        tails = [str(Path(*own[-length:])) for own in parts]
        if len(set(tails)) == len(set(folders)):
            break
    return tails
