"""The example at the end of each command's help is on one line there, and works."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click
import pytest
from project import RECIPE, Finished, invoke

from tlrecipe.cli.app import cli


def commands(group: click.Group, *above: str) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inside = isinstance(command, click.Group)
        found |= commands(command, *above, name) if inside else {" ".join([*above, name]): command}
    return found


COMMANDS = commands(cli)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_works(
    name: str, finished: Finished, project: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLRECIPE_CACHE_DIR", str(here / "cache"))
    (here / "photos").symlink_to(project / "colours")
    recipe = RECIPE.replace('path = "colours"', 'path = "photos"').replace('"all"', '"finetune"')
    (here / "recipe.toml").write_text(recipe)
    shutil.copytree(finished.directory, here / "runs" / "flowers" / "first")
    example = (COMMANDS[name].epilog or "").removeprefix("Example: ")
    assert example.startswith(f"tlrecipe {name}")
    assert example in invoke(*name.split(), "--help").stdout
    result = invoke(*shlex.split(example)[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout or (here / "recipe.schema.json").exists() or (here / "labels.csv").exists()
