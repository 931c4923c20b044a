"""Importing this module registers `ebmvk` as a model of lm-evaluation-harness (an extra)."""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from ebmvk.evaluation.requests import Scorer
from ebmvk.sampling.registry import SamplerName


@register_model("ebmvk")
class HarnessModel(LM):  # type: ignore[misc]
    """`lm_eval.simple_evaluate(model="ebmvk", model_args="checkpoint=RUN,memory=both",
    tasks=[...])`.

    Args:
        sampler, seed: for tasks that ask for text. batch_size: "auto" means the default of
            `Scorer.open`.
        options: other arguments of `Scorer.open`.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        sampler: SamplerName = "exact",
        seed: int = 42,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,  # noqa: ARG002  # the harness passes it to every model
        **options: Any,
    ) -> None:
        super().__init__()
        if batch_size is not None and not str(batch_size).startswith("auto"):
            options["batch_size"] = int(batch_size)
        self._scorer = Scorer.open(str(checkpoint), **options)
        self._sampler, self._seed = sampler, seed

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with tqdm(total=len(requests), disable=disable_tqdm, desc="log p(continuation)") as bar:
            return self._scorer.log_likelihoods([request.args for request in requests], bar.update)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        with tqdm(total=len(requests), disable=disable_tqdm, desc="log p(text)") as bar:
            return self._scorer.rolling([request.args[0] for request in requests], bar.update)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with tqdm(total=len(requests), disable=disable_tqdm, desc="text") as bar:
            given = [request.args for request in requests]
            return self._scorer.texts(given, sampler=self._sampler, seed=self._seed, done=bar.update)
