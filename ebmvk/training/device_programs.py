"""The compiled programs of a run's steps: one for a whole step, or one for a pass and one for the
update.

Either way the host waits once per step. With several processes the gradients come to the host in
between, so it waits twice, and a third time if the model has losses of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmvk.compute.chain import Call, Chain, Link
from ebmvk.compute.profile import Profile
from ebmvk.compute.programs import opened
from ebmvk.engine.recording import Ran, Recorder
from ebmvk.engine.vulkan import Vulkan
from ebmvk.training.parts import Outline, Parts, counted, pairs
from ebmvk.training.seen import SEEN, put
from ebmvk.training.step import Step
from ebmvk.training.update import Tensors

Pass = Mapping[str, Any]
"""pass: a `Batch`. With a sample, it also has place (m,) int64, the positions that consolidation
sees, and mine (m,) bool; see `Parts.one_pass`."""
Meet = Callable[[Tensor, Sequence[Tensor]], None]
"""Adds up (losses, arrays) over the processes, in place."""
MAKING: Callable[[], None] = lambda: None  # noqa: E731
GRADIENTS, LOSSES, SUMS, SAMPLE = "state['gradients']", "state['losses']", "state['sums']", "state['sample']"


class Programs(ABC):
    """Programs that share weights and moments on the device.

    Attributes:
        ran: what the last step did on the device, once for each wait. cpu_ops: torch's operations
            on the host while the host waited.
    """

    def __init__(self, pure: Step, device: Recorder, slots: Tensors) -> None:
        self.pure, self.device, self._slots = pure, device, slots
        self.ran: list[Ran] = []
        self.cpu_ops = 0
        self._chain: Chain | None = None
        self._start: tuple[Tensors, Tensors] = ({}, {})

    def start(self, parameters: Tensors, moments: Tensors) -> None:
        """Set the weights and moments for the next step."""
        self._start = (parameters, moments)
        if self._chain is not None:
            self._begin(self._chain)

    def read(self) -> tuple[Tensors, Tensors, Sequence[Tensor]]:
        """The weights, the moments and the slots of the kept sample, as they are now, on the
        host.

        Raises:
            DeviceError: the device has lost them.
        """
        if self._chain is None:
            return *self._start, ()
        parameters, state = self._chain.read(("moments", SEEN))
        return parameters, state["moments"], state.get(SEEN, ())

    @property
    def chain(self) -> Chain | None:
        """The chain of programs; None before there is a program. Other functions may read the
        chain's parameters."""
        return self._chain

    @property
    def nbytes(self) -> dict[str, int]:
        """See `Chain.nbytes`."""
        return {} if self._chain is None else self._chain.nbytes

    @abstractmethod
    def ready(self, passes: Sequence[Pass], scalars: Tensors, making: Callable[[], None] = MAKING) -> None:
        """Make what `run` needs. making: called first if that takes a while.

        Raises OutOfMemory.
        """

    @abstractmethod
    def run(self, passes: Sequence[Pass], scalars: Tensors, making: Callable[[], None] = MAKING) -> Tensors:
        """Take a step; returns its record. scalars: lr and count, see `Step`."""

    @abstractmethod
    def profile(self, passes: Sequence[Pass], scalars: Tensors) -> dict[str, tuple[int, Profile]]:
        """See `Steps.profile`."""

    @abstractmethod
    def _begin(self, chain: Chain) -> None: ...

    def _did(self, chain: Chain, *, first: bool = True) -> None:
        self.ran = [*([] if first else self.ran), *([chain.ran] if chain.ran else [])]
        self.cpu_ops = chain.cpu_ops + (0 if first else self.cpu_ops)


class Whole(Programs):
    """For steps of one pass: the whole step is one program."""

    def ready(self, passes: Sequence[Pass], scalars: Tensors, making: Callable[[], None] = MAKING) -> None:
        self._made().ready([self._call(passes, scalars)], making)

    def run(self, passes: Sequence[Pass], scalars: Tensors, making: Callable[[], None] = MAKING) -> Tensors:
        chain = self._made()
        (record,), _ = chain.run([self._call(passes, scalars)], making)
        self._did(chain)
        found: Tensors = record
        return found

    def profile(self, passes: Sequence[Pass], scalars: Tensors) -> dict[str, tuple[int, Profile]]:
        (found,) = self._made().profile([self._call(passes, scalars)])
        return {"step": (1, found)}

    def _made(self) -> Chain:
        if self._chain is None:
            self._chain = Chain({"step": Link(self._stepped, ("moments", SEEN))}, device=self.device)
            self._begin(self._chain)
        return self._chain

    def _begin(self, chain: Chain) -> None:
        chain.start(self._start[0], {"moments": self._start[1], **self._slots})

    @staticmethod
    def _call(passes: Sequence[Pass], scalars: Tensors) -> Call:
        (only,) = passes
        return Call("step", {name: own for name, own in only.items() if name != "mine"}, scalars)

    def _stepped(self, parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
        new, moments, record = self.pure(parameters, state["moments"], [batch["pass"]], scalars, batch.get("place"))
        return new, {"moments": moments, **_put(state, record, scalars)}, record


class Split(Programs):
    """A program for a pass, which adds its gradients to those on the device, and one for the
    update.

    meet: sums over the processes; None for a process alone.
    """

    def __init__(self, pure: Step, device: Recorder, slots: Tensors, meet: Meet | None = None) -> None:
        super().__init__(pure, device, slots)
        self._meet = meet
        self._parts: Parts

    def ready(self, passes: Sequence[Pass], scalars: Tensors, making: Callable[[], None] = MAKING) -> None:
        chain, calls = self._made(passes[0]), self._calls(passes, scalars)
        chain.prepare(calls, making)
        if self._meet is None:
            chain.ready(calls)
            return
        adding = [call for call in calls if call.step == "pass"]
        chain.ready(adding, given=self._given_to_passes(), taken=self._names())
        chain.ready([calls[-1]], given=self._names())

    def run(self, passes: Sequence[Pass], scalars: Tensors, making: Callable[[], None] = MAKING) -> Tensors:
        chain, calls = self._made(passes[0]), self._calls(passes, scalars)
        if self._meet is None:
            records, _ = chain.run(calls, making)
            self._did(chain)
        else:
            chain.prepare(calls, making)
            records = self._together(chain, calls, self._meet)
        found: Tensors = records[-1]
        return found

    def profile(self, passes: Sequence[Pass], scalars: Tensors) -> dict[str, tuple[int, Profile]]:
        chain = self._made(passes[0])
        calls = self._calls(passes, scalars)
        runs = Counter(call.step for call in calls)
        one = {call.step: call for call in calls}  # all runs of a program are alike
        found = chain.profile(list(one.values()))
        return {name: (runs[name], own) for name, own in zip(one, found, strict=True)}

    def _together(self, chain: Chain, calls: Sequence[Call], meet: Meet) -> list[Tensors]:
        """The records of a step that several processes share."""
        self.ran, self.cpu_ops = [], 0
        given: Tensors = {}
        if summing := [call for call in calls if call.step == "sums"]:
            _, found = chain.run(summing, taken=[SUMS])
            self._did(chain, first=False)
            total = found[SUMS].double().sum(0)
            meet(total, [])
            given[SUMS] = pairs(total)
        _, found = chain.run([call for call in calls if call.step == "pass"], given=given, taken=self._names())
        self._did(chain, first=False)
        losses = found[LOSSES].double()
        meet(losses, [own for name, own in found.items() if name != LOSSES])
        found[LOSSES] = losses.float()
        records, _ = chain.run([calls[-1]], given=found)
        self._did(chain, first=False)
        return records

    def _made(self, example: Pass) -> Chain:
        if self._chain is None:
            parameters, _ = self._start
            outline = Outline.of(self.pure, parameters, example["pass"])
            samples = len(example["place"]) if "place" in example else 0
            words = self.device.limits.range_bytes // 4
            self._parts = Parts(self.pure, outline, parameters, samples=samples, most=words)
            links = {"update": Link(self._updated, ("moments", "gradients", "losses", "sample", SEEN))}
            if outline.sums:
                links["sums"] = Link(self._parts.sums, ("sums",))
            links["pass"] = Link(self._parts.one_pass, ("gradients", "losses", "sums", "sample"))
            self._chain = Chain(links, device=self.device)
            self._begin(self._chain)
        return self._chain

    def _begin(self, chain: Chain) -> None:
        chain.start(self._start[0], {**self._parts.empty(), "moments": self._start[1], **self._slots})

    def _updated(self, parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
        kept = {name: own for name, own in state.items() if name != SEEN}
        new, kept, record = self._parts.update(parameters, kept, batch, scalars)
        return new, {**kept, **_put(state, record, scalars)}, record

    def _calls(self, passes: Sequence[Pass], scalars: Tensors) -> list[Call]:
        order = [{"first": torch.tensor(number == 0)} for number in range(len(passes))]
        calls = []
        if self._parts.outline.sums:
            calls = [Call("sums", counted(own["pass"]), first) for own, first in zip(passes, order, strict=True)]
        calls += [Call("pass", own, first) for own, first in zip(passes, order, strict=True)]
        return [*calls, Call("update", {}, scalars)]

    def _names(self) -> list[str]:
        """The names of what is added up over the processes."""
        found = [f"{GRADIENTS}[{number}]" for number in range(len(self._parts.flats))]
        return [*found, LOSSES, *([SAMPLE] if self._parts.samples else [])]

    def _given_to_passes(self) -> list[str]:
        return [SUMS] if self._parts.outline.sums else []


def _put(state: Tensors, record: Tensors, scalars: Tensors) -> Tensors:
    """The slots, with the sample moved there from the record; empty for a state without slots."""
    return {SEEN: put(state[SEEN], record.pop("sample"), scalars["slot"])} if SEEN in state else {}


def programs(
    pure: Step, backend: Vulkan, *, passes: int, meet: Meet | None = None, slots: Tensors | None = None
) -> Programs:
    """The programs of steps with `passes` passes. meet: see `Split`. slots: see `seen.empty`."""
    device, slots = opened(backend), slots or {}
    return Whole(pure, device, slots) if passes == 1 and meet is None else Split(pure, device, slots, meet)
