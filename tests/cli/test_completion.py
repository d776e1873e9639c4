"""Completion, by the shells themselves."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import RECIPE, invoke

from tlrecipe import files
from tlrecipe.cli.app import cli
from tlrecipe.models.names import known_backbones

BASH, ZSH = shutil.which("bash"), shutil.which("zsh")
# Says on stderr what was imported.
PROGRAM = f"""\
#!/bin/sh
exec {sys.executable} -c '
import sys
from tlrecipe.__main__ import main
try:
    main()
finally:
    print("HEAVY", *{{"torch", "timm", "pydantic"}} & sys.modules.keys(), file=open("imported", "a"))
' "$@"
"""


@pytest.fixture
def place(here: Path) -> Path:
    """A folder with recipes, and a program called tlrecipe on the path of shells."""
    (here / "tiny.toml").write_text(RECIPE)
    (here / "recipes").mkdir()
    (here / "recipes" / "tulips.toml").write_text(RECIPE)
    (here / "pyproject.toml").write_text("")
    (here / "notes.txt").write_text("")
    (here / "bin").mkdir()
    (here / "bin" / "tlrecipe").write_text(PROGRAM)
    (here / "bin" / "tlrecipe").chmod(0o755)
    known_backbones(files.cache_dir())
    return here


def environment(place: Path) -> dict[str, str]:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}


def by_bash(place: Path, *words: str) -> list[str]:
    """What bash's own completion function replies for the last of these words."""
    listed = " ".join(f"'{word}'" for word in ("tlrecipe", *words))
    script = f"""
        source <(tlrecipe completion bash)
        compopt() {{ echo "files"; }}
        COMP_WORDS=({listed}); COMP_CWORD={len(words)}
        _tlrecipe_completion tlrecipe
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [str(BASH), "--norc", "-c", script], capture_output=True, text=True, cwd=place, env=environment(place)
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["va"], ["validate"]),
        (["run", ""], ["recipes/tulips.toml", "tiny.toml"]),
        (["run", "recipes/t"], ["recipes/tulips.toml"]),
        (["validate", "tiny.toml", "rec"], ["recipes/tulips.toml"]),
        (["run", "nothing"], ["files", ""]),
        (["run", "tiny.toml", "--dev"], ["--device"]),
        (["run", "tiny.toml", "--device", "c"], ["cpu", "cuda"]),
        (["explain", "tlr10"], [*(f"TLR10{digit}" for digit in range(1, 10)), "TLR1001"]),
        (["list", "ba"], ["backbones"]),
        (["list", "backbones", "tf_efficientnet_lite"], [f"tf_efficientnet_lite{n}" for n in range(5)]),
        (["run", "tiny.toml", "--set", "phase.all.ep"], ["phase.all.epochs="]),
        (["run", "tiny.toml", "--set", "backbone.name", "=", "test_resn"], ["test_resnet"]),
        (["run", "tiny.toml", "--set", "backbone.name", "=", "no such"], [""]),
        (["completion", ""], ["bash", "zsh"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bash_completes(place: Path, words: list[str], expected: list[str]) -> None:
    assert by_bash(place, *words) == expected


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_completion_never_waits_for_pytorch_once_the_names_are_known(place: Path) -> None:
    by_bash(place, "list", "backbones", "resnet18")
    by_bash(place, "run", "ti")
    lines = (place / "imported").read_text().splitlines()
    assert len(lines) == 4
    assert not any("torch" in line or "timm" in line for line in lines)


def typed(place: Path, shell: list[str], start: str, keys: str, wanted: str) -> str:
    """Type into an interactive shell until what it shows holds ``wanted``."""
    process, master = pty.fork()
    if process == 0:  # pragma: no cover
        os.chdir(place)
        os.execvpe(shell[0], shell, environment(place))
    shown = ""
    try:
        os.write(master, start.encode())
        for text, until in (("", "READY:"), (keys, wanted)):
            os.write(master, text.encode())
            end = time.monotonic() + 120
            while not re.search(until, shown.replace("\r", "").replace("\x07", "")):
                assert time.monotonic() < end, shown
                if select.select([master], [], [], 1)[0]:
                    shown += os.read(master, 4096).decode(errors="replace")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(master)
    return shown


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_completes_a_value_behind_the_equals_sign_as_it_is_typed(place: Path) -> None:
    start = "eval \"$(tlrecipe completion bash)\"; echo READY'':\n"
    keys = "tlrecipe run tiny.toml --set backbone.name=test_resn\t"
    typed(place, [str(BASH), "--norc", "-i"], start, keys, r"name=test_resnet ")


@pytest.mark.skipif(ZSH is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("tlrecipe valid\t", "validate "),
        ("tlrecipe run recipes/t\t", r"recipes/tulips\.toml "),
        ("tlrecipe run tiny.toml --set backbone.name=test_resn\t", "name=test_resnet "),
        ("tlrecipe list backbones test_resn\t", "backbones test_resnet "),
    ],
)
def test_zsh_completes(place: Path, keys: str, wanted: str) -> None:
    start = "autoload -Uz compinit; compinit -u -d dump; eval \"$(tlrecipe completion zsh)\"; echo READY'':\n"
    typed(place, [str(ZSH), "-f", "-i"], start, keys, wanted)


def test_names_are_remembered_and_made_anew_where_they_are_damaged(tmp_path: Path) -> None:
    first = known_backbones(tmp_path)
    assert ("resnet18", "timm") in first
    (file,) = (tmp_path / "tables").iterdir()
    file.write_text('[["remembered", "timm"]]')
    assert known_backbones(tmp_path) == [("remembered", "timm")]
    for damaged in ("[[", "[1]", "3", ""):
        file.write_text(damaged)
        assert known_backbones(tmp_path) == first


def test_every_recipe_argument_is_completed() -> None:
    bare = [
        f"{name} {parameter.name}"
        for name, command in cli.commands.items()
        for parameter in command.params
        if parameter.name in ("recipe", "recipes", "overrides") and not parameter._custom_shell_complete
    ]
    assert bare == []


def test_a_script_is_printed_for_each_shell() -> None:
    assert "complete -o nosort -F _tlrecipe_completion tlrecipe" in invoke("completion", "bash").stdout
    assert invoke("completion", "zsh").stdout.startswith("#compdef tlrecipe")
    assert invoke("completion", "csh").exit_code == 2
