"""`ebmvk doctor --report FILE`: writes what a developer needs to know about a device that only its
owner has.

The file is written again after each part, so that something is left if a driver ends the process.
"""

from __future__ import annotations

import getpass
import json
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ebmvk.errors import EbmvkError, StorageError

if TYPE_CHECKING:
    from ebmvk.engine import Backend
    from ebmvk.engine.ceilings import Ceilings
    from ebmvk.engine.selftest import Check

Record = dict[str, Any]

CALIBRATED = 20.0
"""With at least this many seconds per device, the ceilings are measured at their full sizes."""


class Report:
    """A record, and the file that it is written to.

    Args:
        about: facts about the machine, known before anything runs.

    Raises:
        StorageError: the file can't be written.
    """

    def __init__(self, path: Path, about: Record) -> None:
        self.path = path
        self.record: Record = {**about, "devices": [], "failures": [], "running": None, "status": None}
        self.write()

    def write(self) -> None:
        text = json.dumps(impersonal(self.record), indent=1, allow_nan=False) + "\n"
        try:
            self.path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"--report {self.path} can't be written: {error.strerror}", hint="name a file in another folder"
            ) from error

    def part(self, name: str, body: Callable[[], None]) -> None:
        """Run `body`. An error is recorded, and the report goes on."""
        print(name, file=sys.stderr, flush=True)
        self.record["running"] = name
        self.write()
        try:
            body()
        except Exception as error:  # noqa: BLE001  # one part that fails must not prevent the others
            self.fail(name, error)
        self.record["running"] = None
        self.write()

    def fail(self, part: str, error: Exception) -> None:
        print(f"  failed: {error}", file=sys.stderr, flush=True)
        self.record["failures"].append({"part": part, "error": f"{type(error).__name__}: {error}", "at": _at(error)})


def devices(report: Report, names: list[str], seconds: float) -> None:
    """Add a record of each device, within about `seconds` for all of them."""
    end = perf_counter() + seconds
    for place, name in enumerate(names):
        found: Record = {"device": name, "name": None}
        report.record["devices"].append(found)
        _device(report, found, (end - perf_counter()) / (len(names) - place))
    checks = [check for found in report.record["devices"] for check in _checks(found)]
    report.record["status"] = int(bool(report.record["failures"]) or not all(check["ok"] for check in checks))
    report.write()


def _checks(found: Record) -> list[Record]:
    return [*found.get("operations", []), *found.get("repeated", [])]


def _device(report: Report, found: Record, seconds: float) -> None:
    """Each part opens the device again, because the part before may have lost it."""
    from ebmvk.engine import select, selftest

    name, end = found["device"], perf_counter() + seconds

    def operations() -> None:
        backend = select(name)
        found["name"] = backend.device
        found["operations"] = [_check(check) for check in selftest.run(backend)]
        found["kernels"] = _kernels(backend)

    def repeated() -> None:
        found["repeated"] = [_check(check) for check in selftest.repeat(select(name))]

    def ceilings() -> None:
        from ebmvk.engine.ceilings import ceilings

        found["ceilings"] = asdict(ceilings(select(name), quick=seconds < CALIBRATED))

    report.part(f"{name}: every operation against the float64 oracle", operations)
    report.part(f"{name}: every operation twice, for the same bits", repeated)
    report.part(f"{name}: copy bandwidth and arithmetic", ceilings)
    report.part(f"{name}: times", lambda: _times(report, found, end - perf_counter()))


def _times(report: Report, found: Record, seconds: float) -> None:
    from ebmvk.engine import select
    from ebmvk.engine.ceilings import Ceilings
    from ebmvk.engine.workloads import SCALES, WORKLOADS, measure

    name = found["device"]
    ceiling = Ceilings(**found["ceilings"]) if "ceilings" in found else None
    rows: dict[str, Record] = {}

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)
        report.record["running"] = f"{name}: times: {text}"
        report.write()

    def failed(operation: str, error: Exception) -> None:
        report.fail(f"{name}: times: {operation}", error)

    found["times"] = []
    for row in measure(select(name), seconds, failed, say):
        rows[row.operation] = {
            **{key: value for key, value in asdict(row).items() if key != "scale"},
            "sizes": asdict(row.scale),
            "full_size": row.scale == SCALES[-1],
            "median": row.median,
            "gflops": row.flops / row.median / 1e9,
            "gbs": row.bytes / row.median / 1e9,
            "roofline_percent": _percent(ceiling, row.flops, row.bytes, row.median),
        }
        found["times"] = [rows[operation] for operation in WORKLOADS if operation in rows]


def _percent(ceiling: Ceilings | None, flops: float, bytes_: float, seconds: float) -> float | None:
    return None if ceiling is None else 100 * ceiling.least_seconds(flops, bytes_) / seconds


def _check(check: Check) -> Record:
    from ebmvk.engine.selftest import TOLERANCE

    return {
        "operation": check.operation,
        "ok": check.ok,
        "error": check.error if check.error < float("inf") else None,
        "tolerance": TOLERANCE,
        "seconds": check.seconds,
        "failure": check.failure or (None if check.ok else "differs from the float64 oracle"),
    }


def _kernels(backend: Backend) -> list[str]:
    """What the operations ran: shaders on Vulkan, instruction sets on the CPU."""
    from ebmvk.engine.cpu import Cpu
    from ebmvk.engine.vulkan import Vulkan

    return backend.kernels() if isinstance(backend, Vulkan | Cpu) else []


def _at(error: Exception) -> list[str]:
    """The calls that led to an error, outermost first. Folders are left out: they may be personal.

    Empty for an EbmvkError, whose text says everything.
    """
    if isinstance(error, EbmvkError):
        return []
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def impersonal(value: Any) -> Any:
    """The record, without the home folder and the user's name in its texts."""
    if isinstance(value, dict):
        return {key: impersonal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [impersonal(part) for part in value]
    return _impersonal_text(value) if isinstance(value, str) else value


def _impersonal_text(text: str) -> str:
    try:
        home, user = str(Path.home()), getpass.getuser()
    except (KeyError, OSError, RuntimeError):
        home = user = ""  # a user without an entry in the system's list
    if len(home) > 1:
        text = text.replace(home, "~")
    text = re.sub(r"((?:/home|/Users|[A-Za-z]:\\Users)[/\\])[^/\\\s'\":]+", r"\1USER", text)
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\\s'\":]|$)", "USER", text) if user else text
