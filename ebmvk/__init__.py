"""ebmvk: energy-based language models on the hypersphere, on any Vulkan device and on any CPU."""

from typing import TYPE_CHECKING

from ebmvk import process

if TYPE_CHECKING:
    from ebmvk.api import Energy, Model, NearSplat, NearToken, Strategy

process.tune()  # before anything of ours imports torch

__version__ = "0.1.0"
__all__ = ["Energy", "Model", "NearSplat", "NearToken", "Strategy", "__version__"]


def __getattr__(name: str) -> object:
    """The public names, imported when they are first asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'ebmvk' has no attribute {name!r}")
    from ebmvk import api

    return getattr(api, name)
