"""Settings: what a person can set, and which value each run gets. Nothing here imports torch.

| module | what is in it |
|---|---|
| `schema` | every setting with its help, range and default |
| `models` | the registry of models: which settings each has, and its defaults |
| `sizes` | the values of `--size`, and of `--preset` (the files in `recipes/`) |
| `flags` | aliases of flags, paths, and flags given before the full parse |
| `resolve` | which level wins: size, model, stage, preset, file, flags |
| `checks` | ranges, contradictions, settings of another model, what `--resume` may change |
| `toml` | config.toml: reading and writing |
"""
