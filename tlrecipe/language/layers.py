"""What a recipe is put together from: its file, the files it extends, and the command line's overrides.

Each value remembers the text it was written in, so that a mistake is shown where it can be corrected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from tlrecipe.language.diagnostics import Diagnostic, Path, TlrecipeError, did_you_mean
from tlrecipe.language.grammar import Shape, schema, shapes, tables, tag
from tlrecipe.language.source import OVERRIDES, Located, Place, Source, Spot, read_source

MAX_DEPTH = 40

TAGS: Mapping[tuple[str, ...], str] = {
    ("data",): "source",
    ("backbone",): "source",
    ("backbone", "adapter"): "name",
    ("optimizer",): "name",
    ("loss",): "name",
    ("phase", "loss"): "name",
    ("phase", "optimizer"): "name",
    ("phase", "schedule"): "name",
}
"""The key that says which table of several this is. Where it changes, the old table is left behind."""

_ALIKE: Mapping[tuple[str, ...], frozenset[str]] = {("backbone",): frozenset({"timm", "torchvision"})}
"""Values of such a key whose tables take the same keys and mean the same by them: nothing is left behind."""

_RIVALS = {"epochs": "steps", "steps": "epochs"}
_NAMED = (("group",), ("phase",))
_FILE_PATHS: tuple[tuple[str, str], ...] = (
    ("data", "path"),
    ("backbone", "weights"),
    ("backbone", "path"),
    ("data", "root"),
)
_WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Layer:
    """A value of the recipe, its entries included, and where it is written."""

    value: Any
    """A TOML scalar, a list of layers, or a dict of layers."""
    source: Source
    path: Path
    """Its path in ``source``, which in a merged list differs from that in the recipe."""

    def plain(self) -> Any:
        """The value without its origins."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def get(self, part: str | int) -> Layer | None:
        """The entry at a key or position, or None."""
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            entry: Layer = self.value[part]
            return entry
        return None

    def locate(self, diagnostic: Diagnostic) -> Diagnostic:
        """The diagnostic and its labels with their places filled in, where they have none yet."""
        labels = tuple(self._mark(label, label.path, at_key=label.at == "key") for label in diagnostic.labels)
        marked = self._mark(diagnostic, diagnostic.path, at_key=diagnostic.at == "key")
        return replace(marked, labels=labels)

    def _mark(self, item: Located, path: Path, *, at_key: bool = False) -> Located:
        if item.file is not None:
            return item
        layer = self
        for part in path:
            inner = layer.get(part)
            if inner is None:
                return layer.source.locate(item, layer.path)
            layer = inner
        return layer.source.locate(item, layer.path, at_key=at_key)


def read_layers(source: Source, file: FilePath | None = None) -> Layer:
    """The values of ``source`` over those of the files that it extends. Raises TLR003, TLR004 or TLR005."""
    return _follow(source, (file.resolve(),) if file else ())


def _follow(source: Source, files: tuple[FilePath, ...]) -> Layer:
    layer = _layer(source.parse(), source, ())
    extends = layer.value.pop("extends", None)
    if extends is None:
        return layer
    base, file = _read_base(extends, source, files)
    return _merge(_follow(base, (*files, file)), layer)


def _layer(value: Any, source: Source, path: Path) -> Layer:
    if len(path) > MAX_DEPTH:
        error = Diagnostic("TLR004", f"lists or tables are nested more than {MAX_DEPTH} deep")
        raise TlrecipeError([source.locate(error, path[:1])])
    if isinstance(value, dict):
        return Layer({key: _layer(item, source, (*path, key)) for key, item in value.items()}, source, path)
    if isinstance(value, list):
        return Layer([_layer(item, source, (*path, at)) for at, item in enumerate(value)], source, path)
    return Layer(value, source, path)


def _read_base(extends: Layer, source: Source, files: tuple[FilePath, ...]) -> tuple[Source, FilePath]:
    def refuse(message: str, help: str | None = None) -> TlrecipeError:
        return TlrecipeError([source.locate(Diagnostic("TLR005", message, ("extends",), help), ("extends",))])

    if not isinstance(extends.value, str) or not extends.value:
        raise refuse("`extends` is not the path of a recipe", 'write `extends = "base.toml"`')
    file = source.base / extends.value
    try:
        base = read_source(file, os.path.normpath(FilePath(source.name).parent / extends.value))
        resolved = file.resolve()
    except TlrecipeError as error:
        (reason,) = error.diagnostics
        if reason.code == "TLR003":
            raise
        raise refuse(reason.message, reason.help) from None
    if resolved in files:
        circle = [*files[files.index(resolved) :], resolved]
        raise refuse(
            f"`extends` goes round in a circle: {' → '.join(file.name for file in circle)}",
            "let one of them stand alone",
        )
    return base, resolved


def _merge(base: Layer, child: Layer, keys: tuple[str, ...] = ()) -> Layer:
    """``child`` over ``base``; ``keys`` is where both stand, without positions."""
    if isinstance(base.value, dict) and isinstance(child.value, dict):
        tag_key = TAGS.get(keys, "")
        if tag_key in base.value and tag_key in child.value and not _same(base, child, tag_key):
            chosen = [layer.value[tag_key].value for layer in (base, child)]
            if any(value not in _ALIKE.get(keys, ()) for value in chosen):
                return child
        kept = base.value
        if keys == ("phase",):
            given = child.value.keys() & _RIVALS.keys()
            kept = {key: item for key, item in kept.items() if _RIVALS.get(key) not in given}
        merged = {
            key: _merge(kept[key], item, (*keys, key)) if key in kept else item
            for key, item in child.value.items()
        }
        return replace(child, value={**kept, **merged})
    if keys in _NAMED and isinstance(base.value, list) and isinstance(child.value, list):
        return replace(child, value=_merge_named(base.value, child.value, keys))
    return child


def _same(base: Layer, child: Layer, key: str) -> bool:
    return bool(base.value[key].value == child.value[key].value)


def _merge_named(base: list[Layer], child: list[Layer], keys: tuple[str, ...]) -> list[Layer]:
    """Tables of the child over those of the same name, new ones behind. A name that the child has twice
    stays twice, so that it can be refused."""
    merged = list(base)
    free: dict[str | None, int] = {}
    for at, entry in enumerate(base):
        if (name := _name(entry)) is not None:
            free.setdefault(name, at)
    for entry in child:
        over = free.pop(_name(entry), None)
        if over is None:
            merged.append(entry)
        else:
            merged[over] = _merge(merged[over], entry, keys)
    return merged


def _name(entry: Layer) -> str | None:
    name = entry.get("name")
    return name.value if name is not None and isinstance(name.value, str) else None


# --------------------------------------------------------------------------- overrides


def apply_overrides(recipe: Layer, overrides: Sequence[str]) -> tuple[Layer, list[Diagnostic]]:
    """Apply ``KEY=VALUE`` texts in order. Those that cannot be applied are left out and reported (TLR006)."""
    mistakes: list[Diagnostic] = []
    for number, text in enumerate(overrides, start=1):
        left, _, right = text.partition("=")
        source = Source(OVERRIDES, text, FilePath.cwd(), number, {_VALUE: _override_place(left, right)})
        try:
            path = _path_of_key(recipe, left.strip())
            value = _layer(_read_value(left.strip(), right.strip()), source, _VALUE)
            recipe = _assign(recipe, path, value)
        except TlrecipeError as error:
            mistakes += [
                source.locate(found, _VALUE, at_key=found.at == "key") for found in error.diagnostics
            ]
    return recipe, mistakes


_VALUE: Path = ("value",)
"""The one path in the source of an override."""


def _override_place(left: str, right: str) -> Place:
    before = len(left) + 1 + len(right) - len(right.lstrip())
    shown = len(right.strip().partition("\n")[0])
    return Place(
        key=Spot(1, len(left) - len(left.lstrip()) + 1, len(left.rstrip()) + 1),
        value=Spot(1, before + 1, before + max(1, shown) + 1),
    )


def _path_of_key(recipe: Layer, key: str) -> Path:
    settable = dict(_settable(recipe))
    table, dot, last = key.rpartition(".")
    if key in settable:
        return settable[key]
    if last and table + dot in settable:
        return (*settable[table + dot], last)
    names = [name for name in settable if not re.search(r"\.$|\.[0-9]+\.", name)]
    ending = [name for name in names if name.endswith(f".{key}")]
    help = f"did you mean `{ending[0]}`?" if ending else did_you_mean(key, names)
    raise TlrecipeError([Diagnostic("TLR006", f"the recipe has no `{key}`", help=help, at="key")])


def _read_value(key: str, words: str) -> Any:
    """``words`` as TOML. Shells take quotes away, so words that are not TOML mean their text."""
    if not words:
        help = f'write `{key}=VALUE`; an empty text is written `""`'
        raise TlrecipeError([Diagnostic("TLR006", f"`{key}` is set to nothing", help=help, at="key")])
    try:
        read = Source("", f"value = {words}", FilePath()).parse()
    except TlrecipeError as error:
        if words[0] not in "\"'[{":
            return words
        (mistake,) = error.diagnostics
        message = f"`{words}` is not TOML: {mistake.message}"
        raise TlrecipeError([Diagnostic("TLR006", message, help=mistake.help)]) from None
    return read["value"] if len(read) == 1 else words


def _settable(
    layer: Layer | None, node: Shape | None = None, name: str = "", path: Path = ()
) -> Iterator[tuple[str, Path]]:
    """Every key that can be set, as it is written and as a path. Entries of lists of tables go by name
    and by position. A table that takes any key is listed with a dot at its end."""
    for shape in shapes(schema() if node is None else node):
        for key, inner in shape.get("properties", {}).items():
            yield name + key, (*path, key)
            yield from _settable(layer and layer.get(key), inner, f"{name}{key}.", (*path, key))
        if isinstance(shape.get("additionalProperties"), dict):
            yield name, path
        if "$ref" in shape.get("items", {}) and layer is not None and isinstance(layer.value, list):
            for position, entry in enumerate(layer.value):
                for word in (str(position), _name(entry)):
                    if word is not None:
                        yield from _settable(entry, shape["items"], f"{name}{word}.", (*path, position))


def settable_keys(source: Source, file: FilePath) -> list[str]:
    """Every key that an override of this recipe may have, phases and groups by their names. Raises what
    :func:`read_layers` does."""
    names = (name.rstrip(".") for name, _ in _settable(read_layers(source, file)))
    return list(dict.fromkeys(name for name in names if not re.search(r"\.[0-9]+\.", name)))


def _assign(layer: Layer, path: Path, new: Layer, keys: tuple[str, ...] = ()) -> Layer:
    """``layer`` with ``new`` at ``path``; tables on the way are made. ``keys`` is where ``layer`` stands."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        entries = list(layer.value)
        entries[head] = _assign(entries[head], rest, new, keys)
        return replace(layer, value=entries)
    table = dict(layer.value) if isinstance(layer.value, dict) else {}
    if not rest:
        gone = _left_behind(table, keys, head, new)
        table = {key: item for key, item in table.items() if key not in gone}
    table[head] = _assign(table.get(head, replace(new, value={})), rest, new, (*keys, head))
    return replace(layer, value=table)


def _left_behind(
    table: Mapping[str, Layer], keys: tuple[str, ...], key: str | int, new: Layer
) -> frozenset[str]:
    """The keys of a table that lose their meaning when ``key`` is overridden. What was itself overridden
    stays, so that a contradiction on the command line is refused."""
    written = frozenset(name for name, item in table.items() if item.source.name != OVERRIDES)
    if keys == ("phase",) and key in _RIVALS:
        return written & {_RIVALS[str(key)]}
    if TAGS.get(keys) == key and key in table and table[str(key)].value != new.value:
        for chosen in tables():
            if chosen.path == keys and tag(chosen.shape) == (key, new.value):
                return written.difference(chosen.shape["properties"])
    return frozenset()


def absolute_paths(recipe: Layer) -> Layer:
    """Every path to a file made absolute, relative to the folder of the text that it is written in."""
    for path in _FILE_PATHS:
        table = recipe.get(path[0])
        item = table and table.get(path[1])
        if item and isinstance(item.value, str) and _is_file(path, item.value):
            absolute = replace(item, value=os.path.normpath(item.source.base / item.value))
            recipe = _assign(recipe, path, absolute)
    return recipe


def _is_file(path: tuple[str, str], text: str) -> bool:
    if path == ("backbone", "weights"):
        return "/" in text or text.endswith(_WEIGHT_FILES)
    return bool(text)
