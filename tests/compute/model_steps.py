"""Training steps of this package's models, compiled and in torch."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from model_support import VOCABULARY, build, variant

from ebmvk.compute.step import CompiledStep, compile_step
from ebmvk.config.schema import Config, DataConfig, TrainingConfig
from ebmvk.engine.traceable import Traceable
from ebmvk.objective import cross_entropy
from ebmvk.objective.batch import prepare
from ebmvk.ranks import Share
from ebmvk.training import optim, update
from ebmvk.training.step import Step

LENGTH, WINDOWS = 12, 8
TARGETS = (12, 1, 1, 7, 2, 12, 1, 3)  # the number in each window, if windows end early
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"model": "plain"},
    "tinygpt": {"model": "tinygpt"},
    "minillm": {"model": "minillm", "gradient_checkpointing": True},
    "experts": {"model": "tinygpt", "use_moe": True},
    "one expert": {"model": "minillm", "use_moe": True, "moe_active": 1},
    "ebm": {},
    "ebm score": {"decoder": "transformer"},
    "infinito": {"model": "infinito", "memory_slots": 7},
}
Trees = tuple[Any, Any, Any, Any]


@dataclass(frozen=True)
class Case:
    """passes: the number of batches in a step, whose gradients are added up. few: with at most this
    many logits, cross-entropy is torch's and not this package's operation. sample: whether the
    record has states for a memory."""

    model: str
    passes: int = 1
    optimizer: str = "adamw"
    few: int = 0
    layers: int = 1
    sample: bool = False

    def __str__(self) -> str:
        return f"{self.model}-{self.passes}-{self.optimizer}-{self.few}-{self.layers}"


@dataclass
class Made:
    """step: the step in torch. compiled: the same step, compiled. parameters: perturbed, so that
    every part has an effect."""

    case: Case
    net: Any
    config: Config
    step: Step
    parameters: dict[str, Tensor]
    state: dict[str, Tensor]
    compiled: CompiledStep = field(init=False)

    def batch(self, number: int) -> dict[str, Any]:
        """The arrays that the host prepares for a step, in fixed shapes."""
        tokens = torch.randint(VOCABULARY, (WINDOWS, LENGTH + 1), generator=torch.Generator().manual_seed(number))
        for row in range(WINDOWS):
            tokens[row, TARGETS[(row + number) % WINDOWS] + 1 :] = -1
        shares = [Share(batch=i, batches=self.case.passes) for i in range(self.case.passes)]
        batches = [prepare(self.net, tokens, self.config, seed=7, step=number, share=own, fixed=True) for own in shares]
        return {"batches": batches} | ({"sample": torch.arange(number, 90, 7)[:12]} if self.case.sample else {})

    def stepped(self, parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
        """The step with its batches and its sample in one tree."""
        return self.step(parameters, state, batch["batches"], scalars, batch.get("sample"))

    def scalars(self, number: int) -> dict[str, Tensor]:
        return {"lr": torch.tensor(optim.lr_at(number, self.config.training)), "count": torch.tensor(number + 1.0)}

    def arguments(self, number: int = 0) -> Trees:
        return self.parameters, self.state, self.batch(number), self.scalars(number)


def make(case: Case, recorder: Any) -> Made:
    """Compiles a case for a device, or, if `recorder` is None, for the reference in numpy."""
    config = dataclasses.replace(variant("ebm"), **{"dropout": 0.2, "n_layers": case.layers, **MODELS[case.model]})
    net = build(config).train()
    training = TrainingConfig(
        batch_size=WINDOWS // case.passes, accumulation_steps=case.passes, precision="float32", lambda_denoise=0.5,
        lambda_spread=0.3, moe_balance=0.5, steps=20, warmup_steps=2, grad_clip=1.0, learning_rate=1e-3,
        denoise_form="score" if config.decoder == "transformer" else "cross-entropy",
        optimizer=case.optimizer,  # type: ignore[arg-type]
    )  # fmt: skip
    whole = Config(model=net.config, training=training, data=DataConfig(windows="document"))
    step = Step(net, whole, Traceable())
    torch.manual_seed(1)
    parameters = {name: p.detach() + 0.05 * torch.randn_like(p) for name, p in net.named_parameters()}
    backend = "reference" if recorder is None else "vulkan"
    made = Made(case, net, whole, step, parameters, update.empty_state(parameters, step.rules))
    made.compiled = compile_step(made.stepped, backend=backend, device=recorder, check=False)  # type: ignore[arg-type]
    before, cross_entropy.FEW_LOGITS = cross_entropy.FEW_LOGITS, case.few
    try:
        made.compiled.compile(*made.arguments())
    finally:
        cross_entropy.FEW_LOGITS = before
    return made


def in_torch(made: Made, arguments: Any, dtype: torch.dtype) -> Any:
    """The step in torch. float64 is the oracle."""
    cast = pytree.tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, arguments)
    old, few = torch.get_default_dtype(), cross_entropy.FEW_LOGITS
    torch.set_default_dtype(dtype)
    cross_entropy.FEW_LOGITS = made.case.few
    _clear()
    try:
        return made.stepped(*cast)
    finally:
        torch.set_default_dtype(old)
        cross_entropy.FEW_LOGITS = few
        _clear()


def _clear() -> None:
    """Empties caches of tensors that depend on the default type."""
    from ebmvk.compute.capture import _clear_caches

    _clear_caches()


def relative(got: Tensor, want: Tensor) -> float:
    """The norm of the error divided by the norm of `want`."""
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
