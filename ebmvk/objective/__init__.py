"""The training loss.

| module | what is in it |
|---|---|
| `losses` | the loss of a step and its parts: cross-entropy, denoising, spread, the model's own |
| `cross_entropy` | cross-entropy without holding all logits |
| `noise` | noise levels of denoising and their units |
"""
