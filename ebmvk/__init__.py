"""ebmvk: energy-based language models on the hypersphere, on any Vulkan device and on any CPU.

`train`, `evaluate`, `diagnose` and `export` are modules that can also be called:
`ebmvk.train(size="nano")` does what `python -m ebmvk.train --size nano` does, and `import
ebmvk.train` gives the same object. `Model` opens what was trained. Bad input raises an
`EbmvkError`.

>>> import ebmvk
>>> model = ebmvk.Model.open("runs/first")
>>> text = model.generate("The", 5, temperature=0.7)

The rooms of the package, from the top. A room imports only from those below it.

| room | the question that it answers |
|---|---|
| `cli` | What does a command do, and which flags does it have? |
| `api` | How do I use a trained model in Python? |
| `diagnosis` | What is fine with a checkpoint, and what should change? |
| `sweeps` | How do many training runs compare? |
| `training` | How does a run get from its settings to a finished model? |
| `monitoring` | What does a run show while it trains, and when does it warn? |
| `initialisation` | Where do the parameters of a new run start? |
| `report` | How do figures become tables, pictures and pages? |
| `evaluation` | How good is a model, in exact figures? |
| `certification` | Are the samplers right? |
| `decoding` | How does a model write text? |
| `memory` | How do splats become a part of the law of tokens? |
| `sampling` | How is a token drawn by way of a point on the sphere? |
| `objective` | What does training minimise? |
| `splats` | How do many contexts become splats? |
| `runs` | What is in a run folder, and how is it written and read safely? |
| `model` | How does a context become energies of tokens? |
| `compute` | How does a training step of torch become kernels of a Vulkan device? |
| `sphere` | What are distances, moves and laws on the unit sphere? |
| `engine` | How is an operation computed, and on which device? |
| `data` | How does a text become batches of tokens? |
| `ranks` | How do several processes work on one run? |
| `config` | Which settings are there, and which value does each get? |
| `host` | What do this machine and the shell provide? |
| `errors` | What may go wrong, and with which exit status? |
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
    from ebmvk.compute.function import compile_function
    from ebmvk.compute.step import compile_step

process.tune()  # before anything of ours imports torch
sys.meta_path.append(OldNames())

__version__ = "0.1.0"
__all__ = [
    "Diagnosed", "EbmvkError", "Energy", "Evaluated", "Model", "NearSplat", "NearToken", "Strategy", "Trained",
    "__version__", "compile_function", "compile_step", "diagnose", "evaluate", "export", "train",
]  # fmt: skip
_CALLED = ("diagnose", "evaluate", "export", "train")


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, because importing torch takes seconds."""
    if name in _CALLED:
        return importlib.import_module(f"ebmvk.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'ebmvk' has no attribute {name!r}")
    if name == "compile_step":
        from ebmvk.compute.step import compile_step

        return compile_step
    if name == "compile_function":
        from ebmvk.compute.function import compile_function

        return compile_function
    from ebmvk import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__all__)
