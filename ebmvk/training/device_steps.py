"""Steps on a Vulkan device: forward, backward and update are planned programs that run together.

Weights and moments stay on the device. The host prepares a batch and two numbers for each step and
gets a record back; it reads the weights only for checkpoints, evaluations and consolidation. With
several processes it also reads the gradients, adds those of the others, and writes the sums back.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebmvk.compute.function import compile_function
from ebmvk.compute.profile import Profile
from ebmvk.config.schema import Config
from ebmvk.engine.device import Device
from ebmvk.engine.traceable import Traceable
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import BatchTooLarge, CheckpointError, NonFinite, OutOfMemory
from ebmvk.host.resources import amount
from ebmvk.memory.while_training import sampled, samples
from ebmvk.model.language import LanguageModel
from ebmvk.model.on_device import DeviceLayers
from ebmvk.monitoring.advice import is_out_of_memory
from ebmvk.objective.batch import prepare
from ebmvk.ranks import ALONE, Ranks, Share
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.training import finite, optim, seen, update
from ebmvk.training.device_programs import Pass, Programs, programs
from ebmvk.training.interruption import Interruption
from ebmvk.training.passes import Passes, attempted
from ebmvk.training.recovery import Recovery
from ebmvk.training.step import Step
from ebmvk.training.stepping import Steps, Taken


class DeviceSteps(Steps):
    """The step of a model, compiled for a device at its first step, alone or together with other
    processes.

    device: its backend is a `Vulkan`. interruption: passed on to the other processes, and set if
    one of them is interrupted. doing: called before something that takes long, with a line that
    says what it is.
    """

    def __init__(
        self, config: Config, model: LanguageModel, device: Device, recovery: Recovery, interruption: Interruption,
        ranks: Ranks = ALONE, doing: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        super().__init__("vulkan", config, model, optim.build(model, config.training))
        assert isinstance(device.backend, Vulkan)
        self.device, self.ranks = device, ranks
        self._recovery, self._interruption, self._doing = recovery, interruption, doing
        self._pure = Step(model, config, Traceable())
        self._samples = samples(config) if config.splats.enable_soc else 0
        self._slots = len(seen.empty(config).get(seen.SEEN, ()))
        self._waiting: list[int] = []  # how many states are in each slot that is in use
        self._seen: list[Tensor] = []  # samples that were read from the slots
        self._programs: Programs = self._new_programs(config.training.accumulation_steps)
        self._layers: DeviceLayers | None = None
        self._ahead = False  # the device has taken steps that the host doesn't know
        self._count = 0  # updates so far
        self.begin()

    def resized(self, config: Config) -> DeviceSteps:
        """See `Steps.resized`. Both use the weights and moments that are on the device."""
        other = copy.copy(self)
        other.config, other._layers, other._waiting, other._seen = config, None, [], []
        return other

    def layers(self) -> DeviceLayers:
        """See `Steps.layers`. They use the weights on the device, and batches as large as a pass.

        Raises BatchTooLarge as `take`, if the step's program doesn't exist yet and doesn't fit.
        """
        training = self.config.training
        if self._programs.chain is None:
            list(self.plan(torch.zeros(training.windows_per_step, self.config.data.seq_length + 1, dtype=torch.int64)))
        if self._layers is None:
            assert self._programs.chain is not None
            compiled = partial(compile_function, of=self._programs.chain)
            self._layers = DeviceLayers(self.model, compiled, training.batch_size, self._doing)
        return self._layers

    def restore(self, found: Checkpoint) -> None:
        """See `Steps.restore`."""
        super().restore(found)
        self.begin()

    def begin(self) -> None:
        """See `Steps.begin`."""
        parameters = {name: own.detach() for name, own in self.model.named_parameters()}
        saved = self.optimizer.state_dict()
        self._count = _updates(saved)
        state = update.empty_state(parameters, self._pure.rules)
        self._programs.start(parameters, {name: saved[name] if saved else value for name, value in state.items()})
        self._ahead, self._waiting = False, []

    def settle(self) -> None:
        """Read weights and moments from the device, unless the host has them already."""
        if not self._ahead:
            return
        parameters, state, slots = self._programs.read()
        self._seen += [slot[:n].clone() for slot, n in zip(slots, self._waiting, strict=False)]
        self._waiting = []
        with torch.no_grad():
            for name, own in self.model.named_parameters():
                own.copy_(parameters[name])
        count = torch.tensor(float(self._count))
        moved = {f"{name}/step": count for name, rule in self._pure.rules.items() if not rule.muon}
        self.optimizer.load_state_dict(state | moved)
        self._ahead = False

    def samples(self) -> list[Tensor]:
        """See `Steps.samples`."""
        found, self._seen = self._seen, []
        return found

    def take(self, tokens: Tensor, step: int, batch: int) -> Taken:
        """Take a step, with the other ranks. See `Steps.take`."""
        self.ranks.tell("step", step=step, batch=batch)
        record, why = self.attempt(tokens, step)
        if record is None:
            raise self._out_of_memory(tokens, step, why)
        values = {name: float(value) for name, value in record.items()}
        if not values.pop("finite"):
            raise self._non_finite(tokens, step, values)
        parts = {name.removeprefix("part."): value for name, value in values.items() if name.startswith("part.")}
        lr = optim.lr_at(step, self.config.training)
        return Taken(values["total"], parts, values["norm"], lr, None, self._did())

    def attempt(self, tokens: Tensor, step: int) -> tuple[dict[str, Tensor] | None, str]:
        """This rank's part of a step: its record, or None and the reason if memory runs out. If the
        record isn't `finite`, weights and moments are as they were."""
        if self._slots and len(self._waiting) == self._slots:
            self._empty_slots()
        scalars = self._scalars(optim.lr_at(step, self.config.training), self._count + 1)
        given = self._given(tokens, step, self.config.training.accumulation_steps)
        record, why = self._attempted(lambda: self._programs.run(given, scalars, self._making))
        if record is not None and bool(record["finite"]):
            self._count, self._ahead = self._count + 1, True
            if self._slots:
                self._waiting.append(self._sampled(tokens))
        return record, why

    def _empty_slots(self) -> None:
        """Make room for the next samples. Only the first rank consolidates."""
        if self.ranks.rank == 0:
            self.settle()
        self._waiting = []

    def plan(self, tokens: Tensor) -> Iterator[str]:
        """See `Steps.plan`."""
        parts = self.config.training.accumulation_steps
        _, why = self._attempted(lambda: self._ready(tokens, 0, parts))
        if why:
            raise self._out_of_memory(tokens, 0, why)
        nbytes = self._programs.nbytes
        accumulated = " and their gradients" if parts > 1 else ""
        yield (
            f"plan        {amount(sum(nbytes.values()))} on the device at the peak of a step: "
            f"{amount(nbytes['kept'])} for weights and moments{accumulated}, {amount(nbytes['arena'])} for "
            "intermediate results"
        )

    def profile(self, tokens: Tensor, step: int) -> dict[str, tuple[int, Profile]]:
        """See `Steps.profile`."""
        scalars = self._scalars(optim.lr_at(step, self.config.training), self._count + 1)
        if self._slots:
            scalars["slot"] = torch.tensor(0)  # what it overwrites is put back, too
        given = self._given(tokens, step, self.config.training.accumulation_steps)
        return self._programs.profile(given, scalars)

    # ---- what a step is given --------------------------------------------------------------------

    def _new_programs(self, passes: int) -> Programs:
        assert isinstance(self.device.backend, Vulkan)
        meet = self._meet if self.ranks.size > 1 else None
        return programs(self._pure, self.device.backend, passes=passes, meet=meet, slots=seen.empty(self.config))

    def _meet(self, small: Tensor, large: Sequence[Tensor]) -> None:
        """Sums over the ranks, in place. small: float64; it goes first, so that a lost rank is
        noticed before much is sent. An interruption of any rank becomes one of all."""
        known = torch.cat((small, small.new_tensor([float(self._interruption.came or self.ranks.interrupted)])))
        self.ranks.add_up([known])
        small.copy_(known[:-1])
        if known[-1]:  # never reset here, because a signal may have come meanwhile
            self._interruption.came = True
        self.ranks.add_up(large)

    def _given(self, tokens: Tensor, step: int, parts: int) -> list[Pass]:
        """The inputs of each of this rank's passes."""
        shares = [Share(self.ranks.rank, self.ranks.size, batch=number, batches=parts) for number in range(parts)]
        seed, config, length = self.config.run.seed, self.config, tokens.shape[1] - 1
        places = self._places(tokens, step)
        found: list[Pass] = []
        for share in shares:
            batch = prepare(self.model, tokens, config, seed=seed, step=step, share=share, fixed=True)
            given: dict[str, Any] = {"pass": batch}
            if self._samples:
                rows = share.rows(len(tokens))
                local = places - rows.start * length
                given["mine"] = (local >= 0) & (local < (rows.stop - rows.start) * length)
                given["place"] = local * given["mine"]
            found.append(given)
        return found

    def _places(self, tokens: Tensor, step: int) -> Tensor:
        """The positions that consolidation sees, with padding."""
        there = (tokens[:, 1:] >= 0).flatten()
        chosen = there.nonzero()[:, 0][sampled(self.config, int(there.sum()), step + 1)][: self._samples]
        places = torch.zeros(self._samples, dtype=torch.int64)
        places[: len(chosen)] = chosen
        return places

    def _sampled(self, tokens: Tensor) -> int:
        """The number of positions that consolidation sees; the rest of the sample is padding."""
        return min(self._samples, int((tokens[:, 1:] >= 0).sum()))

    def _scalars(self, lr: float, count: int) -> dict[str, Tensor]:
        slot = {"slot": torch.tensor(len(self._waiting))} if self._slots else {}
        return {"lr": torch.tensor(lr), "count": torch.tensor(float(count))} | slot

    def _ready(self, tokens: Tensor, step: int, parts: int) -> None:
        self._programs.ready(self._given(tokens, step, parts), self._scalars(0.0, 1), self._making)

    def _making(self) -> None:
        self._doing("compiling a step for the device")

    def _did(self) -> dict[str, Any]:
        ran = self._programs.ran
        names = ("dispatches", "copies", "submissions", "bytes_up", "bytes_down", "seconds")
        did = {name: sum(getattr(own, name) for own in ran) for name in names}
        return {"cpu_ops": self._programs.cpu_ops, "waits": len(ran)} | did

    # ---- what can go wrong -----------------------------------------------------------------------

    @staticmethod
    def _attempted(work: Callable[[], Any]) -> tuple[Any, str]:
        """The result of `work`, or None and the reason if memory runs out. The error, which would
        keep memory, is dropped."""
        try:
            return work(), ""
        except (MemoryError, RuntimeError, OutOfMemory) as error:
            if not (isinstance(error, OutOfMemory) or is_out_of_memory(error)):
                raise
            return None, error.what if isinstance(error, OutOfMemory) else str(error)

    def _out_of_memory(self, tokens: Tensor, step: int, why: str) -> BatchTooLarge:
        """The error to raise. To find a batch that fits, smaller ones are compiled and their memory
        is allocated, but they aren't run."""
        self.settle()
        windows = self.config.training.windows_per_step

        def fits(rows: int) -> bool:
            self._layers = None  # its programs, too, hold what the next line frees
            self._programs = self._new_programs(windows // rows)
            self.begin()
            return not self._attempted(lambda: self._ready(tokens, step, windows // rows))[1]

        error = self._recovery.out_of_memory(step, self._recovery.flags_that_fit(self.ranks.size, fits))
        error.why = why
        return error

    def _non_finite(self, tokens: Tensor, step: int, values: Mapping[str, float]) -> NonFinite:
        """The error to raise, with the first bad tensor of the same step on the host."""
        self.settle()
        passes = Passes(self.model, self.device, self.config, tokens, step, self.config.training.accumulation_steps)
        self.optimizer.zero_grad()
        losses = attempted(self.model, passes, lambda bad: self._recovery.non_finite(bad, step))
        bad = None
        if losses is not None:
            parts = {name: float(value) for name, value in losses.parts.items()}
            bad = finite.first_bad(self.model, losses.total, self.optimizer.gradient_norm(), parts, passes.run)
        self.optimizer.zero_grad()
        named = (name.replace("part.", "loss part ") for name, value in values.items() if not math.isfinite(value))
        return self._recovery.non_finite(bad or f"on the device, {next(named, 'a gradient')}", step)


def _updates(saved: Mapping[str, Tensor]) -> int:
    """The number of updates that the optimiser's state has seen.

    Raises CheckpointError if it differs between parameters.
    """
    counts = {int(value) for name, value in saved.items() if name.endswith("/step")}
    if len(counts) > 1:
        raise CheckpointError(
            f"optimiser state: parameters have had {min(counts)} to {max(counts)} updates",
            why="on a Vulkan device all parameters are updated together",
            hint="resume with --device cpu",
        )
    return counts.pop() if counts else 0
