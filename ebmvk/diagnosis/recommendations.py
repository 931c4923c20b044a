"""What to change, given the findings: each line names a flag and a value."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from ebmvk.diagnosis.course import passes
from ebmvk.diagnosis.subject import Row, Subject
from ebmvk.evaluation.intervals import ENOUGH
from ebmvk.memory.static import MAX_SPLATS
from ebmvk.monitoring.advice import advice
from ebmvk.report.tables import SETTLED

DEAD, TWINS = 0.3, 0.1  # shares of the splats above which there is advice
COVERED = 0.3  # share of the contexts below which there is advice
UNBALANCED = 0.7  # effective experts, divided by all experts, below which there is advice
TEMPERATURE_OFF = 0.05
WORTH = 0.01  # nats per token; a memory that gains more is recommended
REPEATS = 0.1  # how much more than human text a model may repeat itself without advice
RECENT = 50  # last steps, whose mean is the training energy


def recommendations(subject: Subject, found: Row) -> list[str]:
    """A line for each thing to change. found: the measured sections of a diagnosis, by name."""
    parts = (_course, _advice, _energies, _splats, _memory, _experts, _samples)
    lines: list[str] = []
    for line in (line for part in parts for line in part(subject, found)):
        if " --steps " not in line or not any(" --steps " in said for said in lines):
            lines.append(line)
    return lines


def _typed(path: Path) -> str:
    """A path for a shell; relative to the working directory if it lies there."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _train(subject: Subject, steps: int) -> str:
    patience = " --patience 0" if subject.run.config.training.patience else ""  # or the run could stop at once
    return f"ebmvk train --resume --run-dir {_typed(subject.run.folder)} --steps {steps}{patience}"


def _advice(subject: Subject, found: Row) -> Iterator[str]:
    """The same advice that training gives at its end."""
    history = subject.history
    if not history.steps or not history.facts:
        return
    measured, best = found["likelihood"]["validation"], history.best
    seconds = sum(row["seconds"] for row in history.steps)
    recent = [row["parts"]["ce"] for row in history.steps[-RECENT:]]
    yield from advice(
        subject.run.config,
        perplexity=measured["ppl_token"],
        nats=measured["nats_per_token"],
        train_nats=sum(recent) / len(recent),
        rose=best is not None and best["step"] != history.evals[-1]["step"],
        rate=history.steps[-1]["tokens"] / max(seconds, 1e-9),
        epochs=float(passes(history)[1][-1]) - 1,
    )


def _course(subject: Subject, found: Row) -> Iterator[str]:
    training, course = subject.run.config.training, found.get("convergence", {})
    longer = _train(subject, 2 * max(training.steps, subject.run.checkpoint.step))
    match course.get("verdict"):
        case "converging":
            yield f"the energy still falls, so train longer: `{longer}`"
        case "diverging" if course["training"]["word"] == "diverging":
            yield f"the energy rises; start a new run with --lr {training.learning_rate / 2:g}"
        case "diverging":
            yield "validation gets worse but training doesn't; start a new run with --patience 3, or with more text"
        case "stalled":
            other = "" if training.init == "corpus" else ", or --init corpus"
            yield f"the energy hardly fell; start a new run with --lr {3 * training.learning_rate:g}{other}"
        case "undecided":
            yield f"there are too few steps, or too much noise, for a verdict; train longer: `{longer}`"
    spikes = found.get("energy", {}).get("spikes", 0)
    if spikes > max(3, 0.01 * found.get("energy", {}).get("steps", 0)):
        clip, rate = f"--grad-clip {training.grad_clip / 2:g}", f"--lr {training.learning_rate / 2:g}"
        yield f"the energy spikes in {spikes} steps; start a new run with {clip}, or with {rate}"


def _energies(subject: Subject, found: Row) -> Iterator[str]:
    config = subject.run.config
    worse = [level for level in found.get("denoising", {}).get("levels", []) if level["name"] and _worse(level)]
    if worse:
        yield (
            f"denoising at {worse[-1]['name']} is worse than with token frequencies alone; start a new run with "
            f"--lambda-denoise {2 * config.training.lambda_denoise or 0.1:g}"
        )
    chains = {row["sampler"]: row for row in found.get("langevin", {}).get("samplers", [])}
    annealed = chains.get("langevin", {})
    if annealed.get("ok") is False:
        yield (
            "annealed chains do not draw tokens from p(v|c); use "
            f"--langevin-steps {2 * config.langevin.langevin_steps}, or `ebmvk generate --sampler gibbs`"
        )
    wanted, measured = config.langevin.langevin_T, annealed.get("kinetic_temperature")
    if measured is not None and abs(measured / wanted - 1) > TEMPERATURE_OFF:
        checkpoint = _typed(subject.run.checkpoint.path)
        given = config.langevin.langevin_dt is not None or config.langevin.langevin_gamma is not None
        certify = f"check with `ebmvk certify --checkpoint {checkpoint}`"
        how = "remove --langevin-dt and --langevin-gamma" if given else certify
        yield f"chains have kinetic temperature {measured:.3f} instead of {wanted:g}; {how}"


def _worse(level: Row) -> bool:
    """True if the error is clearly (by two standard errors) above the unigram denoiser's."""
    ratio, error, settled = level["ratio"], level["error"], level["unigram_loss"] < SETTLED
    return ratio is not None and error is not None and not settled and ratio - 1 > 2 * error


def _splats(subject: Subject, found: Row) -> Iterator[str]:
    for store in found.get("splats", {}).get("stores", []):
        n, twins = store["splats"], store["twins"] / max(1, store["asked"])
        fewer = max(1, round(n * (1 - twins)))
        duplicates = f"{store['twins']:,} of {store['asked']:,} splats duplicate others ({store['name']})"
        if store["dead"] is None:
            checkpoint = _typed(subject.run.checkpoint.path)
            if twins > TWINS:
                again = f"`ebmvk memory --checkpoint {checkpoint} --splats {min(fewer, MAX_SPLATS)}`"
                yield f"{duplicates}; build it again: {again}"
        elif not store["active"]:
            yield f"none of {n:,} splats was recalled at the last checks; a new run is faster with --no-enable-soc"
        elif store["dead"] > DEAD * n:
            yield f"{store['dead']:,} of {n:,} splats are dead; {_most_splats(subject, store['active'])}"
        elif twins > TWINS:
            yield f"{duplicates}; {_most_splats(subject, fewer)}"
        elif store["coverage"] < COVERED and (more := _more_splats(subject)):
            yield f"splats cover only {store['coverage']:.0%} of validation contexts; {more}"


def _most_splats(subject: Subject, n: int) -> str:
    name = "curriculum-target-splats" if subject.run.config.splats.enable_curriculum_learning else "n-splats-init"
    return f"start a new run with --{name} {n}"


def _more_splats(subject: Subject) -> str | None:
    """Twice the number of splats, at most --max-splats; None if the run already has that many."""
    config = subject.run.config.splats
    now = config.curriculum_target_splats if config.enable_curriculum_learning else config.n_splats_init
    most = min(2 * now, config.max_splats)
    return _most_splats(subject, most) if most > now else None


def _memory(subject: Subject, found: Row) -> Iterator[str]:
    memory, folder = found.get("memory", {}), _typed(subject.run.checkpoint.path)
    if memory.get("of") == "splats of training" and memory["tokens"] >= ENOUGH:
        gain = memory["calibrated"] - memory["with"]
        if gain > WORTH:
            yield (
                f"a memory gains {gain:.3f} nats per token over the calibrated model; build it: "
                f"`ebmvk memory --checkpoint {folder}`"
            )
    for law, paired in memory.get("gains", {}).items():
        if law != "calibrated" and _worse_for_sure(paired):
            even = ", even on the text that its gates were fitted on" if memory.get("in_sample_tokens") else ""
            again = f"`ebmvk memory --checkpoint {folder} --fit-on training`"
            yield f"memory {law} makes the model worse{even}; remove --memory {law}, or build it again with {again}"
    for sign in memory.get("signs", []):
        again = f"`ebmvk memory --checkpoint {folder} --fit-on training`"
        yield f"{sign['sign']} ({sign['reason']}); remove --memory, or build it again with {again}"
    if "external" in found and _worse_for_sure(found["external"]["gain"]):
        yield "the external memory makes the model worse; start a new run with --no-use-memory"


def _worse_for_sure(gain: Row) -> bool:
    """True if the whole interval is above 0, so that other documents are expected to cost more,
    too. An interval within one document says nothing about other documents."""
    return gain["low"] is not None and gain["low"] > 0 and gain.get("method") != "stretches"


def _experts(subject: Subject, found: Row) -> Iterator[str]:
    model, weight = subject.run.config.model, subject.run.config.training.moe_balance
    layers = found.get("experts", {}).get("layers", [])
    least = min(layers, key=lambda layer: layer["effective"], default=None)
    if least and least["effective"] < UNBALANCED * model.moe_experts:
        yield (
            f"{least['layer']} uses only {least['effective']:.1f} of its {model.moe_experts} experts; start a new run "
            f"with --moe-balance {10 * weight or 0.01:g}"
        )


def _samples(subject: Subject, found: Row) -> Iterator[str]:
    said = found["samples"]
    if said["model"]["repetition_rate"] > said["human"]["repetition_rate"] + REPEATS:
        folder = _typed(subject.run.checkpoint.path)
        less = f"`ebmvk generate --checkpoint {folder} --repetition-penalty 1.2`"
        yield f"the model repeats itself more than people do; try {less}"
