"""Where each key and value of a TOML text stands, by tree-sitter.

Values come from :mod:`tomllib`; this module only answers "where". It is imported when something has to
be pointed at, never for a recipe without mistakes. What tree-sitter cannot parse has no place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from tlrecipe.language.diagnostics import Path
from tlrecipe.language.source import Place, Spot


@dataclass(frozen=True)
class Duplicate:
    """A key or table that is defined twice."""

    path: Path
    first: Spot
    second: Spot


def places(text: str) -> dict[Path, Place]:
    """The place of every table, key and list entry of a valid TOML text (without byte order mark)."""
    return _Survey(text).places


def first_duplicate(text: str) -> Duplicate | None:
    """The first definition, in order of the text, of what was defined before."""
    return _Survey(text).duplicate


# How a path came to be. An implicit table is named in the header of a table inside it, and may still
# get its own header; a dotted one is named in a dotted key, and may not.
_Kind = Literal["value", "header", "array", "implicit", "dotted"]
_MAY_REPEAT: frozenset[tuple[_Kind, _Kind]] = frozenset(
    {
        ("implicit", "header"),
        ("implicit", "implicit"),
        ("implicit", "dotted"),
        ("header", "implicit"),
        ("array", "implicit"),
        ("array", "array"),
        ("dotted", "implicit"),
        ("dotted", "dotted"),
    }
)


class _Survey:
    """One walk over the syntax tree."""

    def __init__(self, text: str):
        self.places: dict[Path, Place] = {}
        self.duplicate: Duplicate | None = None
        self._kinds: dict[Path, _Kind] = {}
        self._elements: dict[Path, int] = {}
        self._lines = [line.encode() for line in text.split("\n")]
        root = Parser(Language(tree_sitter_toml.language())).parse(text.encode()).root_node
        for node in root.named_children:
            if node.type == "pair":
                self._pair((), node)
            elif node.type in ("table", "table_array_element"):
                self._table(node)

    def _table(self, node: Node) -> None:
        header = next((child for child in node.named_children if child.type.endswith("_key")), None)
        if header is None:
            return
        closing = next((child for child in node.children if child.type in ("]", "]]")), header)
        value = self._spot(node, closing)
        *parents, (name, key) = self._keys(header)
        path: Path = ()
        for parent, spot in parents:
            path = self._last_element((*path, parent))
            self._define(path, "implicit", Place(spot, spot))
        path = (*path, name)
        if node.type == "table":
            self._define(path, "header", Place(key, value))
        else:
            self._define(path, "array", Place(key, value))
            self._elements[path] = self._elements.get(path, -1) + 1
            path = self._last_element(path)
            self._define(path, "header", Place(key, value))
        for child in node.named_children:
            if child.type == "pair":
                self._pair(path, child)

    def _last_element(self, path: Path) -> Path:
        """``path`` itself, or its latest element where it is an array of tables."""
        return (*path, self._elements[path]) if path in self._elements else path

    def _pair(self, table: Path, node: Node) -> None:
        parts = [child for child in node.named_children if child.type != "comment"]
        if len(parts) != 2 or not parts[0].type.endswith("_key"):
            return
        *parents, (name, key) = self._keys(parts[0])
        path = table
        for parent, spot in parents:
            path = (*path, parent)
            self._define(path, "dotted", Place(spot, spot))
        path = (*path, name)
        self._define(path, "value", Place(key, self._spot(parts[1])))
        self._value(path, parts[1])

    def _value(self, path: Path, node: Node) -> None:
        if node.type == "inline_table":
            for child in node.named_children:
                if child.type == "pair":
                    self._pair(path, child)
        elif node.type == "array":
            entries = (child for child in node.named_children if child.type != "comment")
            for index, child in enumerate(entries):
                spot = self._spot(child)
                self._define((*path, index), "value", Place(spot, spot))
                self._value((*path, index), child)

    def _define(self, path: Path, kind: _Kind, place: Place) -> None:
        before = self._kinds.get(path)
        if before is None or (before, kind) == ("implicit", "header"):
            self.places[path] = place
            self._kinds[path] = kind
        elif (before, kind) not in _MAY_REPEAT and self.duplicate is None:
            self.duplicate = Duplicate(path, self.places[path].key, place.key)

    def _keys(self, node: Node) -> Iterator[tuple[str, Spot]]:
        """The parts of a possibly dotted key, in order."""
        if node.type == "dotted_key":
            for child in node.named_children:
                yield from self._keys(child)
        elif node.text is not None:
            text = node.text.decode()
            name = next(iter(tomllib.loads(f"{text} = 0"))) if node.type == "quoted_key" else text
            yield name, self._spot(node)

    def _spot(self, first: Node, last: Node | None = None) -> Spot:
        row, start = first.start_point
        end_row, end = (last or first).end_point
        line = self._lines[row]
        if end_row > row:
            end = len(line.rstrip(b"\r"))
        return Spot(row + 1, len(line[:start].decode()) + 1, len(line[:end].decode()) + 1)
