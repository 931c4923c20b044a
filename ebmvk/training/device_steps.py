"""Steps on a Vulkan device: forward, backward and update are one planned program.

Weights and moments stay on the device. The host prepares a batch and two numbers for each step and
gets a record back; it reads the weights only for checkpoints, evaluations and consolidation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebmvk.compute.function import compile_function
from ebmvk.compute.step import CompiledStep, compile_step
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
from ebmvk.objective.batch import Batch, prepare
from ebmvk.ranks import Share
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.training import finite, optim, seen, update
from ebmvk.training.passes import Passes, attempted
from ebmvk.training.recovery import Recovery
from ebmvk.training.step import Step
from ebmvk.training.stepping import Steps, Taken

Tree = Any


class DeviceSteps(Steps):
    """The step of a model, compiled for a device at its first step.

    device: its backend is a `Vulkan`. doing: told what takes long.
    """

    def __init__(
        self, config: Config, model: LanguageModel, device: Device, recovery: Recovery,
        doing: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        super().__init__("vulkan", config, model, optim.build(model, config.training))
        assert isinstance(device.backend, Vulkan)
        self.device, self._recovery, self._doing = device, recovery, doing
        self._pure = Step(model, config, Traceable())
        self._step: CompiledStep = compile_step(self._called, device=device.backend)
        self._layers: DeviceLayers | None = None
        self._ahead = False  # the device has taken steps that the host doesn't know
        self._count = 0  # updates so far
        self._slots = 0  # of `seen`
        self._waiting: list[int] = []  # how many states are in each slot that is in use
        self._samples: list[Tensor] = []  # read from there
        self._start()

    def resized(self, config: Config) -> DeviceSteps:
        """Weights and moments on the device are shared."""
        other = copy.copy(self)
        other.config, other._layers, other._waiting, other._samples = config, None, [], []
        return other

    def layers(self) -> DeviceLayers:
        """See `Steps.layers`. They read the weights on the device, in batches of a pass.

        Raises BatchTooLarge as `take`, if the step has no program yet and can't have one.
        """
        training = self.config.training
        if not self._step.programs:
            list(self.plan(torch.zeros(training.windows_per_step, self.config.data.seq_length + 1, dtype=torch.int64)))
        if self._layers is None:
            compiled = partial(compile_function, of=self._step)
            self._layers = DeviceLayers(self.model, compiled, training.batch_size, self._doing)
        return self._layers

    def restore(self, found: Checkpoint) -> None:
        """See `Steps.restore`."""
        super().restore(found)
        self._start()

    def settle(self) -> None:
        """Read weights and moments from the device, unless the host has them already."""
        if not self._ahead:
            return
        parameters, state = self._step.read()
        slots = state.pop(seen.SEEN, ())
        self._samples += [slot[:n].clone() for slot, n in zip(slots, self._waiting, strict=False)]
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
        found, self._samples = self._samples, []
        return found

    def take(self, tokens: Tensor, step: int, batch: int) -> Taken:  # noqa: ARG002
        """See `Steps.take`."""
        if self._slots and len(self._waiting) == self._slots:
            self.settle()
        given, lr = self._batch(tokens, step), optim.lr_at(step, self.config.training)
        scalars = self._scalars(lr, self._count + 1)
        record, why = self._attempted(lambda: self._step.run(given, scalars, self._making))
        if record is None:
            raise self._out_of_memory(tokens, step, why)
        values = {name: float(value) for name, value in record.items()}
        if not values.pop("finite"):
            raise self._non_finite(tokens, step, values)
        self._count, self._ahead = self._count + 1, True
        if self._slots:
            self._waiting.append(self._sampled(tokens))
        parts = {name.removeprefix("part."): value for name, value in values.items() if name.startswith("part.")}
        return Taken(values["total"], parts, values["norm"], lr, None, self._did())

    def plan(self, tokens: Tensor) -> Iterator[str]:
        """See `Steps.plan`."""
        compiled, why = self._attempted(lambda: self._compile(self._batch(tokens, 0), self._scalars(0.0, 1)))
        if compiled is None:
            raise self._out_of_memory(tokens, 0, why)
        plan = compiled.runner.plan
        nbytes = plan.nbytes
        yield (
            f"plan        {amount(plan.peak_bytes)} on the device at the peak of a step: "
            f"{amount(nbytes['kept'])} for weights and moments, {amount(nbytes['arena'])} for what is in between"
        )

    # ---- what a step is given --------------------------------------------------------------------

    def _called(
        self, parameters: Tree, state: Tree, batch: Tree, scalars: Tree
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        kept = {name: own for name, own in state.items() if name != seen.SEEN}
        new, kept, record = self._pure(parameters, kept, batch["passes"], scalars, batch.get("sample"))
        if seen.SEEN in state:
            kept[seen.SEEN] = seen.put(state[seen.SEEN], record.pop("sample"), scalars["slot"])
        return new, kept, record

    def _start(self) -> None:
        """Let the next step begin with the host's weights and moments."""
        parameters = {name: own.detach() for name, own in self.model.named_parameters()}
        saved = self.optimizer.state_dict()
        self._count = _updates(saved)
        state = update.empty_state(parameters, self._pure.rules)
        slots = seen.empty(self.config)
        kept = {name: saved[name] if saved else value for name, value in state.items()}
        self._step.start(parameters, kept | slots)
        self._ahead, self._waiting, self._slots = False, [], len(slots.get(seen.SEEN, ()))

    def _batch(self, tokens: Tensor, step: int, passes: int | None = None) -> dict[str, Any]:
        parts = passes or self.config.training.accumulation_steps
        shares = [Share(batch=number, batches=parts) for number in range(parts)]
        given: dict[str, Any] = {"passes": [self._pass(tokens, step, share) for share in shares]}
        if self._slots:
            there = (tokens[:, 1:] >= 0).flatten()
            places = there.nonzero()[:, 0][sampled(self.config, int(there.sum()), step + 1)]
            given["sample"] = torch.zeros(samples(self.config), dtype=torch.int64)
            given["sample"][: len(places)] = places
        return given

    def _pass(self, tokens: Tensor, step: int, share: Share) -> Batch:
        seed = self.config.run.seed
        return prepare(self.model, tokens, self.config, seed=seed, step=step, share=share, fixed=True)

    def _sampled(self, tokens: Tensor) -> int:
        """The number of positions that consolidation sees; the rest of the sample is padding."""
        return min(samples(self.config), int((tokens[:, 1:] >= 0).sum()))

    def _scalars(self, lr: float, count: int) -> dict[str, Tensor]:
        slot = {"slot": torch.tensor(len(self._waiting))} if self._slots else {}
        return {"lr": torch.tensor(lr), "count": torch.tensor(float(count))} | slot

    def _compile(self, given: Tree, scalars: Tree) -> Any:
        return self._step.ready(given, scalars, self._making)

    def _making(self) -> None:
        self._doing("compiling a step for the device")

    def _did(self) -> dict[str, Any]:
        ran = self._step.ran
        assert ran is not None
        names = ("dispatches", "copies", "submissions", "bytes_up", "bytes_down", "seconds")
        return {"cpu_ops": self._step.cpu_ops} | {name: getattr(ran, name) for name in names}

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
        """The error to raise. Smaller batches are compiled and their memory is taken, but they
        aren't run."""
        self.settle()

        def fits(rows: int) -> bool:
            passes = min(2, len(tokens) // rows)  # two, so that sums of gradients are there
            self._layers = None  # its programs, too, hold what the next line frees
            self._step = compile_step(self._called, device=self.device.backend, check=False)
            self._start()
            given = self._batch(tokens[: passes * rows], step, passes)
            return self._attempted(lambda: self._compile(given, self._scalars(0.0, 1)))[0] is not None

        error = self._recovery.out_of_memory(step, self._recovery.flags_that_fit(1, fits))
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
