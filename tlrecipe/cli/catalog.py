"""`tlrecipe list`: what a recipe may name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

from tlrecipe.cli import console
from tlrecipe.language import spec

_UNIONS = {
    "data": (spec.DataSpec, "source"),
    "optimizers": (spec.OptimizerSpec, "name"),
    "schedules": (spec.ScheduleSpec, "name"),
}


def print_list(kind: str, filter: str) -> None:
    """Print the names of a kind that contain ``filter``, in any case, and what they mean."""
    rows = [row for row in _rows(kind) if filter.lower() in row[0].lower()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        console.out(f"{name:<{width}}  {text}".rstrip())


def _rows(kind: str) -> Iterator[tuple[str, str]]:
    if kind == "backbones":
        return _backbones()
    if kind == "augmentations":
        fields = spec.Augment.model_fields.items()
        return ((name, _first_sentence(field.description)) for name, field in fields)
    return _tables(*_UNIONS[kind])


def _backbones() -> Iterator[tuple[str, str]]:
    from tlrecipe import files
    from tlrecipe.models.names import known_backbones

    yield from known_backbones(files.cache_dir())


def _tables(union: object, tag: str) -> Iterator[tuple[str, str]]:
    """The classes of a discriminated union of the grammar, each with the names that its tag may have."""
    for table in get_args(get_args(union)[0]):
        assert issubclass(table, BaseModel)
        for name in get_args(table.model_fields[tag].annotation):
            yield name, _first_sentence(table.__doc__)


def _first_sentence(text: str | None) -> str:
    words = " ".join((text or "").split())
    return words.partition(". ")[0].rstrip(".")
