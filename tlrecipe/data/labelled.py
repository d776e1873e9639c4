"""Images whose labels a table gives, not their folders: classes and splits, checked as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlrecipe.data.listing import Split, Tree
from tlrecipe.language import diagnostics
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped, did_you_mean

ONE_CLASS = "tlrecipe learns one class per image"
"""The cure for data with several labels to an image."""

_SHOWN = 10
_SEPARATORS = "|;,"


@dataclass(frozen=True)
class Labelled:
    """Classes by name, and the splits with labels that are places in them."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    warnings: tuple[Diagnostic, ...]


def labelled(
    tree: Tree,
    rows: Mapping[str, NDArray[np.int64]],
    labels: Mapping[str, NDArray[np.int64]],
    names: Sequence[str],
    origin: str,
    place: diagnostics.Path,
) -> Labelled:
    """Splits of images from the rows of each split, and their labels as places in ``names``.

    The classes are the names that ``train`` has, sorted; those that no split has are left out.

    Raises ``TlrecipeError`` with all that is wrong: TLR402 (a label that is no class; fewer than two
    classes), TLR403 (no ``train``; a class that ``train`` lacks).
    """
    if strays := list(_strays(labels, len(names), origin, place)):
        raise TlrecipeError(strays)
    if not len(rows.get("train", ())):
        raise TlrecipeError.of("TLR403", f"`{origin}` has no training images", path=place)
    present = {split: {names[label] for label in np.unique(labels[split])} for split in labels}
    train = present["train"]
    problems = list(_problems(present, train, origin, place))
    if problems:
        raise TlrecipeError(capped(problems))
    classes = tuple(sorted(train))
    position = {name: place for place, name in enumerate(classes)}
    places = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    return Labelled(
        classes,
        {split: _split(tree, rows[split], places[labels[split]]) for split in rows if len(rows[split])},
        tuple(
            Diagnostic("TLR403", f"`{split}` has no images of {quoted(absent)}", place, severity="warning")
            for split, inside in present.items()
            if inside and (absent := sorted(train - inside))
        ),
    )


def _strays(
    labels: Mapping[str, NDArray[np.int64]], classes: int, origin: str, place: diagnostics.Path
) -> Iterator[Diagnostic]:
    for split, found in labels.items():
        if len(odd := np.flatnonzero((found < 0) | (found >= classes))):
            rest = f" and {len(odd) - 1:,} more" if len(odd) > 1 else ""
            message = (
                f"image {odd[0] + 1:,} of `{split}` in `{origin}`{rest}: the label {found[odd[0]]} is none of"
                f" the {classes:,} classes"
            )
            yield Diagnostic("TLR402", message, place, "labels count from 0; put the original files there")


def several_at_once(labels: Collection[str]) -> list[str]:
    """Labels that mean several classes: lists, and those whose parts between separators are found elsewhere.

    A separator alone says nothing: `salt; pepper` may be one class, as long as neither `salt` nor `pepper` is
    a label of its own, or part of another one.
    """
    found = {
        label for label in labels if label[:1] == "[" and label[-1:] == "]" and ("," in label or '"' in label)
    }
    for separator in _SEPARATORS:
        parts = {
            label: [part.strip() for part in label.split(separator)] for label in labels if separator in label
        }
        seen = Counter(label for label in labels if label not in parts)
        seen.update(part for inside in parts.values() for part in set(inside))
        found.update(
            label for label, inside in parts.items() if all(part and seen[part] > 1 for part in inside)
        )
    return sorted(found)


def _problems(
    present: Mapping[str, set[str]], train: set[str], origin: str, place: diagnostics.Path
) -> Iterator[Diagnostic]:
    if len(train) < 2:
        message = f"one class only, {quoted(train)}, in `{origin}`"
        yield Diagnostic("TLR402", message, place, "two classes are the least")
    for split, inside in present.items():
        if unknown := sorted(inside - train):
            message = f"`{split}` has classes that `train` has not: {quoted(unknown)}"
            yield Diagnostic("TLR403", message, place, did_you_mean(unknown[0], sorted(train)))


def _split(tree: Tree, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Split:
    order = np.lexsort((rows, labels))
    return Split(tree, rows[order], labels[order])


def quoted(names: Iterable[str], limit: int = _SHOWN) -> str:
    """Names in backticks, the first ``limit`` of them."""
    listed = [f"`{name}`" for name in names]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
