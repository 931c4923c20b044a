"""Shell completion: `ebmvk --print-completion bash`, zsh or fish prints a script to be sourced."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from ebmvk.cli.commands import COMMANDS
from ebmvk.errors import ConfigError

TOP = ("--help", "--version", "--print-completion")
HELP = ("--help", "--help-all")
Flags = dict[str, tuple[str, ...]]
"""{command: its flags}."""


def script(shell: str) -> str:
    """The completion script for a shell. Raises ConfigError for an unknown shell."""
    if shell not in SHELLS:
        raise ConfigError(
            f"--print-completion {shell}".rstrip() + ": this shell has no completion script",
            hint=f"use one of {', '.join(SHELLS)}",
        )
    flags = {name: importlib.import_module(f"ebmvk.cli.{name.replace('-', '_')}").FLAGS for name in COMMANDS}
    return SHELLS[shell]({name: (*own, *HELP) for name, own in flags.items()})


def _bash(flags: Flags) -> str:
    folder = "~/.local/share/bash-completion/completions"
    return f"""# In this shell: source <(ebmvk --print-completion bash)
# In every shell: ebmvk --print-completion bash > {folder}/ebmvk
{_function(flags)}"""


def _zsh(flags: Flags) -> str:
    return f"""# Put this into ~/.zshrc, after compinit: source <(ebmvk --print-completion zsh)
autoload -U +X bashcompinit && bashcompinit
{_function(flags)}"""


def _function(flags: Flags) -> str:
    cases = "\n".join(f"    {name}) words='{' '.join(own)}' ;;" for name, own in flags.items())
    return f"""_ebmvk() {{
    local words='' current=${{COMP_WORDS[COMP_CWORD]}}
    if [ "$COMP_CWORD" = 1 ]; then
        words='{" ".join((*flags, *TOP))}'
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
        case $current in -*) ;; *) words='' ;; esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _ebmvk ebmvk"""  # `-o default`: file names, if no word fits


def _fish(flags: Flags) -> str:
    lines = ["# Use it: ebmvk --print-completion fish > ~/.config/fish/completions/ebmvk.fish"]
    for name, own in flags.items():
        lines.append(f"complete -c ebmvk -n __fish_use_subcommand -f -a {name} -d '{_quoted(COMMANDS[name])}'")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c ebmvk {seen} -l {flag[2:]}" for flag in own]
    return "\n".join([*lines, *(f"complete -c ebmvk -n __fish_use_subcommand -l {flag[2:]}" for flag in TOP)])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


SHELLS: dict[str, Callable[[Flags], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
