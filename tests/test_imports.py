"""Imports go one way: the table of CONTRIBUTING.md, held for every import wherever it stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "tlrecipe").rglob("*.py"))
}

# What each part may import beside itself. The facade and the entry point are for others to import.
ALLOWED: dict[str, set[str]] = {
    "language": set(),
    "planning": {"language"},
    "files": {"language"},
    "models": {"language", "planning", "files"},
    "data": {"language", "planning", "files"},
    "training": {"language", "planning", "files", "models", "data"},
    "artifacts": {"language", "planning", "files", "models", "data"},
    "workflow": {"language", "planning", "files", "models", "data", "training", "artifacts"},
    "cli": {"language", "planning", "files", "models", "data", "training", "artifacts", "workflow"},
    "": {"language", "planning", "artifacts", "workflow"},
    "__main__": {"cli"},
}
TORCH_FREE = ("language", "planning", "files")
TORCH = {"torch", "torchvision", "timm", "torchmetrics", "safetensors"}


class Import(NamedTuple):
    """One module that another one names in an import."""

    module: str
    line: int


def imports_of(source: str) -> Iterator[Import]:
    """Every import in a source text: also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports within the package are absolute"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner if inner in MODULES else node.module, node.lineno)


def part_of(module: str) -> str:
    """The part of the package that a module belongs to; the facade is the empty string."""
    return module.split(".")[1] if "." in module else ""


def violations(module: str, source: str) -> list[str]:
    """The imports of a module that the table forbids."""
    part, found = part_of(module), []
    for name, line in imports_of(source):
        top = name.split(".")[0]
        if top == "tlrecipe" and part_of(name) not in {part, *ALLOWED[part]}:
            found.append(f"{module}:{line} imports {name}")
        if top in TORCH and part in TORCH_FREE:
            found.append(f"{module}:{line} imports {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_every_part_is_in_the_table() -> None:
    assert {part_of(module) for module in MODULES} == set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tlrecipe.language.spec", "import tlrecipe.planning.plan"),
        ("tlrecipe.language.spec", "from tlrecipe import files"),
        ("tlrecipe.planning.plan", "def f():\n    from tlrecipe.models.fast import seconds"),
        ("tlrecipe.planning.plan", "import torch.nn"),
        ("tlrecipe.planning.plan", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("tlrecipe.models.fast", "from tlrecipe.data import pixels"),
        ("tlrecipe.data.pixels", "from tlrecipe.models import fast"),
        ("tlrecipe.training.engine", "from tlrecipe.artifacts.bundle import Model"),
        ("tlrecipe.artifacts.bundle", "from tlrecipe.training import evaluate"),
        ("tlrecipe.artifacts.bundle", "from tlrecipe.cli import console"),
        ("tlrecipe.workflow.running", "from tlrecipe.cli import progress"),
        ("tlrecipe.artifacts.runs", "from tlrecipe.workflow import running"),
        ("tlrecipe.cli.run", "from tlrecipe import Model"),
    ],
)
def test_the_rule_sees_every_kind_of_violation(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tlrecipe.language.text", "from tlrecipe.language.spec import Recipe"),
        ("tlrecipe.planning.randomness", "import numpy"),
        ("tlrecipe.models.fast", "import torch"),
        ("tlrecipe.artifacts.bundle", "from tlrecipe import files"),
        ("tlrecipe.workflow.running", "from tlrecipe.training.interpreter import train"),
        ("tlrecipe.cli.run", "from tlrecipe.workflow.running import run"),
    ],
)
def test_the_rule_lets_the_others_pass(module: str, source: str) -> None:
    assert violations(module, source) == []
