"""What a data set is, in plain values: for `validate --data`, the run directory and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tlrecipe.data.labelled import ONE_CLASS
from tlrecipe.data.listing import Listing
from tlrecipe.data.pixels import Pixels, duplicates
from tlrecipe.data.preprocess import TRAITS
from tlrecipe.language.diagnostics import Diagnostic

EXAMPLES = 3


@dataclass(frozen=True)
class SplitCard:
    """One split, without the files that cannot be used."""

    images: int
    by_class: Mapping[str, int]
    formats: Mapping[str, int]
    """Files by format; empty where the source holds its images decoded."""
    traits: Mapping[str, int]
    """Files by what was converted or allowed for: grey, transparent, turned by EXIF and so on."""
    smallest: tuple[int, int] | None
    """Width and height of the image with the fewest pixels, as its file has it."""
    median: tuple[int, int] | None
    """Median width and median height."""
    largest: tuple[int, int] | None
    bad: tuple[tuple[str, str], ...]
    """Name and reason of each file that was left out."""
    changed: tuple[str, ...]
    """Files whose bytes are not those that an earlier run decoded."""


@dataclass(frozen=True)
class Duplicates:
    """Images of one split that are, byte for byte, in another one too."""

    split: str
    also_in: str
    count: int
    """How many images of ``split``."""
    examples: tuple[tuple[str, str], ...]
    """Pairs of names, in ``also_in`` and in ``split``."""


@dataclass(frozen=True)
class InTwoClasses:
    """Images of one split that are there, byte for byte, under more than one class."""

    split: str
    count: int
    """How many different images."""
    examples: tuple[tuple[str, str], ...]
    """Pairs of names, in different classes."""


@dataclass(frozen=True)
class DataCard:
    """A whole data set. All values are plain; ``as_dict`` gives what JSON takes."""

    origin: str
    classes: tuple[str, ...]
    imbalance: float
    """Images of the largest class of ``train`` for one of the smallest."""
    splits: Mapping[str, SplitCard]
    duplicates: tuple[Duplicates, ...]
    in_two_classes: tuple[InTwoClasses, ...]
    ignored: Mapping[str, int]
    """Files that are no images by rule: how many, by reason."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def data_card(listing: Listing, pixels: Mapping[str, Pixels]) -> DataCard:
    """The card of a data set whose splits are decoded."""
    classes = listing.info.classes
    train = np.bincount(pixels["train"].labels.numpy(), minlength=len(classes))
    return DataCard(
        origin=listing.info.origin,
        classes=classes,
        imbalance=float(train.max() / max(train.min(), 1)),
        splits={split: _split_card(images, classes) for split, images in pixels.items()},
        duplicates=tuple(_duplicates(pixels)),
        in_two_classes=tuple(_in_two_classes(pixels)),
        ignored=dict(listing.ignored),
    )


def _split_card(pixels: Pixels, classes: tuple[str, ...]) -> SplitCard:
    counts = np.bincount(pixels.labels.numpy(), minlength=len(classes)).tolist()
    kinds = Counter(pixels.facts)
    formats: Counter[str] = Counter()
    traits: Counter[str] = Counter()
    for facts, count in kinds.items():
        formats[facts.format] += count
        traits.update({trait: count for bit, trait in enumerate(TRAITS) if facts.traits >> bit & 1})
    by_area = sorted(kinds, key=lambda facts: (facts.width * facts.height, facts.width))
    smallest: tuple[int, int] | None = None
    median: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    if pixels.facts:
        smallest, largest = ((f.width, f.height) for f in (by_area[0], by_area[-1]))
        sides = np.median([(facts.width, facts.height) for facts in pixels.facts], axis=0)
        median = (round(sides[0]), round(sides[1]))
    return SplitCard(
        images=len(pixels),
        by_class=dict(zip(classes, counts, strict=True)),
        formats=dict(formats.most_common()),
        traits={trait: traits[trait] for trait in TRAITS if traits[trait]},
        smallest=smallest,
        median=median,
        largest=largest,
        bad=pixels.bad,
        changed=pixels.changed,
    )


def _duplicates(pixels: Mapping[str, Pixels]) -> Iterator[Duplicates]:
    for first, second in combinations(pixels, 2):
        if pairs := duplicates(pixels[first], pixels[second]):
            yield Duplicates(second, first, len(pairs), tuple(pairs[:EXAMPLES]))


def _in_two_classes(pixels: Mapping[str, Pixels]) -> Iterator[InTwoClasses]:
    for split, images in pixels.items():
        first: dict[bytes, tuple[int, str]] = {}
        pairs: dict[bytes, tuple[str, str]] = {}
        rows = zip(images.fingerprints, images.labels.tolist(), images.names, strict=True)
        for fingerprint, label, name in rows:
            mark = fingerprint.tobytes()
            other, where = first.setdefault(mark, (label, name))
            if other != label:
                pairs.setdefault(mark, (where, name))
        if pairs:
            yield InTwoClasses(split, len(pairs), tuple(pairs.values())[:EXAMPLES])


def findings(card: DataCard, listing: Listing) -> list[Diagnostic]:
    """Warnings that a card gives reason to: images in two splits or classes, files that have changed."""
    found = []
    for twice in card.duplicates:
        first, second = twice.examples[0]
        shown = f"such as {second} and {first}" if second != first else f"such as {first}"
        message = f"{_files(twice.count)} of {twice.split} also in {twice.also_in}, {shown}"
        cure = "what is measured on them says too much: take them out of one of the two"
        found.append(Diagnostic("TLR403", message, listing.place, cure, severity="warning"))
    for torn in card.in_two_classes:
        first, second = torn.examples[0]
        message = f"{_files(torn.count)} of {torn.split} in more than one class, such as {first} and {second}"
        cure = f"{ONE_CLASS}: remove what is wrong"
        found.append(Diagnostic("TLR402", message, listing.place, cure, severity="warning"))
    for split, part in card.splits.items():
        if part.changed:
            message = f"{_files(len(part.changed))} of {split} changed since an earlier run decoded them"
            listed = ", ".join(part.changed[:EXAMPLES])
            found.append(
                Diagnostic("TLR404", f"{message}, such as {listed}", listing.place, severity="warning")
            )
    return found


def _files(count: int) -> str:
    return f"{count:,} file{'s' if count != 1 else ''}"
