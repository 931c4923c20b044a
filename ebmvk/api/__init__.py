"""The Python interface: `Model`, and what the functions `train`, `evaluate` and `diagnose` return.

| module | what is in it |
|---|---|
| `model` | `Model`: a trained model as an object |
| `results` | what its methods and the functions of commands return |
| `arguments` | checks of what callers pass |

People import these names from `ebmvk`, which loads this package when it is first needed.
"""

from ebmvk.api.model import Model
from ebmvk.api.results import Diagnosed, Energy, Evaluated, NearSplat, NearToken, Trained
from ebmvk.decoding.strategies import Strategy

__all__ = ["Diagnosed", "Energy", "Evaluated", "Model", "NearSplat", "NearToken", "Strategy", "Trained"]
