"""The machine, the process and the shell.

| module | what is in it |
|---|---|
| `process` | threads and memory of this process, set before torch is loaded |
| `resources` | memory and disk space: used and left |
| `terminal` | output that survives any encoding and a closed pipe |
| `invocation` | how to start a command from the shell that started this one |
| `old_names` | modules that have moved, by their old names |
"""
