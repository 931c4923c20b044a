"""The models by the name that `--model` gives them."""

from __future__ import annotations

from collections.abc import Callable

from ebmvk.config.checks import check_model
from ebmvk.config.schema import ModelConfig
from ebmvk.model.ebm import EnergyModel
from ebmvk.model.infinito import Infinito
from ebmvk.model.language import LanguageModel
from ebmvk.model.transformer import GPT, PlainModel

MODELS: dict[str, Callable[[ModelConfig, int], LanguageModel]] = {
    "ebm": EnergyModel,
    "plain": PlainModel,
    "tinygpt": GPT,
    "minillm": GPT,
    "infinito": Infinito,
}


def build_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """An untrained model.

    Raises:
        ConfigError: sizes or switches that contradict each other.
    """
    check_model(config)
    return MODELS[config.model](config, vocab_size)
