"""One process among those of a run: how it meets the others, and what they send one another.

Messages and the host's tensors travel through gloo, those of CUDA devices through NCCL.
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

BUCKET = 1 << 23  # elements added up at once: 32 MiB of float32
JOIN = timedelta(minutes=5)  # until all ranks have started
TURN = timedelta(minutes=10)  # until a rank that takes part in a step has come as far as the others
IDLE = timedelta(days=1)  # until the first rank tells something: it may evaluate for hours
_FRAME = 1024  # bytes of a message that are sent at once
Handler = Callable[..., object]


class Ranks:
    """This process among those of the run. Methods that reach the others raise RankLost where one has died, and the
    error that another one ended with."""

    def __init__(self, rank: int = 0, size: int = 1, failures: Failures | None = None) -> None:
        self.rank, self.size, self._failures = rank, size, failures
        self.interrupted = False  # by a signal, where others decide what comes of it
        self.lost = False  # the others cannot be reached any more
        # Of our own, as torch's group of all is kept by whatever is imported later, and its connections with it.
        self._idle: dist.ProcessGroup | None = None
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
        return Share(self.rank, self.size)

    def use(self, device: torch.device) -> None:
        """Tensors on a CUDA device go from device to device from now on. All ranks call it together.

        Raises:
            DeviceError: some ranks have a CUDA device and others none, which would wait for one another.
        """
        self.check_agreed(
            int(device.type == "cuda"),
            DeviceError(
                f"--device: rank {self.rank} computes on {device.type}, and not all others do",
                why="not every process found a CUDA device",
                hint="take --device cpu, or machines and processes with a CUDA device each",
            ),
        )
        if self.size > 1 and device.type == "cuda":
            self._device = dist.new_group(backend="nccl", timeout=TURN)

    # ---- leading and following -------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whoever ends within it with an error ends the others, with the same one."""
        kept = {number: signal.signal(number, self._signalled) for number in ending_signals()}
        try:
            yield
        except BaseException as error:
            self.fail(error)  # signals stay handled: torchrun sends one, and the error is still to be printed
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
        """A message and what belongs to it: signals wait until the others have it all."""
        if self.size == 1:
            yield
            return
        came: list[int] = []
        before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in ending_signals()}
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
            dist.broadcast(tensor, 0, group=self._idle)
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
            dist.scatter(own, None if parts is None else list(parts), src=0, group=self._idle)
        return own

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """At the first rank everyone's, of one shape, in the order of the ranks; elsewhere none. On the CPU."""
        found = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else []
        with self._reaching():
            dist.gather(tensor, found or None, dst=0, group=self._idle)
        return found

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes its sum over all ranks, the same bits everywhere; of one dtype and device, in few buckets."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            self.all_reduce(flat)
            for tensor, total in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def total(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all ranks, without a gradient; with one rank, the tensor itself.

        It goes through the host on every device: the tensor is small, and if a rank ended during its pass, NCCL would
        leave the others waiting.
        """
        if self.size == 1:
            return tensor
        return self.all_reduce(tensor.detach().to("cpu", copy=True)).to(tensor.device)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Its sum over all ranks, in place."""
        with self._reaching():
            dist.all_reduce(tensor, group=self._device if tensor.is_cuda else self._turn)
        return tensor

    def check_agreed(self, number: int, error: EbmvkError) -> None:
        """Raises `error` where not all ranks have the same number, of less than 63 bits; the first one prints it."""
        if self.size == 1:
            return
        both = torch.tensor([number, -number])
        with self._reaching():
            dist.all_reduce(both, dist.ReduceOp.MIN, group=self._turn)
        if int(both[0]) != -int(both[1]):
            error.told = self.rank > 0
            raise error

    # ---- who is lost -----------------------------------------------------------------------------------------------

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what torch.distributed raises when a connection ends
            traceback.clear_frames(error.__traceback__)  # they hold the connections
            self._close()
            assert self._failures is not None
            raise self._failures.why_lost(error) from None

    def fail(self, error: BaseException) -> None:
        """Leave the others, and say why. What another rank ended with has been said."""
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


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(other.numel() for other in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
