"""The training loss.

| module | what is in it |
|---|---|
| `batch` | the inputs of a pass, prepared on the host |
| `losses` | a step's loss and its parts: cross-entropy, denoising, spread, terms of some models |
| `cross_entropy` | cross-entropy without holding all logits |
| `noise` | noise levels of denoising and their units |
"""
