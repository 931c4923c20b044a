"""`ebmvk doctor`: lists the devices of this machine and tests every operation on them; or tests a
checkpoint.

A checkpoint is tested within seconds and without its text. `--report FILE` writes all that is known
about the devices into one file, to be sent with an issue.

Exit status: 0 if everything tested is right; 1 if an operation is wrong or fails, or if the device
of `--device auto` can't be opened; 2 for an unknown flag, or a device or checkpoint that can't be
opened. With `--report`: 1 if anything failed, 2 if the file can't be written.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ebmvk import __version__
from ebmvk.cli import parsing
from ebmvk.config import flags
from ebmvk.errors import ConfigError, DeviceError
from ebmvk.host.cache_folder import cached

if TYPE_CHECKING:
    from ebmvk.engine import Backend
    from ebmvk.engine.device import Device
    from ebmvk.engine.selftest import Check
    from ebmvk.runs.folder import OpenRun

Record = dict[str, Any]
TOKENS = 24  # length of the text that a checkpoint writes


@dataclass(frozen=True)
class DoctorCommand:
    # Test this device only; by default, all devices of the machine.
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    # Test a run or checkpoint instead of devices.
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    json: bool = False  # Print one JSON object instead of lines.
    # Write a report on the devices to this file, as JSON, to send with an issue: versions,
    # drivers, limits, memory, errors of each operation, times and failures. It has no user name
    # and no path of a home folder.
    report: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    # About how long to measure for --report; a slow device is measured at smaller sizes.
    seconds: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 120.0


FLAGS = flags.flags_of(DoctorCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns exit status 0, 1 or 2, as described above."""
    return parsing.run(DoctorCommand, _doctor, argv, command="doctor", known=FLAGS)


def _doctor(command: DoctorCommand) -> int:
    from ebmvk.engine import select
    from ebmvk.engine.select import choose

    if command.report:
        return _write_report(command, command.report)
    if command.checkpoint:
        return _look_at(command.checkpoint, command.device or "cpu", as_json=command.json)
    auto = choose("auto")
    record: Record = {"ebmvk": __version__, "machine": _machine(), "vulkan": _vulkan(), "auto": str(auto)}
    record["cache"] = cached()
    if command.device is not None:
        backend = select(command.device)  # raises an error with status 2 if it can't be opened
        record["devices"] = [_tried(command.device, backend)]
    else:
        names = ["cpu", *(f"vulkan:{device['index']}" for device in record["vulkan"]["devices"] if device["usable"])]
        names += ["cuda"] if record["machine"]["cuda"] else []
        record["devices"] = [_try(name) for name in names]
    record["status"] = _status(record["devices"], auto.kind)
    print(json.dumps(record, indent=2, allow_nan=False) if command.json else "\n".join(_lines(record)))
    return int(record["status"])


def _write_report(command: DoctorCommand, path: Path) -> int:
    from ebmvk.cli import doctor_report
    from ebmvk.engine.select import choose

    if command.checkpoint or command.json:
        other = "--checkpoint" if command.checkpoint else "--json"
        raise ConfigError(f"--report and {other} are given together", hint=f"leave out {other}")
    if not command.seconds > 0:
        raise ConfigError(f"--seconds {command.seconds:g} isn't positive", hint="the default is --seconds 120")
    vulkan = _vulkan()
    report = doctor_report.Report(path, {"ebmvk": __version__, "machine": _machine(), "vulkan": vulkan})
    report.part("the device that `--device auto` takes", lambda: report.record.update(auto=str(choose("auto"))))
    names = [f"vulkan:{device['index']}" for device in vulkan["devices"] if device["usable"]]
    doctor_report.devices(report, [command.device] if command.device else [*names, "cpu"], command.seconds)
    failed = int(report.record["status"])
    print("something failed; see the file" if failed else "every operation is right on every device tried")
    print(f"send {path} with your issue")
    return failed


def _look_at(path: Path, device: str, *, as_json: bool) -> int:
    """Test a checkpoint: open it, which checks files, shapes and numbers; then compare its token
    laws.
    """
    from ebmvk.engine.device import open_device
    from ebmvk.runs.folder import open_run

    run, opened = open_run(path, "--checkpoint", lambda text: print(text, file=sys.stderr)), open_device(device)
    began = perf_counter()
    found = [
        {"check": name, "ok": error <= most, "error": error, "most": most} for name, error, most in _errors(run, opened)
    ]
    status = int(not all(row["ok"] for row in found))
    size = sum(parameter.numel() for parameter in run.model.parameters())
    record = {"checkpoint": str(run.checkpoint.path), "step": run.checkpoint.step, "parameters": size, "checks": found}
    if as_json:
        print(json.dumps(record | {"status": status}, indent=2, allow_nan=False))
        return status
    print(f"{run.checkpoint.path}, step {run.checkpoint.step:,}: {run.config.model.model}, {size:,} parameters")
    for row in found:
        verdict = "ok    " if row["ok"] else "WRONG "
        print(f"  {verdict} {row['check']:<50} {row['error']:.1e} (at most {row['most']:g})")
    print(f"{'something is wrong; see above' if status else 'sound'}; {perf_counter() - began:.1f} s")
    return status


def _errors(run: OpenRun, device: Device) -> Iterator[tuple[str, float, float]]:
    """(name, error, largest allowed error) of equations that hold for every model, whatever its
    text was.
    """
    import torch

    from ebmvk.decoding.generate import Decoding, Generator
    from ebmvk.model.cache import Cache

    model = run.model.to(device.torch).eval()
    generator = Generator(model, run.tokenizer, device.backend, run.config.langevin)
    text = generator.generate([""], Decoding(TOKENS, sampler="exact"))[0]
    ids = torch.tensor([[run.tokenizer.eos_id, *text.tokens]], device=device.torch)
    with torch.no_grad():
        whole, cache = model(ids), Cache(torch.zeros(1, dtype=torch.int64, device=device.torch))
        parts = [model.logits(model.extend(part, cache)) for part in torch.split(ids, 5, dim=1)]
        logits, log_p = model.logits(whole), model.log_p_lex(whole)
    yield "sum of p(v|c) minus 1", float((log_p.double().exp().sum(-1) - 1).abs().max()), 1e-4
    apart, scale = (torch.cat(parts, dim=1) - logits).abs().max(), logits.abs().max() + 1
    yield ("logits with a cache minus logits without, relative", float(apart / scale), 1e-5)


def _machine() -> Record:
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": cuda,
    }


def _vulkan() -> Record:
    from ebmvk.engine import vulkan_devices

    try:
        return {"error": None, **dataclasses.asdict(vulkan_devices.survey())}
    except DeviceError as error:
        return {"error": str(error), "loader": None, "devices": []}


def _try(name: str) -> Record:
    from ebmvk.engine import select

    try:
        return _tried(name, select(name))
    except DeviceError as error:
        return {"device": name, "name": None, "failure": str(error), "operations": []}


def _tried(name: str, backend: Backend) -> Record:
    from ebmvk.engine import selftest

    checks = selftest.run(backend)
    return {"device": name, "name": backend.device, "failure": None, "operations": [_operation(c) for c in checks]}


def _operation(check: Check) -> Record:
    return {
        "operation": check.operation,
        "ok": check.ok,
        "error": check.error if check.error < float("inf") else None,
        "seconds": round(check.seconds, 4),
        "failure": check.failure or (None if check.ok else "differs from the float64 oracle"),
    }


def _status(devices: list[Record], chosen: str) -> int:
    """1 if an operation is wrong, or if a device can't be opened although it is `chosen` or was
    found to be usable. Otherwise 0.
    """
    wrong = any(not operation["ok"] for device in devices for operation in device["operations"])
    failed = [device["device"].split(":")[0] for device in devices if device["failure"]]
    return int(wrong or chosen in failed or "vulkan" in failed)


def _lines(record: Record) -> list[str]:
    machine = record["machine"]
    lines = [
        f"ebmvk {record['ebmvk']} on {machine['system']}",
        f"Python {machine['python']}, torch {machine['torch']}, {machine['threads']} threads",
        f"CUDA: {machine['cuda'] or 'torch has none'}",
        *_vulkan_lines(record["vulkan"]),
        f"compiled programs and pipelines: {record['cache']}",
        f"--device auto takes {record['auto']}",
    ]
    for device in record["devices"]:
        lines += ["", f"{device['device']}: {device['name'] or device['failure']}"]
        lines += [_operation_line(operation) for operation in device["operations"]]
    verdict = "something is wrong; see above" if record["status"] else "every operation is right on every device tried"
    return [*lines, "", verdict]


def _vulkan_lines(found: Record) -> list[str]:
    if found["error"]:
        return [f"Vulkan: {found['error']}"]
    lines = [f"Vulkan: loader {found['loader']}, {len(found['devices'])} device(s)"]
    for device in found["devices"]:
        lines.append(f"  vulkan:{device['index']} {device['name']} ({device['type']}), {device['driver']}")
        if not device["usable"]:
            lines.append(f"    cannot be used: {device['missing']}")
        heaps = ", ".join(
            f"{heap['bytes'] / 2**30:.1f} GiB{' (own)' if heap['device_local'] else ''}" for heap in device["heaps"]
        )
        lines.append(f"    memory: {heaps}")
        for kind in ("features", "limits", "scoring"):
            lines.append(f"    {kind}: " + ", ".join(f"{key} {_word(value)}" for key, value in device[kind].items()))
    return lines


def _word(value: bool | int | str) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _operation_line(operation: Record) -> str:
    if operation["ok"]:
        return f"  ok     {operation['operation']:<22} error {operation['error']:.1e}, {operation['seconds']:.3f} s"
    why = operation["failure"] + ("" if operation["error"] is None else f", error {operation['error']:.1e}")
    return f"  WRONG  {operation['operation']:<22} {why}"


if __name__ == "__main__":
    sys.exit(main())
