"""Commands as processes of their own: forks of this process, or fresh programs.

A fork has loaded torch already, so it is at work at once. If a test is about the start or the end
of the interpreter, the program is started afresh.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import IO, Any

from bench.changes import start


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile()


NAMES = ("stdin", "stdout", "stderr")


class Process:
    """`ebmvk ARGUMENTS` in a process of its own, with what tests need of subprocess.Popen.

    Standard output and standard error go to `stdout` and `stderr` (file descriptors or files) or
    are kept for `communicate`.
    """

    def __init__(
        self,
        *arguments: object,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
        new_session: bool = False,
        closed: Sequence[int] = (),
        fresh: bool | None = None,
    ) -> None:
        """env: changes of the environment. closed: file descriptors that the process doesn't keep
        open. fresh: start a new interpreter; by default only if the tests run on a device whose
        handles a fork can't use."""
        self.arguments = [str(argument) for argument in arguments]
        if fresh is None:
            fresh = os.environ.get("EBMVK_TEST_DEVICE", "cpu") != "cpu"
        self._fresh, self._session, self._closed, self._env = fresh, new_session, closed, {**(env or {})}
        self._kept = [_file() if stream is None else None for stream in (stdout, stderr)]
        self._streams = (stdin, *(own or kept for own, kept in zip((stdout, stderr), self._kept, strict=True)))
        self.returncode: int | None = None
        self.pid = start(self._work)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 200) -> int:
        """The exit status at its end. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.arguments, timeout)
            time.sleep(0.01)
        return status

    def communicate(self, timeout: float = 200) -> tuple[str, str]:
        """Wait for the end; returns what it wrote to standard output and standard error."""
        self.wait(timeout)
        said = []
        for file in self._kept:
            if file:
                file.seek(0)
            said.append(file.read().decode(self._encoding(), errors="replace") if file else "")
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _encoding(self) -> str:
        return (self._env.get("PYTHONIOENCODING") or "utf-8").split(":")[0]

    # ---- in the new process ----------------------------------------------------------------------

    def _work(self) -> int:
        if self._session:
            os.setsid()
        for number, stream in enumerate(self._streams):
            if stream is not None:
                os.dup2(stream if isinstance(stream, int) else stream.fileno(), number)
        for number in self._closed:
            os.close(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(self._env)
        if self._fresh:
            os.execv(sys.executable, [sys.executable, "-m", "ebmvk", *self.arguments])  # noqa: S606
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or it warns about the fork
        for number, name in enumerate(NAMES):
            setattr(sys, name, self._opened(number))
        return self._main()

    def _opened(self, number: int) -> io.TextIOWrapper:
        """A standard stream, as the interpreter opens it."""
        return open(  # until the end of the process
            number,
            "w" if number else "r",
            buffering=1 if number == 2 or os.isatty(number) else -1,  # standard error
            encoding=self._encoding(),
            errors="backslashreplace" if number == 2 else "strict",
            closefd=False,
        )

    def _main(self) -> int:
        """Run the command and end as the interpreter does; returns the exit status."""
        try:
            status = int(importlib.import_module("ebmvk.cli.app").main(self.arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        except Exception:  # noqa: BLE001
            traceback.print_exc()
            status = 1
        try:
            sys.stdout.flush()
        except (OSError, ValueError):
            status = status or 120  # of an interpreter that can't flush
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        return status
