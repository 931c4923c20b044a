"""The processes of one run, as torchrun starts them: rank 0 leads, the others follow.

Rank 0 is the program as ever: it parses, reads, decides, writes and prints. The others do what it tells them, a message
at a time, until it tells them to end, so that nothing is decided twice. With one process nothing here costs anything.

Messages and the host's tensors travel through gloo, those of CUDA devices through NCCL. Who ends with an error says why
in the store that all ranks share, then closes its connections: the others, who wait for it, fail at once, look there,
and raise the same. Where nothing is found, a roll call says who is missing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ebmvk import errors
from ebmvk.errors import ConfigError, EbmvkError, RankLost, RunFailed

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import PrefixStore

BUCKET = 1 << 23  # elements added up at once: 32 MiB of float32
JOIN = timedelta(minutes=5)  # until all ranks have started
TURN = timedelta(minutes=10)  # until a rank that takes part in a step has come as far as the others
IDLE = timedelta(days=1)  # until the first rank tells something: it may evaluate for hours
ROLL_CALL = 2.0  # seconds that ranks have to say that they are there
_FRAME = 1024  # bytes of a message that are sent at once
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[..., object]


@dataclass(frozen=True)
class Share:
    """Which rows of a batch a rank takes: equal, contiguous shares, in the order of the ranks."""

    rank: int = 0
    size: int = 1

    def rows(self, n: int) -> slice:
        """Of n rows, a multiple of the ranks."""
        part = n // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


WHOLE = Share()


class Ranks:
    """This process among those of the run. Methods that reach the others raise RankLost where one has died, and the
    error that another one ended with."""

    def __init__(self, rank: int = 0, size: int = 1, store: PrefixStore | None = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self.interrupted = False  # by a signal, where others decide what comes of it
        self.lost = False  # the others cannot be reached any more
        self._turn: dist.ProcessGroup | None = None
        self._device: dist.ProcessGroup | None = None

    @classmethod
    def join(cls) -> Ranks:
        """Meet the others where torchrun's environment says.

        Raises:
            ConfigError: the environment is not whole, or the others do not come.
        """
        # Not above: a torch that was built without it is enough for one process.
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=JOIN))
            own = PrefixStore("gloo", store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=IDLE)
            ranks = cls(rank, size, PrefixStore("ebmvk", store))
            ranks._turn = dist.new_group(backend="gloo", timeout=TURN)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"WORLD_SIZE={os.environ.get('WORLD_SIZE')}: the processes of this run did not meet",
                why=next(iter(str(error).splitlines()), type(error).__name__),
                hint="start it with torchrun --nproc-per-node N -m ebmvk.train …, or unset WORLD_SIZE",
            ) from None
        return ranks

    @property
    def share(self) -> Share:
        return Share(self.rank, self.size)

    def use(self, device: torch.device) -> None:
        """Tensors on a CUDA device go from device to device from now on. All ranks call it together."""
        if self.size > 1 and device.type == "cuda":
            self._device = dist.new_group(backend="nccl", timeout=TURN)

    # ---- leading and following -------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whoever ends within it with an error ends the others, with the same one."""
        kept = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        try:
            yield
        except BaseException as error:
            self.fail(error)  # signals stay handled: torchrun sends one, and the error is still to be printed
            raise
        else:
            for number, handler in kept.items():
                signal.signal(number, handler)
        finally:
            self._close()

    def _signalled(self, *_: object) -> None:
        self.interrupted = True
        if self.rank == 0 and not self.lost:
            raise KeyboardInterrupt

    @contextmanager
    def whole(self) -> Iterator[None]:
        """A message and what belongs to it: signals wait until the others have it all."""
        if self.size == 1:
            yield
            return
        came: list[int] = []
        before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in _SIGNALS}
        try:
            yield
        except BaseException as error:
            self.fail(error)  # they wait for what does not come any more
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for late in came:
                signal.raise_signal(late)

    def tell(self, do: str, **values: Any) -> None:
        """Let the others do something, with JSON-able values."""
        if self.size == 1:
            return
        content = json.dumps({"do": do, **values}).encode()
        frame = torch.zeros(_FRAME, dtype=torch.uint8)
        begin = len(content).to_bytes(8, "little") + content[: _FRAME - 8]
        frame[: len(begin)] = torch.frombuffer(bytearray(begin), dtype=torch.uint8)
        self.broadcast(frame)
        if rest := content[_FRAME - 8 :]:
            self.broadcast(torch.frombuffer(bytearray(rest), dtype=torch.uint8))

    def follow(self, handlers: Mapping[str, Handler]) -> int:
        """Do what the first rank tells, until it tells to end; its exit status. handlers: by what is told."""
        while True:
            message = self._heard()
            do = message.pop("do")
            if do == "end":
                return int(message["status"])
            handlers[do](**message)

    def _heard(self) -> dict[str, Any]:
        frame = bytes(self.broadcast(torch.zeros(_FRAME, dtype=torch.uint8)).tolist())
        length = int.from_bytes(frame[:8], "little")
        content = frame[8 : 8 + length]
        if length > len(content):
            content += bytes(self.broadcast(torch.zeros(length - len(content), dtype=torch.uint8)).numpy())
        message: dict[str, Any] = json.loads(content)
        return message

    # ---- tensors ---------------------------------------------------------------------------------------------------

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The first rank's, in place. On the CPU."""
        with self._reaching():
            dist.broadcast(tensor, 0)
        return tensor

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors by name to the others, who call `receive`."""
        if self.size > 1:
            content = bytearray(
                dump_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
            )
            self.broadcast(torch.tensor([len(content)]))
            self.broadcast(torch.frombuffer(content, dtype=torch.uint8))

    def receive(self) -> dict[str, Tensor]:
        """What the first rank sends, on the CPU."""
        length = int(self.broadcast(torch.zeros(1, dtype=torch.int64)))
        return load_tensors(self.broadcast(torch.zeros(length, dtype=torch.uint8)).numpy().tobytes())

    def scatter(self, own: Tensor, parts: Sequence[Tensor] | None = None) -> Tensor:
        """Into `own` its part of what the first rank has, all of one shape. On the CPU."""
        with self._reaching():
            dist.scatter(own, None if parts is None else list(parts), src=0)
        return own

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """At the first rank everyone's, of one shape, in the order of the ranks; elsewhere none. On the CPU."""
        found = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else []
        with self._reaching():
            dist.gather(tensor, found or None, dst=0)
        return found

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes its sum over all ranks, the same bits everywhere; of one dtype and device, in few buckets."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            self._sum(flat)
            for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def _sum(self, tensor: Tensor) -> Tensor:
        with self._reaching():
            dist.all_reduce(tensor, group=self._device if tensor.is_cuda else self._turn)
        return tensor

    def agree(self, number: int) -> bool:
        """Whether all ranks have the same number, of less than 63 bits."""
        if self.size == 1:
            return True
        both = torch.tensor([number, -number])
        with self._reaching():
            dist.all_reduce(both, dist.ReduceOp.MIN, group=self._turn)
        return int(both[0]) == -int(both[1])

    # ---- who is lost -----------------------------------------------------------------------------------------------

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what torch.distributed raises when a connection ends
            raise self._why_lost(error) from None

    def fail(self, error: BaseException) -> None:
        """Leave the others, and say why. What another rank ended with has been said."""
        if self.size == 1 or self.lost or self._store is None:
            return
        status = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_status", 1)
        said = {"rank": self.rank, "kind": type(error).__name__, "status": status}
        said |= {name: str(getattr(error, name, "")) for name in ("what", "why", "hint")}
        with suppress(RuntimeError):  # the store is gone with the process that kept it
            self._store.compare_set("failed", "", json.dumps(said | {"what": said["what"] or str(error)}))
        self._close()

    def _close(self) -> None:
        self.lost = True
        if self.size > 1 and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _why_lost(self, error: RuntimeError) -> EbmvkError:
        """Why the others cannot be reached: what one has ended with, or who does not answer."""
        self._close()
        here = {self.rank}
        with suppress(RuntimeError):
            assert self._store is not None
            self._store.set(f"here {self.rank}", "")
            until = time.monotonic() + ROLL_CALL
            while not self._store.check(["failed"]) and time.monotonic() < until:
                time.sleep(0.05)
            if self._store.check(["failed"]):
                return _relayed(json.loads(self._store.get("failed")))
            here |= {rank for rank in range(self.size) if self._store.check([f"here {rank}"])}
        missing = sorted(set(range(self.size)) - here)
        names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}" if missing else "another rank"
        lost = RankLost(
            f"{names} of {self.size} stopped answering",
            why=f"the process was killed or its machine is gone ({str(error).split('] ')[-1].split('. ')[0]})",
            hint="continue with --resume, with any number of processes",
        )
        lost.told = self.rank != min(here)
        return lost


ALONE = Ranks()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _relayed(said: Mapping[str, Any]) -> EbmvkError:
    """The error that a rank has ended with, which has printed it."""
    kind = getattr(errors, said["kind"], None)
    if kind is not None:
        plain = next(own for own in kind.__mro__ if own.__init__ is EbmvkError.__init__)
        error: EbmvkError = plain(said["what"], why=said["why"], hint=said["hint"])
    else:
        what = f"rank {said['rank']} failed: {said['kind']}: {said['what']}"
        error = RunFailed(what, hint="see what it has printed, and continue with --resume")
    error.exit_status, error.told = int(said["status"]), True
    return error


# ---- means over a batch that ranks share ---------------------------------------------------------------------------

_sharing: Ranks | None = None  # a global, not an argument: the losses that need it lie deep in a model


@contextmanager
def sharing(ranks: Ranks) -> Iterator[None]:
    """Within it each rank works on its share of one batch, so that `batch_mean` is of all of it."""
    global _sharing  # noqa: PLW0603
    _sharing = ranks if ranks.size > 1 else None
    try:
        yield
    finally:
        _sharing = None


def batch_mean(x: Tensor) -> Tensor:
    """The mean over the ranks that share the batch, differentiable; x itself where none do."""
    if _sharing is None:
        return x
    mean: Tensor = _Mean.apply(x, _sharing)  # type: ignore[no-untyped-call]
    return mean


class _Mean(torch.autograd.Function):
    """Of a loss that is the sum of all ranks' the gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks._sum(x.clone()) / ranks.size

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ranks: Ranks = ctx.ranks
        return ranks._sum(grads[0].clone()) / ranks.size, None
