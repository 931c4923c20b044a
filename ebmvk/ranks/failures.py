"""Finds out why a rank doesn't answer.

A rank that ends with an error writes it into a store that all ranks share, then closes its
connections. The others, which are waiting for it, fail at once, look into the store and raise the
same error. If the store has no error, a roll call shows which rank is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ebmvk import errors
from ebmvk.errors import EbmvkError, RankLost, RunFailed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import PrefixStore

ROLL_CALL = 2.0  # seconds for ranks to report that they are alive, or that they have read the store


class Failures:
    """Records the first error that ended a rank of the run."""

    def __init__(self, store: PrefixStore, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def say(self, error: BaseException) -> None:
        """Tell the others which error ended this rank.

        Only the first error of a run is kept.
        """
        status = errors.INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1)
        said = {"rank": self._rank, "kind": type(error).__name__, "status": status}
        said |= {name: str(getattr(error, name, "")) for name in ("what", "why", "hint")}
        with suppress(RuntimeError):  # the store has ended with the process that kept it
            self._store.compare_set("failed", "", json.dumps(said | {"what": said["what"] or str(error)}))

    def why_lost(self, error: RuntimeError) -> EbmvkError:
        """The error to raise if a connection has ended: that of another rank, or RankLost."""
        try:
            self._store.set(f"here {self._rank}", "")
            until = time.monotonic() + ROLL_CALL
            while not self._store.check(["failed"]) and time.monotonic() < until:
                time.sleep(0.05)
            if self._store.check(["failed"]):
                return _relayed(json.loads(self._store.get("failed")))
            here = {rank for rank in range(self._size) if self._store.check([f"here {rank}"])}
        except RuntimeError:  # the store has ended; the first rank keeps it, or torchrun does on that machine
            here = {self._rank, *range(1, self._size)}
        missing = sorted(set(range(self._size)) - here)
        names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if missing else "another rank"
        lost = RankLost(
            f"{names} of {self._size} stopped answering",
            why=f"the process was killed or its machine is gone ({str(error).split('] ')[-1].split('. ')[0]})",
            hint="continue with --resume, with any number of processes",
        )
        lost.told = self._rank != min(here)
        return lost

    def leave(self) -> None:
        """Leave the store. Without torchrun the first rank keeps it, so that rank waits until the
        others have read it.
        """
        others = [f"left {rank}" for rank in range(1, self._size)]
        with suppress(RuntimeError):
            self._store.set(f"left {self._rank}", "")
            until = time.monotonic() + ROLL_CALL
            while self._rank == 0 and not self._store.check(others) and time.monotonic() < until:
                time.sleep(0.05)


def _relayed(said: Mapping[str, Any]) -> EbmvkError:
    """The error to raise for a rank that has ended with an error, which it has printed."""
    kind = getattr(errors, said["kind"], None)
    if kind is not None:
        plain = next(own for own in kind.__mro__ if own.__init__ is EbmvkError.__init__)
        error: EbmvkError = plain(said["what"], why=said["why"], hint=said["hint"])
    else:
        what = f"rank {said['rank']} failed: {said['kind']}: {said['what']}"
        error = RunFailed(what, hint="read what it printed, and continue with --resume")
    error.exit_status, error.told = int(said["status"]), True
    return error
