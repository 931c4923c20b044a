"""Where the parameters of a new run start (`--init`).

| module | what is in it |
|---|---|
| `start` | finds what `--init` names, and applies it |
| `spectral` | token directions from the statistics of a text |
| `tables` | reads pretrained token vectors |
| `lexical` | fits directions from either to a vocabulary |
"""
