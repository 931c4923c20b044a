"""The certification suite: are the samplers right?

It runs twelve tests of the samplers on one device. Model section 7 lists tests 1 to 10. The tests
must also catch samplers that are broken on purpose.

| module | what is in it |
|---|---|
| `suite` | tables of the tests, the mutants and their sizes; runs them all |
| `dynamics` | 1 constraints; 3 reversibility, order of the energy error, conserved rotation |
| `laws` | 2 uniform law; 4, 6 von Mises-Fisher, temperature; 5 equipartition; 9 bias |
| `mixtures` | 7 weights of modes and mean state, also of block Gibbs and tempering |
| `tokens` | 8 tokens decoded from exact states and from chains, against p(v|c) |
| `contexts`, `draws`, `evidence` | test 8: its contexts, how tokens are drawn, its statistics |
| `agreement` | 10 one trajectory, and one answer of each operation, on every backend |
| `noise` | 11 independent random numbers |
| `exact` | 12 exact von Mises-Fisher samples, the normaliser |
| `mutants` | an integrator in plain torch that can be broken |
| `liars` | broken operations, latent laws and decoders |
| `chains` | targets, tasks, and the samplers that move chains |
| `statistics` | p-values, bounds of total variation |
| `results` | checks, pictures and sizes of tests |
"""
