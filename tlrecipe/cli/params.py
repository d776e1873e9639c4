"""`tlrecipe params`: the parameters of a recipe's network, and what patterns match."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.render import Segment
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.text import load

if TYPE_CHECKING:
    from tlrecipe.language.spec import Recipe
    from tlrecipe.planning.facts import ParamFact, ParamTable

_DEPTH = 2
_NO_GROUP = "no group"
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue")
_PIPE_WIDTH = 80


def params(path: Path, patterns: Sequence[str], overrides: Sequence[str], depth: int | None) -> None:
    """Print the parameters, or those that a pattern matches: as a tree, or a line with the full name of each
    where stdout is no terminal.

    Modules below ``depth`` name segments are one line each; by default 2, and no limit with patterns.
    Mistakes in the recipe's own patterns do not matter: this is the tool to find the right ones.
    Raises TLR104 and TLR106 for the patterns that are given.
    """
    recipe = load(path, overrides).recipe
    from tlrecipe.models.table import described

    table = described(recipe.backbone, recipe.head, _classes(recipe), files.cache_dir(), recipe.data.size)
    shown, matched = list(table), dict[str, frozenset[str]]()
    if patterns:
        matched = _matched(table, patterns)
        shown = [param for param in table if param.name in frozenset().union(*matched.values())]
    groups = _groups(recipe, table)
    root = _tree(shown, groups)
    _mark_parts(root, _tree(list(table), groups))
    limit = depth or (len(max(table.by_name, key=len)) if patterns else _DEPTH)
    console.out(f"{table.architecture}: {_values(sum(param.numel for param in table))}")
    colours = dict(zip(dict.fromkeys(groups.values()), cycle(_COLOURS)))
    if sys.stdout.isatty() or console.wants_colour(sys.stdout):
        width = console.width(sys.stdout) or _PIPE_WIDTH
        console.styled(_tree_lines(list(_branches(root, limit)), colours, width), sys.stdout)
    else:
        _print_lines(root, limit)
    for pattern, names in matched.items():
        _print_match(pattern, [param for param in table if param.name in names], len(table.params), groups)


def _print_match(pattern: str, matched: Sequence[ParamFact], total: int, groups: Mapping[str, str]) -> None:
    """How much a pattern matches, and whose it is now."""
    values = _values(sum(param.numel for param in matched))
    console.out(f"`{pattern}` matches {len(matched)} of {total} parameters, {values}")
    owners = Counter(groups.get(param.name, _NO_GROUP) for param in matched)
    listed = ", ".join(f"{name} {count}" for name, count in owners.items())
    console.out(f"  now in: {listed}")


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
    of: int | None = None
    """Parameters of the module, where only some of them are in the tree."""

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
        if self.of is not None:
            return f"{number} of {self.of}"
        return f"{number} parameter{'s' if number > 1 else ''}"

    @property
    def stage(self) -> str:
        stages = sorted({param.stage for param in self.params})
        return f"stage {stages[0]}" if len(stages) == 1 else f"stages {stages[0]}..{stages[-1]}"

    @property
    def owners(self) -> list[str]:
        """The groups of its parameters, in order."""
        return list(dict.fromkeys(self.groups.get(param.name, _NO_GROUP) for param in self.params))


def _tree(params: Sequence[ParamFact], groups: Mapping[str, str]) -> _Node:
    root = _Node("", groups)
    for param in params:
        node = root
        parts = param.name.split(".")
        for end in range(1, len(parts) + 1):
            node = node.children.setdefault(parts[end - 1], _Node(".".join(parts[:end]), groups))
        node.param = param
    return root


def _mark_parts(shown: _Node, whole: _Node) -> None:
    """Note at each module of which only some parameters are shown how many it has."""
    total = len(list(whole.params))
    if total > len(list(shown.params)):
        shown.of = total
        for segment, child in shown.children.items():
            _mark_parts(child, whole.children[segment])


def _print_lines(root: _Node, depth: int) -> None:
    rows = [
        (
            node.name if node.param else f"{node.name}.**",
            node.what,
            f"{node.count:,}",
            node.stage,
            ", ".join(node.owners),
        )
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


@dataclass(frozen=True)
class _Row:
    """A line of the tree."""

    guides: str
    segment: str
    node: _Node


def _branches(node: _Node, depth: int, guides: str = "") -> Iterator[_Row]:
    """The lines of the tree below a node. Modules with a single child share its line."""
    children = list(node.children.items())
    for position, (segment, child) in enumerate(children):
        left = depth - 1
        while left > 0 and len(child.children) == 1:
            (part, child), left = next(iter(child.children.items())), left - 1
            segment = f"{segment}.{part}"
        last = position == len(children) - 1
        front, below = ("└── ", "    ") if last else ("├── ", "│   ")
        top = node.name == ""
        yield _Row("" if top else guides + front, segment, child)
        if left > 0:
            yield from _branches(child, left, "" if top else guides + below)


def _tree_lines(rows: Sequence[_Row], colours: Mapping[str, str], width: int) -> Iterator[Segment]:
    """Rows in columns that fit into ``width``: names and groups are cut where they must be."""
    cells = [(row.node.what, f"{row.node.count:,}", row.node.stage) for row in rows]
    widths = [max((len(cell[column]) for cell in cells), default=0) for column in range(3)]
    owners = [", ".join(row.node.owners) for row in rows]
    room = width - sum(widths) - 8
    group_width = min(max(map(len, owners), default=0), max(room // 3, 8))
    named = max((len(row.guides + row.segment) for row in rows), default=0)
    name_width = max(min(named, room - group_width), 12)
    for row, (what, count, stage), owner in zip(rows, cells, owners, strict=True):
        single = row.node.owners[0] if len(row.node.owners) == 1 else ""
        colour = "bold red" if single == _NO_GROUP else colours.get(single, "")
        name = _cut_to(row.segment, name_width - len(row.guides))
        yield row.guides, "dim"
        yield name, colour if row.node.param else f"bold {colour}".strip()
        yield " " * (name_width - len(row.guides) - len(name)), ""
        yield f"  {what:<{widths[0]}}", "dim"
        yield f"  {count:>{widths[1]}}  {stage:<{widths[2]}}  ", ""
        yield f"{_cut_to(owner, group_width)}\n", colour


def _cut_to(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def _values(count: int) -> str:
    return f"{count:,} values"
