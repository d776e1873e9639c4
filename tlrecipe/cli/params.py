"""`tlrecipe params`: the parameters of a recipe's network, and what patterns match."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.text import load

if TYPE_CHECKING:
    from rich.tree import Tree

    from tlrecipe.language.spec import Recipe
    from tlrecipe.planning.facts import ParamFact, ParamTable

_DEPTH = 2


def params(path: Path, patterns: Sequence[str], overrides: Sequence[str], depth: int | None) -> None:
    """Print the tree of parameter names, or of those that a pattern matches.

    Modules below ``depth`` name segments are one line each; by default 2, and no limit with patterns.
    Mistakes in the recipe's own patterns do not matter: this is the tool to find the right ones.
    Raises TLR104 and TLR106 for the patterns that are given.
    """
    recipe = load(path, overrides).recipe
    from tlrecipe.models.table import described

    table = described(recipe.backbone, recipe.head, _classes(recipe), files.cache_dir(), recipe.data.size)
    shown = list(table)
    if patterns:
        matched = _matched(table, patterns)
        shown = [param for param in table if param.name in frozenset().union(*matched.values())]
    root = _tree(shown, _groups(recipe, table))
    limit = depth or (len(max(table.by_name, key=len)) if patterns else _DEPTH)
    console.out(f"{recipe.backbone.name}: {_values(sum(param.numel for param in table))}")
    if console.wants_colour(sys.stdout):
        _print_tree(root, limit)
    else:
        _print_lines(root, limit)
    if patterns:
        for pattern, names in matched.items():
            count = sum(table.by_name[name].numel for name in names)
            console.out(
                f"`{pattern}` matches {len(names)} of {len(table.params)} parameters, {_values(count)}"
            )


def _classes(recipe: Recipe) -> int:
    """Classes of the data where it is there: they are the size of the head."""
    from tlrecipe.data.sources import list_data
    from tlrecipe.workflow.checking import PLACEHOLDER_CLASSES

    try:
        return len(list_data(recipe.data, recipe.seed).info.classes)
    except TlrecipeError:
        return PLACEHOLDER_CLASSES


def _matched(table: ParamTable, patterns: Sequence[str]) -> dict[str, frozenset[str]]:
    from tlrecipe.language.diagnostics import Diagnostic
    from tlrecipe.language.globs import GlobError
    from tlrecipe.planning.patterns import Matcher

    matcher = Matcher(table)
    matched: dict[str, frozenset[str]] = {}
    errors: list[Diagnostic] = []
    for pattern in patterns:
        try:
            matched[pattern] = matcher(pattern)
        except GlobError as error:
            errors.append(Diagnostic("TLR106", f"`{pattern}`: {error.message}", help=error.help))
        else:
            if not matched[pattern]:
                errors.append(matcher.nothing(pattern, ()))
    if errors:
        raise TlrecipeError(errors)
    return matched


def _groups(recipe: Recipe, table: ParamTable) -> dict[str, str]:
    """The group that takes each parameter; parameters in no group are left out."""
    from tlrecipe.planning.patterns import Matcher

    if not recipe.group:
        return dict.fromkeys((param.name for param in table), "all")
    matcher = Matcher(table)
    groups: dict[str, str] = {}
    for group in recipe.group:
        for pattern in group.match:
            for name in matcher(pattern):
                groups.setdefault(name, group.name)
    return groups


# --------------------------------------------------------------------------- the tree


@dataclass
class _Node:
    """A module, or a parameter where ``param`` is set."""

    name: str
    groups: Mapping[str, str]
    param: ParamFact | None = None
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def params(self) -> Iterator[ParamFact]:
        if self.param is not None:
            yield self.param
        for child in self.children.values():
            yield from child.params

    @property
    def count(self) -> int:
        return sum(param.numel for param in self.params)

    @property
    def what(self) -> str:
        if self.param is not None:
            return "×".join(map(str, self.param.shape)) or "scalar"
        number = len(list(self.params))
        return f"{number} parameter{'s' if number > 1 else ''}"

    @property
    def stage(self) -> str:
        stages = sorted({param.stage for param in self.params})
        return f"stage {stages[0]}" if len(stages) == 1 else f"stages {stages[0]}..{stages[-1]}"

    @property
    def group(self) -> str:
        names = dict.fromkeys(self.groups.get(param.name, "no group") for param in self.params)
        return ", ".join(names)


def _tree(params: Sequence[ParamFact], groups: Mapping[str, str]) -> _Node:
    root = _Node("", groups)
    for param in params:
        node = root
        parts = param.name.split(".")
        for end in range(1, len(parts) + 1):
            node = node.children.setdefault(parts[end - 1], _Node(".".join(parts[:end]), groups))
        node.param = param
    return root


def _print_lines(root: _Node, depth: int) -> None:
    rows = [
        (node.name if node.param else f"{node.name}.**", node.what, f"{node.count:,}", node.stage, node.group)
        for node in _cut(root, depth)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for name, what, count, stage, group in rows:
        console.out(
            f"{name:<{widths[0]}}  {what:<{widths[1]}}  {count:>{widths[2]}}  {stage:<{widths[3]}}  {group}"
        )


def _cut(node: _Node, depth: int) -> Iterator[_Node]:
    """Parameters, and in their place the modules that lie at ``depth``."""
    for child in node.children.values():
        if child.param is not None or depth == 1:
            yield child
        else:
            yield from _cut(child, depth - 1)


def _print_tree(root: _Node, depth: int) -> None:
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree("", hide_root=True)
    _grow(tree, root, depth)
    Console(highlight=False).print(tree)


def _grow(tree: Tree, node: _Node, depth: int) -> None:
    from rich.text import Text

    for segment, child in node.children.items():
        label = Text.assemble(
            (segment, "" if child.param else "bold"),
            (f"  {child.what}", "dim"),
            f"  {child.count:,}  {child.stage}  ",
            (child.group, "cyan"),
        )
        branch = tree.add(label)
        if depth > 1:
            _grow(branch, child, depth - 1)


def _values(count: int) -> str:
    return f"{count:,} values"
