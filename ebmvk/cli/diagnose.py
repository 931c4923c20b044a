"""`ebmvk diagnose`: what is fine with a checkpoint, what isn't, and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ebmvk import __version__
from ebmvk.cli import calling, parsing, running
from ebmvk.cli.signatures import takes
from ebmvk.config import flags
from ebmvk.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ebmvk.api import Diagnosed
    from ebmvk.diagnosis.diagnosis import Diagnosis

ALONE = "-"  # --batch or --report without a value
REPORT = "diagnosis.html"


@dataclass(frozen=True)
class DiagnoseCommand:
    checkpoint: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()  # Checkpoints, or runs (their latest one).
    batch: Annotated[str | None, tyro.conf.arg(metavar="[RUN]")] = None  # Compare all checkpoints of a run.
    report: Annotated[str | None, tyro.conf.arg(metavar="[FILE]")] = (
        None  # Write a page, by default RUN/diagnosis.html.
    )
    quick: bool = False  # Measure less, in about half the time.
    json: bool = False  # Print one JSON object instead of text.
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None  # Path of the run's text, if it has moved.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Local data sets; default: EBMVK_DATA_DIR.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.


FLAGS = flags.flags_of(DiagnoseCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    args = sys.argv[1:] if argv is None else list(argv)
    for flag in ("--batch", "--report"):
        args = flags.fill_optional(args, flag, ALONE)
    return parsing.run(DiagnoseCommand, _diagnose, args, command="diagnose", known=FLAGS, repeatable=("--checkpoint",))


@takes(DiagnoseCommand, without=("json", "batch"))
def diagnose(checkpoint: str | Path, **settings: Any) -> Diagnosed:
    """Diagnose a checkpoint as `ebmvk diagnose` does: what is fine, what isn't, and what to do.

    settings: the flags of the command as keyword arguments: `quick=True`, `report="page.html"`,
    `device="cpu"`, `data_dir="texts"`. To compare several checkpoints, use the command.

    >>> print(*ebmvk.diagnose("runs/first", quick=True).recommendations, sep="\\n")

    Raises:
        ConfigError: a setting is unknown or has a bad value. EbmvkError: any other error that the
        command would print.
    """
    known = [flag for flag in FLAGS if flag not in ("--json", "--no-json", "--batch")]
    if settings.get("report") is True:
        settings["report"] = ALONE
    args = calling.arguments("diagnose", {"checkpoint": checkpoint, **settings}, known)
    from ebmvk.api import Diagnosed

    record = _record(parsing.parse(DiagnoseCommand, args, command="diagnose", known=FLAGS), lambda _: None)
    (own,) = record["checkpoints"]
    course = own["sections"].get("convergence", {})
    return Diagnosed(course.get("verdict"), course.get("reason"), own["sections"]["recommendations"], own)


def _diagnose(command: DiagnoseCommand) -> int:
    from ebmvk.diagnosis.overview import lines, overview
    from ebmvk.report.tables import plain

    record = _record(command, _say)
    if command.json:
        print(json.dumps(record, allow_nan=False))
        return 0
    rows = record["checkpoints"]
    print("\n\n".join("\n".join(lines(row)) for row in rows))
    if len(rows) > 1:
        print("\nSide by side\n" + "\n".join(plain(overview(rows))))
    return 0


def _record(command: DiagnoseCommand, say: Callable[[str], None]) -> dict[str, Any]:
    """The diagnosis of every checkpoint as JSON values; writes the page if --report asks for it."""
    from ebmvk.diagnosis.diagnosis import together

    found = list(_found(command, say))
    record: dict[str, Any] = {"ebmvk": __version__} | together(found)
    if command.report is not None:
        from ebmvk.diagnosis.page import page

        target = Path(found[0].record["folder"]) / REPORT if command.report == ALONE else Path(command.report)
        running.write_output(target, page(record), "--report")
        say(f"report      {target}")
    return record


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _paths(command: DiagnoseCommand) -> list[Path]:
    """The checkpoints to diagnose.

    Raises:
        ConfigError: none was given. CheckpointError: a path is not a run.
    """
    from ebmvk.runs.steps import locate, step_folders

    if command.batch is None:
        if not command.checkpoint:
            raise ConfigError("nothing to diagnose", hint="give --checkpoint RUN, or --batch RUN")
        return list(command.checkpoint)
    if (command.batch == ALONE) != (len(command.checkpoint) == 1):
        raise ConfigError(
            f"--batch takes one run, but {len(command.checkpoint) + (command.batch != ALONE)} were given",
            hint="give --batch RUN, or --checkpoint RUN --batch",
        )
    path = command.checkpoint[0] if command.checkpoint else Path(command.batch)
    return step_folders(locate(path, "--batch")[0])[::-1]


def _found(command: DiagnoseCommand, say: Callable[[str], None]) -> Iterator[Diagnosis]:
    """Diagnose each checkpoint. Only one is in memory at a time; checkpoints of one run share its
    text.

    Raises:
        CheckpointError: a checkpoint is damaged; with --batch, all of them are.
    """
    from ebmvk.diagnosis.diagnosis import diagnose
    from ebmvk.diagnosis.subject import QUICK, Sizes, Subject, Text
    from ebmvk.engine.device import open_device
    from ebmvk.runs.folder import open_run

    paths, device = _paths(command), open_device(command.device)
    texts: dict[Path, Text] = {}

    def one(path: Path) -> Diagnosis:
        run = open_run(path, "--checkpoint" if command.batch is None else "--batch", say)
        if run.folder not in texts:
            texts[run.folder] = Text.of(run, command.dataset, command.data_dir)
        subject = Subject(run, device, texts[run.folder], QUICK if command.quick else Sizes())
        say(subject.name)
        return diagnose(subject, say)

    left = len(paths)
    for path in paths:
        try:
            yield one(path)
        except CheckpointError as error:
            left -= 1
            if command.batch is None or not left:
                raise
            say(f"{path} is skipped: {error.what}")


if __name__ == "__main__":
    sys.exit(main())
