"""The `ebmvk` program. Each command is a module; `commands` lists them.

| module | what is in it |
|---|---|
| `app`, `commands` | finds the command that was typed; the list of commands |
| `parsing`, `running` | flags into a dataclass; exit status, errors and several processes |
| `help_page`, `completion` | `--help` and `--help-all`; completion in shells |
| `calling`, `signatures` | commands as Python functions, and their signatures |
| all others | the command with the module's name |
"""
