"""A recipe as text: TOML to :class:`Recipe` and back, with the place of everything in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError
from tlrecipe.language.grammar import as_written, check
from tlrecipe.language.layers import Layer, absolute_paths, apply_overrides, read_layers
from tlrecipe.language.source import Source, read_source
from tlrecipe.language.spec import Recipe

Overrides = Sequence[str] | Mapping[str, Any]
"""Changes of a recipe: texts as for ``--set``, or values by key: ``{"phase.finetune.epochs": 3}``."""


@dataclass(frozen=True)
class Document:
    """A recipe without mistakes in its text, and where it says what."""

    recipe: Recipe
    """With every path to a file made absolute."""
    path: Path
    """The file, as the user named it."""
    text: str
    """The file as written: its bytes, decoded. Without what it extends and the overrides."""
    _layer: Layer = field(repr=False, compare=False)

    def locate(self, diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
        """The diagnostics and their labels with file, line, columns and source line, in their order.

        What is not written out is placed at the table that it would stand in. Diagnostics that already
        have a file, and those that are about no place in a recipe, stay as they are.
        """
        return _located(self._layer, diagnostics)

    def resolved(self) -> str:
        """TOML that loads to an equal recipe and writes out what extends, overrides and defaults gave.

        Keys whose default is "not set" are left out: TOML has no null.
        """
        return tomli_w.dumps(_in_order(self.recipe.model_dump(mode="json", exclude_none=True)))


def load(path: str | Path, overrides: Overrides = ()) -> Document:
    """Read a recipe file, what it extends, and overrides such as ``phase.finetune.epochs=3``.

    Overrides are texts whose right side is TOML, or a mapping of keys to values.

    Raises:
        TlrecipeError: TLR001 to TLR006 where a text cannot be read, else every mistake in the grammar
            (TLR101, TLR102, TLR103), in patterns (TLR106) and in names (TLR109), in the order of places.
    """
    path = Path(path)
    return _document(read_source(path), path, overrides, file=path)


def loads(
    text: str, *, name: str = "<string>", base: str | Path = Path(), overrides: Overrides = ()
) -> Document:
    """Like :func:`load`, for a text; ``base`` is the folder that its paths are relative to."""
    return _document(Source(name, text, Path(base).absolute()), Path(name), overrides)


def _document(source: Source, path: Path, overrides: Overrides, file: Path | None = None) -> Document:
    if isinstance(overrides, str):
        overrides = [overrides]
    elif isinstance(overrides, Mapping):
        overrides = [f"{key}={_toml(value)}" for key, value in overrides.items()]
    layer, mistakes = apply_overrides(read_layers(source, file), overrides)
    layer = absolute_paths(layer)
    recipe, more = check(layer.plain())
    if recipe is None or mistakes:
        found = _located(layer, [*mistakes, *more])
        raise TlrecipeError(sorted(found, key=lambda item: _order(item, source.name)))
    return Document(recipe, path, source.text, layer)


def _toml(value: Any) -> str:
    """A value on one line, as the right side of an override."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's escapes are TOML's too, and DEL is the one character that only TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _in_order(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_order(item) for item in value]
    if isinstance(value, dict):
        return {key: _in_order(item) for key, item in as_written(value).items()}
    return value


def _located(layer: Layer, diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    return tuple(
        layer.locate(item) if item.path or item.code[:-2] == "TLR1" else item for item in diagnostics
    )


def _order(item: Diagnostic, first: str) -> tuple[bool, str, int, int]:
    return item.file != first, item.file or "", item.line or 0, item.column or 0
