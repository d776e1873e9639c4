"""What a data source holds, from listing alone: names, labels and splits, but no pixels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tlrecipe.language.diagnostics import Diagnostic, Path
from tlrecipe.planning.facts import DatasetInfo


@dataclass(frozen=True)
class Tree:
    """The files of a source by folder. A row is a file's number in this order.

    Full names are put together when asked for: with a hundred thousand files they would be most of
    the memory.
    """

    folders: tuple[str, ...]
    """Every folder relative to the root, with ``/``, sorted; the root is the empty string."""
    firsts: tuple[int, ...]
    """The first row of each folder, and the number of all rows at the end."""
    bases: tuple[str, ...]
    """The last part of each file's name, by row; sorted within a folder."""

    @classmethod
    def of(cls, files: Mapping[str, list[str]]) -> Tree:
        """From base names by folder. Every folder needs its parents as keys, up to the root."""
        folders = tuple(sorted(files))
        firsts, bases = [0], list[str]()
        for folder in folders:
            bases += sorted(files[folder])
            firsts.append(len(bases))
        return cls(folders, tuple(firsts), tuple(bases))

    @classmethod
    def of_names(cls, names: Iterable[str]) -> tuple[Tree, Callable[[str], int]]:
        """From full names, with a function that gives the row of each. A name may come more than once."""
        files: dict[str, set[str]] = {"": set()}
        for name in names:
            folder, _, base = name.rpartition("/")
            if folder not in files:
                parts = folder.split("/")
                for depth in range(1, len(parts) + 1):
                    files.setdefault("/".join(parts[:depth]), set())
            files[folder].add(base)
        tree = cls.of({folder: list(bases) for folder, bases in files.items()})

        def row_of(name: str) -> int:
            folder, _, base = name.rpartition("/")
            rows = tree.rows(folder)
            return bisect_left(tree.bases, base, rows.start, rows.stop)

        return tree, row_of

    def name(self, row: int) -> str:
        """The file's path relative to the root, with ``/``."""
        folder = self.folders[bisect_right(self.firsts, row) - 1]
        return f"{folder}/{self.bases[row]}" if folder else self.bases[row]

    def rows(self, folder: str) -> range:
        """The files directly in a folder."""
        place = bisect_left(self.folders, folder)
        return range(self.firsts[place], self.firsts[place + 1])

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in a folder."""
        start = f"{folder}/" if folder else ""
        names = (name[len(start) :] for name in self.folders if name.startswith(start))
        return [name for name in names if name and "/" not in name]

    def non_ascii(self) -> Iterator[int]:
        """Rows of the files whose own name is not plain ASCII."""
        return (row for row, base in enumerate(self.bases) if not base.isascii())

    def below(self, top: str) -> Tree:
        """The tree as seen from ``top``, a folder that holds all the others and all files."""
        inside = [folder for folder in self.folders if folder == top or folder.startswith(f"{top}/")]
        return Tree(
            tuple(folder[len(top) + 1 :] for folder in inside),
            self.firsts[-len(inside) - 1 :],
            self.bases,
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a split."""

    name: str
    """Path relative to the root of the data, with ``/``."""
    label: int
    """Position of its class in the list of classes."""
    row: int
    """Its number in the source."""


class Split(Sequence[Item]):
    """The images of one split, by class and then by name. Items are made when asked for."""

    def __init__(self, tree: Tree, rows: NDArray[np.int64], labels: NDArray[np.int64]):
        self.tree = tree
        self.rows = rows
        """Row of each image in the tree."""
        self.labels = labels
        """Label of each image."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Split: ...
    def __getitem__(self, index: int | slice) -> Item | Split:
        if isinstance(index, slice):
            return Split(self.tree, self.rows[index], self.labels[index])
        row = int(self.rows[index])
        return Item(self.tree.name(row), int(self.labels[index]), row)

    def take(self, keep: NDArray[np.bool_]) -> Split:
        """The images where ``keep`` is true, in the same order."""
        return Split(self.tree, self.rows[keep], self.labels[keep])


Arrays = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Rows of one split, ``(N,)``, to their images: ``(N, H, W)`` grey or ``(N, H, W, 3)`` RGB."""


@dataclass(frozen=True)
class Found:
    """What a source brings, before anything is split off or left out."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    """``train``, and ``val`` and ``test`` where the source has them."""
    read: Callable[[Item], bytes]
    """The bytes of one image file; safe to call from several threads; raises ``OSError``."""
    origin: str
    place: Path
    """The key of the recipe that names the source."""
    ignored: Mapping[str, int]
    warnings: tuple[Diagnostic, ...]
    arrays: Arrays | None = None
    """Set where the source holds its images decoded, all of one size; then ``read`` is not used."""
    stamp: Callable[[Item], int] | None = None
    """A number for each file that changes with it, found without reading it; 0 where nothing is known.
    None where the source keeps no files that could be remembered."""
    groups: NDArray[np.int64] | None = None
    """The group of each row, where the source knows groups: no split may tear one apart."""


@dataclass(frozen=True)
class Listing:
    """A data set as it is used: splits made, subset taken, no image decoded."""

    info: DatasetInfo
    splits: Mapping[str, Split]
    """``train``; ``val`` and ``test`` where they exist. By class, then by name."""
    ignored: Mapping[str, int]
    """Files that are no images by rule: how many, by reason."""
    warnings: tuple[Diagnostic, ...]
    place: Path
    """The key of the recipe that names the source: where complaints about its files belong."""
    reader: Callable[[Item], bytes] = field(repr=False)
    arrays: Arrays | None = field(default=None, repr=False)
    """Set where the source holds its images decoded."""
    stamp: Callable[[Item], int] | None = field(default=None, repr=False)
    """See :attr:`Found.stamp`."""

    def read(self, item: Item) -> bytes:
        """The bytes of the image file. Safe to call from several threads. Raises ``OSError``."""
        return self.reader(item)
