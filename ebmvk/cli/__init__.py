"""The commands, one module each: `ebmvk some-name` runs the module `some_name`.

| module | what is in it |
|---|---|
| `app`, `commands` | the program, and the list of its commands |
| `parsing`, `help_page`, `completion` | flags, `--help`, completion by the shell |
| `running` | runs a command: its exit status, errors, several processes |
| `calling`, `signatures` | commands as Python functions |
"""
