"""ebmvk: energy-based language models on the hypersphere, on any Vulkan device and on any CPU.

`train`, `evaluate`, `diagnose` and `export` are modules that can also be called:
`ebmvk.train(size="nano")` does what `python -m ebmvk.train --size nano` does, and `import
ebmvk.train` gives the same object. `Model` opens what was trained. Bad input raises an
`EbmvkError`.

>>> import ebmvk
>>> model = ebmvk.Model.open("runs/first")
>>> text = model.generate("The", 5, temperature=0.7)

The subpackages. The docstring of each lists its modules.

| subpackage | what is in it |
|---|---|
| `cli` | commands, flags, exit status |
| `api` | the Python interface |
| `diagnosis`, `sweeps` | what `ebmvk diagnose` and `ebmvk sweep` do |
| `training` | the loop, the optimiser, resuming |
| `monitoring`, `initialisation` | a run while it trains; where its parameters start |
| `report` | HTML pages |
| `evaluation`, `certification` | figures of models; tests of samplers |
| `decoding` | writing text: temperature, top-p, strategies |
| `memory`, `sampling` | the memory of a model; samplers of the next token |
| `objective`, `splats`, `runs` | the loss; splats; run folders and checkpoints |
| `model`, `sphere` | models; mathematics of the sphere |
| `engine` | operations and devices: `--device` |
| `data`, `ranks` | texts and tokenizers; several processes |
| `config`, `host` | settings; the process and its machine |
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
    """Import a public name when it is first used, because torch takes seconds."""
    if name in _CALLED:
        return importlib.import_module(f"ebmvk.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'ebmvk' has no attribute {name!r}")
    from ebmvk import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
