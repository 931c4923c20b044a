"""The certification suite of model section 7: ten tests of the samplers, and broken ones that they must catch.

| module | what is in it |
|---|---|
| `suite` | which tests there are, how large, which mutant each must catch; runs them |
| `dynamics` | 1 constraints; 3 reversibility, order of the energy error, conserved rotation |
| `laws` | 2 uniform law; 4 and 6 von Mises-Fisher, configurational temperature; 5 equipartition; 9 bias |
| `mixtures` | 7 weights of modes against exact samples; of block Gibbs and of tempering, too |
| `tokens` | 8 tokens decoded from chains, flat and coarse to fine, against p(v|c); its contexts |
| `agreement` | 10 one trajectory on every backend |
| `mutants` | the sampler in plain torch that can be broken |
| `liars` | the backend that breaks what is made of whole operations |
| `chains` | targets, tasks, samplers |
| `statistics` | p-values |
| `results` | checks, pictures, sizes |
"""
