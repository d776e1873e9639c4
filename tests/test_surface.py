"""The public surface: small, typed, and free until it is used."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tlrecipe

ROOT = Path(__file__).parents[1]
NAMES = sorted(set(tlrecipe.__all__) - {"__version__"})
HEAVY = ("torch", "torchvision", "timm", "pydantic")


def _imported_by(code: str) -> set[str]:
    """The heavy packages that a new interpreter has imported after ``code``."""
    script = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_the_object_of_its_home(name: str) -> None:
    found = getattr(tlrecipe, name)
    assert found is getattr(importlib.import_module(found.__module__), name)
    assert found.__doc__


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "tlrecipe/__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: statement.module
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == {name: getattr(tlrecipe, name).__module__ for name in NAMES}
    assert (ROOT / "tlrecipe/py.typed").is_file()


def test_dir_lists_the_surface_and_nothing_else() -> None:
    assert dir(tlrecipe) == sorted(tlrecipe.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="`laod`"):
        _ = tlrecipe.laod


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert tlrecipe.__version__ in (project["version"], "unknown")


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert _imported_by("import tlrecipe") == set()


def test_reading_and_compiling_recipes_is_torch_free() -> None:
    read = "tlrecipe.load(pathlib.Path('recipes/hybrid.toml'))"
    assert _imported_by(f"import pathlib, tlrecipe; {read}; tlrecipe.compile_recipe") == {"pydantic"}
