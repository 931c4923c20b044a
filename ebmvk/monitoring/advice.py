"""Advice on a run that ended with a poor result: each line names a flag and a value."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ebmvk.config.schema import Config, Size
from ebmvk.config.sizes import PRESETS, fast_precision, smaller
from ebmvk.report.tables import number

HIGH_PERPLEXITY = 100.0  # per token
OVERFITTED = 0.5  # nats by which the loss is lower on training text than on validation text
SLOW = 500.0  # tokens per second
LONG = 256  # tokens of a window, beyond which attention takes most of the time
SHORT = 3.0  # epochs, below which more steps help


def is_out_of_memory(error: BaseException) -> bool:
    """True if torch or the system couldn't get the memory that it asked for."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def usual_rate(config: Config) -> float:
    """The default learning rate of the run's size."""
    rate = PRESETS[config.run.size]["learning_rate"]
    assert isinstance(rate, float)
    return rate


def lower_rate(config: Config) -> str:
    """The flag for half the learning rate, or for the size's default if that is lower still."""
    rate, usual = config.training.learning_rate, usual_rate(config)
    return f"--lr {usual if rate > 2 * usual else rate / 2:g}"


def why_it_diverged(config: Config) -> str:
    """The likely cause of a diverged run, with its values."""
    rate, usual = config.training.learning_rate, usual_rate(config)
    if rate > 2 * usual:
        return f"--lr {rate:g} is {rate / usual:,.3g} times that of --size {config.run.size}"
    return f"--lr {rate:g} is too high for this model, or --precision {config.training.precision} too low"


def more_steps(steps: int, epochs: float, size: Size) -> int:
    """A larger number of steps: at least twice `steps`. It is enough to read the text `SHORT`
    times, but isn't above the default of the size unless twice `steps` is.
    """
    most = PRESETS[size].get("steps", steps)
    assert isinstance(most, int)
    return max(2 * steps, min(most, math.ceil(SHORT * steps / max(epochs, 1e-9))))


def more_dropout(dropout: float) -> str:
    """The flag for 0.1 more dropout, at most 0.5."""
    return f"--dropout {min(0.5, dropout + 0.1):g}"


def advice(
    config: Config, *, perplexity: float, nats: float, train_nats: float, rose: bool, rate: float, epochs: float
) -> Iterator[str]:
    """Lines about a finished run.

    Args:
        perplexity, nats: the perplexity and the nats per token of validation text. train_nats: nats
        per token in the last training steps.
        rose: the validation loss was lower at an earlier step.
        rate: tokens per second.
        epochs: passes over the training text.
    """
    training, model = config.training, config.model
    if rose and nats - train_nats > OVERFITTED:  # a gap is harmless while validation still improves
        yield (
            f"the loss is {nats - train_nats:.2f} nats per token higher on validation text than on training text: "
            f"the model learns the training text by heart; use {more_dropout(model.dropout)} or --patience 3"
        )
    elif perplexity > HIGH_PERPLEXITY:
        more = (
            f"--steps {more_steps(training.steps, epochs, config.run.size)}; the text was read {epochs:.2g} times"
            if epochs < SHORT
            else f"--latent-dim {2 * model.latent_dim}, or more text"
        )
        yield f"perplexity {number(perplexity, ',.0f')} per token is above {HIGH_PERPLEXITY:.0f}: use {more}"
    if rate < SLOW and (faster := ", or ".join(_faster(config))):
        yield f"{rate:,.0f} tokens per second is slow: use {faster}"


def _faster(config: Config) -> Iterator[str]:
    """Flags that make a token cheaper than it is now."""
    data, layers = config.data, config.model.n_layers
    half = data.seq_length // 2
    if config.training.precision == "float32" and fast_precision() == "bfloat16":
        yield "--precision bfloat16"
    if data.seq_length > LONG:
        yield f"--seq-length {half}" + (f" --stride {half}" if data.stride and data.stride > half else "")
    elif flag := smaller(config):
        yield flag
    elif layers > 1:
        yield f"--n-layers {layers // 2}"
