"""A data card as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tlrecipe.cli.render import printable

if TYPE_CHECKING:
    from tlrecipe.data.card import DataCard, SplitCard

_CLASSES = 20
_BAD = 10


def card_lines(card: DataCard) -> Iterator[str]:
    """The card, a fact a line."""
    yield f"data: {printable(card.origin)}, {len(card.classes)} classes, imbalance {card.imbalance:.1f}"
    for split, part in card.splits.items():
        yield f"  {split:<6}{part.images:>9,} images{_sizes(part)}{_named(part.formats)}"
        if part.traits:
            yield f"        converted: {_named(part.traits)[2:]}"
        for name, reason in part.bad[:_BAD]:
            yield f"        left out: {printable(name)}: {printable(reason)}"
        if len(part.bad) > _BAD:
            yield f"        left out: and {len(part.bad) - _BAD:,} more"
    width = max(len(printable(name)) for name in card.classes)
    shown = sorted(card.classes, key=lambda name: -card.splits["train"].by_class[name])
    if len(shown) > _CLASSES:
        shown = [*shown[: _CLASSES // 2], *shown[-_CLASSES // 2 :]]
        yield f"  the {_CLASSES // 2} largest and smallest classes of train:"
    yield f"  {'class':<{width}}" + "".join(f"{split:>9}" for split in card.splits)
    for name in shown:
        counts = "".join(f"{part.by_class[name]:>9,}" for part in card.splits.values())
        yield f"  {printable(name):<{width}}{counts}"
    for twice in card.duplicates:
        first, second = map(printable, twice.examples[0])
        yield f"  in two splits: {twice.count:,} of {twice.split} are in {twice.also_in}: {second}, {first}"
    if card.ignored:
        yield f"  passed over: {_named(card.ignored)[2:]}"


def _sizes(part: SplitCard) -> str:
    if part.smallest is None or part.median is None or part.largest is None:
        return ""
    if part.smallest == part.largest:
        return f", {_size(part.median)}"
    return f", {_size(part.smallest)} to {_size(part.largest)}, median {_size(part.median)}"


def _size(sides: tuple[int, int]) -> str:
    return f"{sides[0]}×{sides[1]}"


def _named(counts: Mapping[str, int]) -> str:
    return "".join(f", {count:,} {printable(name)}" for name, count in counts.items())
