"""The process and its machine. Nothing here imports torch.

| module | what is in it |
|---|---|
| `process` | settings of threads and memory, made before torch is loaded |
| `resources` | memory and disk space: how much is used, how much is left |
| `terminal` | standard output and error: encodings, closed pipes, wrapped lines |
| `invocation` | how to start a command of ebmvk from the user's shell |
| `old_names` | modules that have moved still work by their old names |
"""
