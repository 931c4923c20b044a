"""The certification suite: are the samplers right?

Twelve tests (1 to 10 are those of model section 7) of the samplers on one device, and broken
samplers that the tests must catch.

| module | what is in it |
|---|---|
| `suite` | tables of tests and of mutants, sizes; runs all |
| `dynamics` | 1 constraints; 3 reversibility, order of the energy error, conserved rotation |
| `laws` | 2 uniform law; 4, 6 von Mises-Fisher, temperature; 5 equipartition; 9 bias |
| `mixtures` | 7 weights of modes and mean state, also of block Gibbs and tempering |
| `tokens` | 8 tokens decoded from exact states and from chains, against p(v|c) |
| `contexts`, `draws`, `evidence` | test 8: its contexts, from a law to tokens, statistics |
| `agreement` | 10 one trajectory, and one answer of each operation, on every backend |
| `noise` | 11 independent random numbers |
| `exact` | 12 exact von Mises-Fisher samples, the normaliser |
| `mutants` | an integrator in plain torch that can be broken |
| `liars` | broken operations, latent laws and decoders |
| `chains` | targets, tasks, and who moves chains |
| `statistics` | p-values, bounds of total variation |
| `results` | checks, pictures, sizes |
"""
