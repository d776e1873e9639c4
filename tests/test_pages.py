"""The pages of docs/: built without a warning, their recipes valid, their tables those of the program."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tlrecipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECIPES = {
    f"{name}-{number}": block
    for name in ("cookbook", "getting-started")
    for number, block in enumerate(
        re.findall(r"```toml\n(.*?)```", (DOCS / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    )
}
TOOLS = ("mkdocs", "material", "mkdocstrings_handlers")


@pytest.mark.skipif(not all(map(importlib.util.find_spec, TOOLS)), reason="mkdocs is not installed")
def test_the_pages_build_without_warnings_and_ask_nobody_for_anything(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    loaded = [
        f"{page.name}: {address}"
        for page in site.rglob("*.html")
        for address in re.findall(
            r'<(?:script|img|iframe)[^>]*src="(https?://[^"]+)"|<link rel="stylesheet" href="(https?://[^"]+)"',
            page.read_text(encoding="utf-8"),
        )
    ]
    assert loaded == []
    assert "Go on with a run from its newest valid checkpoint" in (site / "python.html").read_text("utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_of_the_pages_is_valid(name: str) -> None:
    document = tlrecipe.loads(RECIPES[name], name=name)
    assert [item for item in tlrecipe.validate(document) if item.severity == "error"] == []


def test_the_cookbook_has_its_recipes() -> None:
    assert len(RECIPES) > 8


def test_every_public_name_is_on_the_page_about_python() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (\S+)", page, re.MULTILINE))
    homes = {
        f"{getattr(tlrecipe, name).__module__}.{name}" for name in set(tlrecipe.__all__) - {"__version__"}
    }
    assert homes - documented == {"tlrecipe.language.spec.Recipe"}
    assert "`tlrecipe.Recipe`" in page


def test_the_table_of_events_is_what_a_run_tells(tmp_path: Path) -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`.*?) \| .* \|$", page.partition("## Trackers")[0], re.MULTILINE)
    table = {kind: set(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}
    assert "epoch" in table
    told: dict[str, set[str]] = {}

    def receive(kind: str, /, **fields: Any) -> None:
        told[kind] = set(fields)

    recipe = ROOT / "recipes/feature_extraction.toml"
    small = {"data.size": 32, "data.per_class": 4, "phase.extract.epochs": 2}
    done = tlrecipe.run(recipe, small, run_dir=tmp_path / "run", device="cpu", on_event=receive)
    assert done.complete
    assert told.keys() <= table.keys()
    # What a test is measured by depends on the recipe.
    told["test"] &= table["test"]
    assert {kind: table[kind] for kind in told} == told
    assert table.keys() - told.keys() <= {"resume", "warning"}
