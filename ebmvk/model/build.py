"""A model from its settings."""

from __future__ import annotations

from ebmvk.config.checks import check_model
from ebmvk.config.models import MODELS
from ebmvk.config.schema import ModelConfig
from ebmvk.model.language import LanguageModel


def build_model(config: ModelConfig, vocab_size: int) -> LanguageModel:
    """An untrained model.

    Raises:
        ConfigError: settings that contradict each other.
    """
    check_model(config)
    model: LanguageModel = MODELS[config.model].load()(config, vocab_size)
    return model
