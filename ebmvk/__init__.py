"""ebmvk: energy-based language models on the hypersphere, on any Vulkan device and on any CPU.

`train`, `evaluate`, `diagnose` and `export` are modules that can also be called: `ebmvk.train(size="nano")` does what
`python -m ebmvk.train --size nano` does, and `import ebmvk.train` gives the same object. Bad input raises an
`EbmvkError`.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from ebmvk.errors import EbmvkError
from ebmvk.host import process
from ebmvk.host.old_names import OldNames

if TYPE_CHECKING:
    from ebmvk.api import Diagnosed, Energy, Evaluated, Model, NearSplat, NearToken, Strategy, Trained
    from ebmvk.cli.diagnose import diagnose
    from ebmvk.cli.evaluate import evaluate
    from ebmvk.cli.export import export
    from ebmvk.cli.train import train

process.tune()  # before anything of ours imports torch
sys.meta_path.append(OldNames())

__version__ = "0.1.0"
__all__ = [
    "Diagnosed", "EbmvkError", "Energy", "Evaluated", "Model", "NearSplat", "NearToken", "Strategy", "Trained",
    "__version__", "diagnose", "evaluate", "export", "train",
]  # fmt: skip
_CALLED = ("diagnose", "evaluate", "export", "train")


def __getattr__(name: str) -> object:
    """The public names, imported when they are first asked for: torch takes seconds."""
    if name in _CALLED:
        return importlib.import_module(f"ebmvk.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'ebmvk' has no attribute {name!r}")
    from ebmvk import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
