"""Settings: what a person can set, and which value each run gets. Nothing here imports torch.

| module | what is in it |
|---|---|
| `schema` | every setting with its help, range and default |
| `models` | the registry of models: which settings each has, and its defaults |
| `sizes` | the values of `--size`, and of `--preset` (the files in `recipes/`) |
| `flags` | other names of flags, `~` in paths, and flags that are read before all others |
| `resolve` | which level wins: size, model, stage, preset, file, flags |
| `checks` | ranges, contradictions, settings of another model, what `--resume` may change |
| `toml` | config.toml: reading and writing |
"""
