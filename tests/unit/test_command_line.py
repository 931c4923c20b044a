"""Help pages and shell completion, which are made from the commands and their flags."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from ebmvk.cli import app, help_page, running
from ebmvk.cli.commands import COMMANDS, GROUPS
from ebmvk.cli.completion import SHELLS, script
from ebmvk.cli.parsing import parse
from ebmvk.config.flags import flags_of
from ebmvk.errors import INTERRUPTED, ConfigError
from ebmvk.host import invocation


@dataclass(frozen=True)
class Inner:
    # First line of a comment
    # above the field.
    width: int = 7
    kind: Literal["a", "b"] = "a"  # Beside the field.


@dataclass(frozen=True)
class Outer:
    inner: Inner
    where: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None  # With a name for its value.
    loud: bool = field(default=False, metadata={"common": True, "group": "Sound"})  # Off.
    soft: bool = True


@dataclass(frozen=True)
class Typed:
    steps: int = 1
    temperature: float = 1.0
    kind: Literal["a", "b"] | None = None


def test_the_help_of_a_flag_is_the_comment_at_its_field() -> None:
    found = list(help_page.entries(Outer, Outer(Inner(width=9)), {"inner": "Size"}))
    assert [(entry.usage, entry.text, entry.default, entry.group) for entry in found] == [
        ("--width INT", "First line of a comment above the field.", "9", "Size"),
        ("--kind {a,b}", "Beside the field.", "a", "Size"),
        ("--where FOLDER", "With a name for its value.", "", "Options"),
        ("--[no-]loud", "Off.", "", "Sound"),
        ("--[no-]soft", "", "on", "Options"),
    ]


def test_a_dataclass_in_a_command_stands_for_the_flags_of_its_fields() -> None:
    @dataclass(frozen=True)
    class Both:
        made: Outer = field(default_factory=lambda: Outer(Inner()))
        last: int = 1

    names = ["--where", "--loud", "--soft", "--width", "--kind", "--last", "--no-loud", "--no-soft"]
    assert sorted(flags_of(Both)) == sorted(names)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_command_mentions_saved_work_only_if_it_saves_any(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_written", interrupted)
    assert app.main([command]) == INTERRUPTED
    saves = command in ("train", "pretrain", "sweep", "memory")
    assert capsys.readouterr().err == ("interrupted; what was saved is intact\n" if saves else "interrupted\n")


def test_help_shows_only_common_flags_and_help_all_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    found = list(help_page.entries(Outer, Outer(Inner()), {}))
    few, all_of_them = (help_page.page("ebmvk x", found, everything=everything) for everything in (False, True))
    assert few.splitlines()[2:] == [
        "Sound", "  --loud                  Off.", "", "`ebmvk x --help-all` shows 4 more options.",
    ]  # fmt: skip
    assert max(map(len, all_of_them.splitlines())) <= 60
    assert all(entry.usage in all_of_them for entry in found)


def test_the_programs_help_has_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in GROUPS] == list(GROUPS)
    assert [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "] == list(COMMANDS)
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ebmvk", "tra"], ["train"]),
        (["ebmvk", "train", "--learn"], ["--learning-rate"]),
        (["ebmvk", "generate", "--tempe"], ["--temperature"]),
        (["ebmvk", "train", "--dataset", "my"], []),  # the shell completes file names
    ],
    ids=str,
)
def test_bash_completes_commands_and_flags(words: list[str], completed: list[str]) -> None:
    bash = shutil.which("bash")
    if not bash:
        pytest.skip("no bash")
    asked = f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _ebmvk; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run([bash, "-c", f"{script('bash')}\n{asked}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_are_valid(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--print-completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True)


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(ConfigError, match="--print-completion tcsh"):
        script("tcsh")
    assert app.main(["--print-completion"]) == 2


def test_commands_to_run_next_are_named_as_the_shell_finds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(invocation.WRAPPER, raising=False)
    monkeypatch.setattr(invocation.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert invocation.invocation("train") == f"{tmp_path / 'python'} -m ebmvk train"
    for program, words in (("python", "python -m ebmvk train"), ("ebmvk", "ebmvk train")):
        (tmp_path / program).touch(mode=0o755)
        assert invocation.invocation("train") == words
    monkeypatch.setenv(invocation.WRAPPER, "./my clone/run")
    assert invocation.invocation("train") == "'./my clone/run' train"


@pytest.mark.parametrize("args", [[], ["help"], ["--help"]])
def test_the_programs_help_fits_the_terminal(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.main(args) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "abc"], "--steps 'abc' is not a whole number"),
        (["--temperature", "hot"], "--temperature 'hot' is not a number"),
        (["--steps"], "--steps has no value"),
        (["nano"], "nano has no flag in front of it"),
        (["--kind", "c"], "--kind 'c' is not one of 'a', 'b'"),
    ],
)
def test_a_bad_value_is_refused_in_plain_words(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(Typed, args, command="train", known=["--steps", "--temperature", "--kind"])
    assert refused.value.what == message
