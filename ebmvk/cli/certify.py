"""`ebmvk certify`, `python -m ebmvk.certify`: are the samplers right on this device?

Runs twelve tests of the samplers on fixed seeds, and shows that the tests catch broken samplers
(mutants). Exit status: 0 if every test passes and every mutant is caught; 1 if not; 2 for an
unknown flag, or a device or checkpoint that doesn't exist.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ebmvk import __version__
from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.errors import ConfigError

if TYPE_CHECKING:
    from ebmvk.certification.contexts import Contexts
    from ebmvk.certification.results import Check, Sizes
    from ebmvk.certification.suite import Certificate
    from ebmvk.engine import Backend

Record = dict[str, Any]


@dataclass(frozen=True)
class CertifyCommand:
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    # Test tokens in contexts of this run's validation text; otherwise in made-up contexts.
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    # Where that run's text is, if it has moved.
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    quick: bool = False  # Use fewer chains: takes less than a minute on two cores, but misses small errors.
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None  # Write all figures to this file.
    plots: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None  # Draw pictures into this folder (SVG).
    seed: int = 42  # The same seed gives the same figures on one device.


FLAGS = flags.flags_of(CertifyCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 or 2, as the module says."""
    return parsing.run(CertifyCommand, _certify, argv, command="certify", known=FLAGS)


def _certify(command: CertifyCommand) -> int:
    if not 0 <= command.seed < 2**31:
        raise ConfigError(f"--seed {command.seed} is not between 0 and 2^31 - 1", hint="use --seed 42")
    from ebmvk.certification import suite
    from ebmvk.engine.device import open_device

    began = time.perf_counter()
    device = open_device(command.device)
    sizes = suite.sizes_for(device.backend, quick=command.quick)
    contexts = _contexts(command, sizes, device.backend)
    print(f"device    {device.reason}\ncontexts  {contexts.source}\nseed      {command.seed}", flush=True)
    found = suite.certify(
        device.backend, contexts, sizes, command.seed, lambda text: print(f"  {text}", file=sys.stderr, flush=True)
    )
    seconds = time.perf_counter() - began
    print("\n".join(_lines(found)))
    print(f"\n{_verdict(found)}; {seconds:.0f} s")
    if command.json:
        record = {"ebmvk": __version__, "device": device.reason, "quick": command.quick, "seed": command.seed}
        record |= _record(found, contexts, sizes) | {"seconds": round(seconds, 1)}
        running.write_output(command.json, json.dumps(record, indent=1, allow_nan=False) + "\n", "--json")
    if command.plots:
        from ebmvk.report.certificate import draw

        for picture in found.pictures:
            running.write_output(command.plots / f"{picture.name}.svg", draw(picture), "--plots")
    return int(not found.ok)


def _contexts(command: CertifyCommand, sizes: Sizes, backend: Backend) -> Contexts:
    """Contexts of the checkpoint's validation text; made-up ones without a checkpoint."""
    from ebmvk.certification import contexts

    if command.checkpoint is None:
        return contexts.synthetic(sizes.token_dimension, command.seed)
    from ebmvk.data.windows import encode_split
    from ebmvk.memory.files import load
    from ebmvk.memory.law import Reader
    from ebmvk.runs.folder import open_run
    from ebmvk.runs.layout import MEMORY_FILE
    from ebmvk.runs.text import own_text, say_if_other

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    run = open_run(command.checkpoint, "--checkpoint", say)
    if not run.model.on_sphere:
        raise ConfigError(
            f"--checkpoint {command.checkpoint} is a run of --model {run.config.model.model}",
            why="its tokens aren't points on the sphere, so there are no chains to certify",
            hint="give a run of --model ebm",
        )
    corpus = own_text(run.config, command.dataset)
    say_if_other(run, corpus, "validation", say)
    stream = encode_split(corpus, "validation", run.tokenizer, apart=run.config.data.apart)
    reader = None
    if (run.checkpoint.path / MEMORY_FILE).is_file():
        reader = Reader(load(run.checkpoint.path, run.model, "static"), "static", backend)
    return contexts.of_text(run.model, run.tokenizer, stream, run.config.data.seq_length, reader)


def _lines(found: Certificate) -> Iterator[str]:
    """A line per verdict, and below each a line with its claim and details."""
    yield ""
    for check in found.checks:
        yield f"{_word(check.ok(found.alpha))} {check.number:>2}  {check.name:<40} {_figures(check)}"
        yield f"         {check.claim}{'; ' if check.detail else ''}{check.detail}"
    yield "\nMutants: broken samplers, each of which has to fail the named test:"
    for caught in found.caught:
        yield f"{_word(caught.ok(found.alpha))} {caught.check.number:>2}  {caught.mutant:<22} fails {caught.check.name}"
        yield f"         {_figures(caught.check)}; unbroken {_figures(caught.control)}"
    yield from found.notes


def _word(ok: bool) -> str:
    return "ok  " if ok else "FAIL"


def _figures(check: Check) -> str:
    said = f"n = {check.n:,}  {check.symbol} = {check.statistic:.4g}"
    bounds = [f"{sign} {value:.3g}" for sign, value in ((">=", check.low), ("<=", check.high)) if abs(value) < 1e300]
    said += f"  bound {', '.join(bounds)}" if bounds else ""
    return said if check.p is None else f"{said}  p = {check.p:.2g}"


def _verdict(found: Certificate) -> str:
    passed = sum(check.ok(found.alpha) for check in found.checks)
    caught = sum(mutant.ok(found.alpha) for mutant in found.caught)
    return (
        f"{passed} of {len(found.checks)} checks pass, {caught} of {len(found.caught)} mutants are caught "
        f"(family-wise level {found.level:g}: {found.alpha:.1e} for each of {found.comparisons} p-values)"
    )


def _record(found: Certificate, contexts: Contexts, sizes: Sizes) -> Record:
    return {
        "ok": found.ok,
        "family_level": found.level,
        "alpha": found.alpha,
        "contexts": contexts.source,
        "sizes": dataclasses.asdict(sizes),
        "checks": [_row(check, found.alpha) for check in found.checks],
        "mutants": [
            {
                "mutant": caught.mutant,
                "caught": caught.ok(found.alpha),
                "check": _row(caught.check, found.alpha),
                "control": _row(caught.control, found.alpha),
            }
            for caught in found.caught
        ],
        "notes": found.notes,
        "seconds_by_test": {name: round(value, 2) for name, value in found.seconds.items()},
    }


def _row(check: Check, alpha: float) -> Record:
    """One check, as JSON values: infinite bounds and statistics that aren't numbers are null."""
    row = {
        name: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for name, value in dataclasses.asdict(check).items()
    }
    return {"ok": check.ok(alpha), **row}


if __name__ == "__main__":
    sys.exit(main())
