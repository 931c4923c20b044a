"""What to do about a run that disappoints: a line for each sign, naming a flag and a value."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ebmvk.config.schema import Config, Size
from ebmvk.config.sizes import PRESETS, fast_precision, smaller
from ebmvk.report.tables import number

HIGH_PERPLEXITY = 100.0  # per token
OVERFITTED = 0.5  # nats that training text is easier than validation text
SLOW = 500.0  # tokens per second
LONG = 256  # tokens of a window, beyond which attention is what costs
SHORT = 3.0  # epochs, below which there is more to learn from reading on


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or the system, could not have the memory it asked for."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def usual_rate(config: Config) -> float:
    """The default learning rate of the run's size."""
    rate = PRESETS[config.run.size]["learning_rate"]
    assert isinstance(rate, float)
    return rate


def lower_rate(config: Config) -> str:
    """The flag for half the learning rate, or for the size's default if the run's is more than twice that."""
    rate, usual = config.training.learning_rate, usual_rate(config)
    return f"--lr {usual if rate > 2 * usual else rate / 2:g}"


def why_it_diverged(config: Config) -> str:
    """The likely cause of a diverged run, with its values."""
    rate, usual = config.training.learning_rate, usual_rate(config)
    if rate > 2 * usual:
        return f"--lr {rate:g} is {rate / usual:,.3g} times that of --size {config.run.size}"
    return f"--lr {rate:g} is too high for this model, or --precision {config.training.precision} too low"


def more_steps(steps: int, epochs: float, size: Size) -> int:
    """A larger number of steps: enough to read the text `SHORT` times but no more than the size's own, or twice `steps`
    if that is larger."""
    most = PRESETS[size].get("steps", steps)
    assert isinstance(most, int)
    return max(2 * steps, min(most, math.ceil(SHORT * steps / max(epochs, 1e-9))))


def more_dropout(dropout: float) -> str:
    """The flag with a tenth more, a half at most."""
    return f"--dropout {min(0.5, dropout + 0.1):g}"


def advice(
    config: Config, *, perplexity: float, nats: float, train_nats: float, rose: bool, rate: float, epochs: float
) -> Iterator[str]:
    """Lines about a finished run.

    Args:
        perplexity, nats: per token of validation; train_nats: per token of the last steps; rose: validation was better
            at an earlier step. rate: tokens per second.
        epochs: passes over the training text.
    """
    training, model = config.training, config.model
    if rose and nats - train_nats > OVERFITTED:  # knowing the training text better does no harm while that helps
        yield (
            f"validation costs {nats - train_nats:.2f} nats per token more than training text: it is learned by heart; "
            f"take {more_dropout(model.dropout)} or --patience 3"
        )
    elif perplexity > HIGH_PERPLEXITY:
        more = (
            f"--steps {more_steps(training.steps, epochs, config.run.size)}, as the text was read {epochs:.2g} times"
            if epochs < SHORT
            else f"--latent-dim {2 * model.latent_dim}, or more text"
        )
        yield f"perplexity {number(perplexity, ',.0f')} per token is above {HIGH_PERPLEXITY:.0f}: take {more}"
    if rate < SLOW and (faster := ", or ".join(_faster(config))):
        yield f"{rate:,.0f} tokens per second are slow: take {faster}"


def _faster(config: Config) -> Iterator[str]:
    """What makes a token cheaper, and is not so already."""
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
