"""One process of a run: meeting the others, and exchanging messages and tensors with them.

Messages and tensors on the host travel through gloo, tensors on CUDA devices through NCCL.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ebmvk.errors import ConfigError, DeviceError, EbmvkError
from ebmvk.host.terminal import ending_signals
from ebmvk.ranks.failures import Failures
from ebmvk.ranks.shares import Share

BUCKET = 1 << 23  # elements that are added up at once: 32 MiB of float32
JOIN = timedelta(minutes=5)  # until all ranks have started
TURN = timedelta(minutes=10)  # until a rank has come as far in a step as the others
IDLE = timedelta(days=1)  # until the first rank sends a message; it may evaluate for hours
_FRAME = 1024  # bytes of a message that are sent first
Handler = Callable[..., object]


class Ranks:
    """This process among those of the run.

    Methods that reach the other ranks raise RankLost if one has died, or the error that ended it.
    """

    def __init__(self, rank: int = 0, size: int = 1, failures: Failures | None = None) -> None:
        self.rank, self.size, self._failures = rank, size, failures
        self.interrupted = False  # a signal came; the first rank decides what to do
        self.lost = False  # the others can no longer be reached
        # Groups of our own: modules that are imported later may keep torch's default group, and its
        # connections.
        self._idle: dist.ProcessGroup | None = None
        self._turn: dist.ProcessGroup | None = None
        self._device: dist.ProcessGroup | None = None

    @classmethod
    def join(cls) -> Ranks:
        """Meet the others as torchrun's environment variables say.

        Raises:
            ConfigError: the environment is incomplete, or the others don't come.
        """
        # Imported here because a torch that was built without it is enough for one process.
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=JOIN))
            own = PrefixStore("gloo", store)
            dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=TURN)
            ranks = cls(rank, size, Failures(PrefixStore("ebmvk", store), rank, size))
            ranks._idle, ranks._turn = (dist.new_group(backend="gloo", timeout=limit) for limit in (IDLE, TURN))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"WORLD_SIZE={os.environ.get('WORLD_SIZE')}: the processes of this run did not meet",
                why=next(iter(str(error).splitlines()), type(error).__name__),
                hint="start it with torchrun --nproc-per-node N -m ebmvk.train …, or unset WORLD_SIZE",
            ) from None
        return ranks

    @property
    def share(self) -> Share:
        """The rows of a step that this rank computes, if a step is one batch."""
        return Share(self.rank, self.size)

    def use(self, device: torch.device) -> None:
        """From now on, exchange tensors on this device directly if it is a CUDA device. All ranks
        call it together.

        Raises:
            DeviceError: only some ranks have a CUDA device; they would wait for one another.
        """
        self.check_agreed(
            int(device.type == "cuda"),
            DeviceError(
                f"--device: rank {self.rank} computes on {device.type}, but not all other ranks do",
                why="some processes found a CUDA device and some didn't",
                hint="use --device cpu, or give every process a CUDA device",
            ),
        )
        if self.size > 1 and device.type == "cuda":
            self._device = dist.new_group(backend="nccl", timeout=TURN)

    # ---- leading and following -------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block of joint work.

        A rank that ends it with an error ends the others with the same error.
        """
        kept = {number: signal.signal(number, self._signalled) for number in ending_signals()}
        try:
            yield
        except BaseException as error:
            self.fail(error)  # signals stay handled: torchrun sends one before the error is printed
            if self._failures is not None:
                self._failures.leave()
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
        """A block that sends a message and all that belongs to it. Signals wait until the others
        have received it.
        """
        if self.size == 1:
            yield
            return
        came: list[int] = []
        before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in ending_signals()}
        try:
            yield
        except BaseException as error:
            self.fail(error)  # the others wait for data that won't come
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for late in came:
                signal.raise_signal(late)

    def tell(self, do: str, **values: Any) -> None:
        """Tell the others to do something, with JSON values."""
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
        """Do what the first rank asks until it says that the run has ended. Returns the first
        rank's exit status.

        handlers: {name of a message: function to call with its values}.
        """
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

    # ---- tensors ---------------------------------------------------------------------------------

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Fill the tensor, on the CPU, with the values of the first rank's tensor."""
        with self._reaching():
            dist.broadcast(tensor, 0, group=self._idle)
        return tensor

    def send(self, tensors: Mapping[str, Tensor]) -> None:
        """Send named tensors to the others, which call `receive`."""
        if self.size > 1:
            content = bytearray(
                dump_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
            )
            self.broadcast(torch.tensor([len(content)]))
            self.broadcast(torch.frombuffer(content, dtype=torch.uint8))

    def receive(self) -> dict[str, Tensor]:
        """The tensors that the first rank sends, on the CPU."""
        length = int(self.broadcast(torch.zeros(1, dtype=torch.int64)))
        return load_tensors(self.broadcast(torch.zeros(length, dtype=torch.uint8)).numpy().tobytes())

    def scatter(self, own: Tensor, parts: Sequence[Tensor] | None = None) -> Tensor:
        """Fill `own`, on the CPU, with this rank's entry of the first rank's `parts`. All of them
        have the shape of `own`.
        """
        with self._reaching():
            dist.scatter(own, None if parts is None else list(parts), src=0, group=self._idle)
        return own

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """At the first rank, the tensors of all ranks in order; elsewhere []. All have one shape
        and are on the CPU.
        """
        found = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else []
        with self._reaching():
            dist.gather(tensor, found or None, dst=0, group=self._idle)
        return found

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, with the same bits everywhere.

        The tensors have one dtype and device. They are sent in few buckets.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            self.all_reduce(flat)
            for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, without a gradient. With one rank, the tensor
        itself.

        It always goes through the host, because with NCCL the others would wait forever if a rank
        ended meanwhile.
        """
        if self.size == 1:
            return tensor
        return self.all_reduce(tensor.detach().to("cpu", copy=True)).to(tensor.device)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over all ranks."""
        with self._reaching():
            dist.all_reduce(tensor, group=self._device if tensor.is_cuda else self._turn)
        return tensor

    def check_agreed(self, number: int, error: EbmvkError) -> None:
        """Raise `error` unless all ranks have the same number (of less than 63 bits).

        The first rank prints the error.
        """
        if self.size == 1:
            return
        both = torch.tensor([number, -number])
        with self._reaching():
            dist.all_reduce(both, dist.ReduceOp.MIN, group=self._turn)
        if int(both[0]) != -int(both[1]):
            error.told = self.rank > 0
            raise error

    # ---- who is lost -----------------------------------------------------------------------------

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch.distributed raises it when a connection ends
            traceback.clear_frames(error.__traceback__)  # the frames hold the connections
            self._close()
            assert self._failures is not None
            raise self._failures.why_lost(error) from None

    def fail(self, error: BaseException) -> None:
        """Leave the others and tell them why, unless another rank has ended first."""
        if self._failures is not None and not self.lost:
            self._failures.say(error)
            self._close()

    def _close(self) -> None:
        self.lost = True
        self._idle = self._turn = self._device = None
        if self.size > 1 and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


ALONE = Ranks()
"""A run of one process."""


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
