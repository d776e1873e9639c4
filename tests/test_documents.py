"""What the pages say, held to what the program does.

`TLRECIPE_UPDATE_SNAPSHOTS=1 pytest tests/test_documents.py` writes the output that README.md shows anew.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tlrecipe.cli.app import cli
from tlrecipe.language.text import load, loads

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
SHIPPED = ("tlrecipe", "recipes", "docs", "tests", "benchmarks", ".ci")
TEXTS = {".py", ".md", ".toml", ".json", ".jinja", ".yaml", ".txt", ""}

CONSOLE = re.compile(r"```console\n\$ tlrecipe (?P<command>.*)\n(?P<output>(?:.*\n)*?)```")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
COMMAND_ROW = re.compile(r"^\| `(\w+)[^`]*`.* \| ", re.MULTILINE)
# Where the people who build this keep their notes; written so that this file does not match.
NOTES = re.compile("share" + r"d/(?:design|faults|notes|hooks)|/wor" + r"k/")

# The mistakes of `typo.toml`: what recipes/hybrid.toml has, and what is in its place.
TYPOS = {
    '"blocks.[4-6]"': '"blocs.[4-6]"',
    'freeze = ["@backbone"]': 'freeze = ["**"]',
    'freeze = ["conv_stem"': 'freeze = ["conv_stm"',
}


def readme() -> str:
    return README.read_text(encoding="utf-8")


def section(title: str) -> str:
    return readme().split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the recipes as in a clone, and a copy of one with mistakes."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    recipe = (ROOT / "recipes/hybrid.toml").read_text(encoding="utf-8")
    for right, wrong in TYPOS.items():
        assert right in recipe
        recipe = recipe.replace(right, wrong)
    (tmp_path / "typo.toml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", [match["command"] for match in CONSOLE.finditer(readme())])
def test_the_readme_shows_what_is_printed(command: str) -> None:
    printed = CliRunner().invoke(cli, shlex.split(command)).output
    shown = next(match for match in CONSOLE.finditer(readme()) if match["command"] == command)
    if os.environ.get("TLRECIPE_UPDATE_SNAPSHOTS") == "1":
        before, after = readme()[: shown.start("output")], readme()[shown.end("output") :]
        README.write_text(f"{before}{printed}{after}", encoding="utf-8")
    else:
        assert shown["output"] == printed


def test_the_readme_shows_an_error_and_a_plan() -> None:
    assert [match["command"].split()[0] for match in CONSOLE.finditer(readme())] == ["validate", "explain"]


def test_the_recipe_of_the_readme_is_the_shipped_one() -> None:
    shown = section("A recipe").split("```toml\n")[1].split("```")[0]
    assert loads(shown, base=ROOT / "recipes").recipe == load(ROOT / "recipes/hybrid.toml").recipe


def test_the_readme_lists_every_command_and_no_other() -> None:
    assert sorted(COMMAND_ROW.findall(section("Commands"))) == sorted(cli.commands)


def test_ci_runs_the_tests_as_the_readme_does() -> None:
    line = next(line for line in section("Set up").splitlines() if "--group dev" in line)
    command = line.rpartition(" && ")[2]
    assert f"check {command}\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def shipped_texts() -> Iterator[Path]:
    places = [*ROOT.iterdir(), *(path for folder in SHIPPED for path in (ROOT / folder).rglob("*"))]
    for path in places:
        # In a linked work tree `.git` is a file.
        if path.is_file() and path.suffix in TEXTS and path.name != ".git":
            yield path


def test_no_shipped_file_points_outside_the_repository() -> None:
    assert [str(path) for path in shipped_texts() if NOTES.search(path.read_text(encoding="utf-8"))] == []
