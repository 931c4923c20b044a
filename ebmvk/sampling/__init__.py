"""Samplers: they draw the next token by way of a point on the sphere, the latent state x.

| module | what is in it |
|---|---|
| `registry` | `SAMPLERS`: every sampler that `--sampler` names, one entry each |
| `interface` | what a sampler is given and returns; a sampler of states as a sampler of tokens |
| `tokens` | `TokenSampler`: runs one sampler for a model and sums up its diagnostics |
| `latent` | the latent law p(x|c), exact samples of it, and the Bayes decoder from x to a token |
| `on_device` | the latent law in the memory of a Vulkan device |
| `annealed`, `schedule` | `langevin`: annealed Langevin chains, and their levels of concentration |
| `tempering` | `tempering`: replica exchange between concentrations |
| `gibbs` | `gibbs`: block Gibbs, component and state in turn |
| `coarse` | `coarse`: a neighbourhood of tokens first, then a token of it |
| `streams` | numbers of the random streams, one per use |
"""
