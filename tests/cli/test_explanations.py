"""Every code is explained, and what is given as its example really causes it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from planning.toys import INFO, recipe, toy_table
from project import invoke, write_images

from tlrecipe.language.diagnostics import CODES, Diagnostic, TlrecipeError
from tlrecipe.language.explanations import BASE, EXPLANATIONS, explain, page
from tlrecipe.planning.compile import compile_recipe

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"

# What no recipe and no file can cause by itself; the tests that cause it are elsewhere.
WITHOUT_EXAMPLE = {
    "TLR108": "needs a network with tied parameters",
    "TLR135": "needs classes of unequal size",
    "TLR701": "needs numbers that run away",
    "TLR702": "needs a network that changes itself",
    "TLR801": "needs a machine that is too small",
    "TLR1001": "needs a disk that does not answer",
}
IN_TOML = [code for code, found in EXPLANATIONS.items() if found.example and not found.by_command]
BY_COMMAND = [code for code, found in EXPLANATIONS.items() if found.by_command]
# Where two places of the recipe contradict each other.
CONTRADICTIONS = ("TLR105", "TLR109", "TLR111", "TLR122", "TLR123", "TLR124", "TLR127", "TLR129", "TLR130")


@pytest.fixture
def flowers(here: Path) -> Path:
    """What the explanations say that there is."""
    write_images(here / "photos", 40, ("red", "green"))
    for name, flower in (("red", "rose"), ("green", "tulip")):
        (here / "photos" / name).rename(here / "photos" / flower)
    (here / "recipe.toml").write_text(BASE)
    return here


def codes_of(folder: Path, lines: str) -> dict[str, dict[str, object]]:
    (folder / "own.toml").write_text(f'extends = "recipe.toml"\n{lines}\n')
    found = json.loads(invoke("validate", "own.toml", "--errors", "json").stdout)
    return {item["code"]: item for item in found}


def test_every_code_is_explained_and_no_other() -> None:
    assert list(EXPLANATIONS) == list(CODES)
    assert {code for code, found in EXPLANATIONS.items() if not found.example} == WITHOUT_EXAMPLE.keys()
    assert {code for code, found in EXPLANATIONS.items() if found.mended} == set(IN_TOML)


def test_the_recipe_that_examples_change_is_sound(flowers: Path) -> None:
    assert codes_of(flowers, "") == {}


@pytest.mark.parametrize("code", IN_TOML)
def test_an_example_causes_its_code_and_its_mended_form_causes_none(flowers: Path, code: str) -> None:
    found = codes_of(flowers, EXPLANATIONS[code].example)
    assert code in found
    if code in CONTRADICTIONS:
        assert all(label["line"] for label in found[code]["labels"])
        assert found[code]["labels"]
    assert codes_of(flowers, EXPLANATIONS[code].mended) == {}


@pytest.mark.parametrize("code", BY_COMMAND)
def test_the_commands_of_an_example_cause_its_code(flowers: Path, code: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    *before, last = EXPLANATIONS[code].example.removeprefix("$ ").split("\n$ ")
    for line in before:
        subprocess.run(["bash", "-c", line], check=True, cwd=flowers, env=environment)
    program, *arguments = shlex.split(last)
    assert program == "tlrecipe"
    result = invoke(*arguments)
    assert f"error[{code}]" in result.stderr
    assert result.exit_code == Diagnostic(code, "").exit_code


def test_a_tied_parameter_shows_both_claims() -> None:
    groups = [
        {"name": "one", "match": ["head.weight"]},
        {"name": "two", "match": ["{stem,stem.tied}", "bn"]},
        {"name": "rest", "match": ["**"]},
    ]
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(group=groups), toy_table(tied=True), INFO)
    found = next(item for item in caught.value.diagnostics if item.code == "TLR108")
    assert found.path == ("group", 1, "match", 0)
    assert [label.path for label in found.labels] == [("group", 0, "match", 0)]


@pytest.mark.parametrize("code", CODES)
def test_an_explanation_fits_80_columns(code: str) -> None:
    text = explain(code)
    # Commands stay on one line, so that they can be copied.
    assert all(len(line) <= 80 or line.startswith("    $ ") for line in text.splitlines())
    assert CODES[code] in text


def test_the_page_of_all_codes_is_the_generated_one() -> None:
    written = DOCS.read_text(encoding="utf-8")
    assert written == page(), "run python -m tlrecipe.language.explanations docs/errors.md"
    assert re.findall(r"^## (TLR\d{3,4})$", written, re.MULTILINE) == list(CODES)
