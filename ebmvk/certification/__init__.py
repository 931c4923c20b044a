"""The certification suite: twelve tests of the samplers (1 to 10 are those of model section 7), and broken ones that
they must catch.

| module | what is in it |
|---|---|
| `suite` | which tests there are, how large, which mutant each must catch; runs them |
| `dynamics` | 1 constraints; 3 reversibility, order of the energy error, conserved rotation |
| `laws` | 2 uniform law; 4 and 6 von Mises-Fisher, configurational temperature; 5 equipartition; 9 bias |
| `mixtures` | 7 weights of modes and mean state against exact ones; of block Gibbs and of tempering, too |
| `tokens` | 8 tokens decoded from exact states and from chains, flat and coarse to fine, against p(v|c); its contexts |
| `agreement` | 10 one trajectory, and one answer of each operation, on every backend |
| `noise` | 11 independent random numbers |
| `exact` | 12 exact von Mises-Fisher samples, the normaliser |
| `mutants` | the sampler in plain torch that can be broken |
| `liars` | what breaks whole operations, the latent law and its decoder |
| `chains` | targets, tasks, samplers |
| `statistics` | p-values, bounds of total variation |
| `results` | checks, pictures, sizes |
"""
