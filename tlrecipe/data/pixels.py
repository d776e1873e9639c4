"""Every image of a split, decoded once, as one array of bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlrecipe import files
from tlrecipe.data.listing import Arrays, Item, Listing, Split
from tlrecipe.data.parallel import in_order
from tlrecipe.data.preprocess import BadImage, Facts, decode_with_facts, fill_of, fit, fit_batch
from tlrecipe.data.reading import read_bytes, reason_of
from tlrecipe.data.shelf import Kept, Shelf, opened, shelf_key
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped
from tlrecipe.planning.facts import Preprocessing

MEMORY_BUDGET = 4 << 30
"""Bytes of pixels that are kept in memory; more go to a file."""

_BLOCK = 1024


class Geometry(NamedTuple):
    """The part of the preprocessing that stored pixels depend on once they are fitted."""

    size: int
    resized: int
    interpolation: str
    crop_mode: str
    fill: tuple[int, ...]

    @classmethod
    def of(cls, p: Preprocessing) -> Geometry:
        return cls(p.size, p.resized, p.interpolation, p.crop_mode, fill_of(p))


@dataclass(frozen=True, eq=False)
class Pixels:
    """The decoded images of one split, in the order of the listing without those that cannot be used."""

    images: Tensor
    """uint8 ``(N, 3, h, w)`` in channels-last memory. At their own size where all have one size that is no
    larger than what the network sees, else fitted."""
    labels: Tensor
    """int64 ``(N,)``."""
    names: tuple[str, ...]
    """Paths relative to the root of the data."""
    fingerprints: NDArray[np.uint8]
    """SHA-256 of each image file, ``(N, 32)``."""
    digest: str
    """SHA-256 over pixels, labels and the form in which they are stored."""
    bad: tuple[tuple[str, str], ...]
    """Name and reason of each file that was left out."""
    fitted: Geometry | None
    """What the images were fitted to, or None where they have their own size."""
    facts: tuple[Facts, ...] = ()
    """What each file is; each different one is one object. Empty where the source holds no files."""
    changed: tuple[str, ...] = ()
    """Names of the files whose bytes are not those that an earlier run decoded."""

    def __len__(self) -> int:
        return len(self.labels)

    def serves(self, p: Preprocessing) -> bool:
        """Whether :meth:`batch` can give images for ``p``; if not, they have to be decoded for it."""
        return self.fitted is None or self.fitted == Geometry.of(p)

    def batch(self, indices: Tensor, p: Preprocessing) -> Tensor:
        """The images of ``indices`` (int64 ``(B,)``) as uint8 ``(B, 3, size, size)``, channels-last.

        Raises ``ValueError`` if the store does not serve ``p``.
        """
        if not self.serves(p):
            raise ValueError(f"pixels fitted to {self.fitted} cannot give {Geometry.of(p)}")
        chosen = self.images.permute(0, 2, 3, 1)[indices].permute(0, 3, 1, 2)
        return fit_batch(chosen, p) if self.fitted is None else chosen


# --------------------------------------------------------------------------- a split of a data set


class _Loaded(NamedTuple):
    kept: Kept
    stamp: int = 0
    row: Any = None
    """What the shelf knew of the same bytes."""
    news: Literal["none", "touched", "new", "changed"] = "new"
    """How the file stands to what the shelf knew."""


def decode_split(
    listing: Listing,
    split: str,
    p: Preprocessing,
    *,
    on_bad: Literal["error", "skip"],
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
    budget: int = MEMORY_BUDGET,
    scratch: Path | None = None,
    shelves: Path | None = None,
) -> Pixels:
    """Reads and decodes all images of ``split``, on several threads.

    With a folder ``shelves`` images are kept there for later runs, and those that are there already are not
    decoded again unless their files have changed.

    ``progress`` is called with the images done and their number. More than ``budget`` bytes of pixels go
    to a memory-mapped file in the folder ``scratch`` (default: the system's temporary folder); it has no
    name, so it disappears with the process, however that ends.

    Raises ``TlrecipeError``: TLR404 with the files that cannot be used, unless ``on_bad`` is ``"skip"``;
    TLR402 where skipping leaves a class without images; TLR901 where the disk is full; TLR1001 with the
    file in flight where a decoder hangs.
    """
    if listing.arrays is not None:
        return _from_arrays(listing.splits[split], listing.arrays, p, progress, threads, budget, scratch)
    items = listing.splits[split]
    store = _Store(len(items), p, budget, scratch)
    kept: list[Item] = []
    fingerprints: list[bytes] = []
    bad: list[tuple[str, str]] = []

    facts: list[Facts] = []
    changed: list[str] = []
    known: dict[Facts, Facts] = {}

    with _shelf(listing, p, shelves) as shelf:
        # A shelf keeps small images at their own size whatever else the split holds: what is stored must not
        # depend on what an earlier run saw.
        def load(item: Item) -> _Loaded | BadImage:
            return _load(listing, item, p, shelf, keep_size=store.native or shelf is not None)

        for done, (item, result) in enumerate(
            in_order(load, items, threads, named=lambda item: item.name), start=1
        ):
            if isinstance(result, BadImage):
                bad.append((item.name, result.reason))
            else:
                store.add(result.kept)
                kept.append(item)
                fingerprints.append(result.kept.fingerprint)
                facts.append(known.setdefault(result.kept.facts, result.kept.facts))
                if result.news == "changed":
                    changed.append(item.name)
                if shelf is not None and result.news != "none":
                    shelf.add(item.name, result.stamp, result.kept, result.row)
            if progress:
                progress(done, len(items))
    if bad and on_bad == "error":
        raise TlrecipeError(_bad_files(bad, listing))
    _refuse_lost_classes(listing, split, kept)
    images = store.images()
    labels = torch.tensor([item.label for item in kept], dtype=torch.int64)
    fitted = None if store.native else Geometry.of(p)
    return Pixels(
        images=images,
        labels=labels,
        names=tuple(item.name for item in kept),
        fingerprints=np.frombuffer(b"".join(fingerprints), dtype=np.uint8).reshape(-1, 32),
        digest=_digest(images, labels, fitted, threads),
        bad=tuple(bad),
        fitted=fitted,
        facts=tuple(facts),
        changed=tuple(changed),
    )


def _from_arrays(
    split: Split,
    arrays: Arrays,
    p: Preprocessing,
    progress: Callable[[int, int], None] | None,
    threads: int | None,
    budget: int,
    scratch: Path | None,
) -> Pixels:
    """As :func:`decode_split`, where the source holds its images decoded; a fingerprint is over pixels."""
    fingerprints = np.empty((len(split), 32), dtype=np.uint8)
    height, width = arrays(split.rows[:1]).shape[1:3]
    native = max(height, width) <= p.size
    rows = _room(len(split), (height, width) if native else (p.size, p.size), budget, scratch)

    def fill(start: int) -> None:
        images = np.ascontiguousarray(arrays(split.rows[start : start + _BLOCK]))
        for place, image in enumerate(images, start):
            fingerprints[place] = np.frombuffer(hashlib.sha256(image).digest(), dtype=np.uint8)
        pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
        pixels = pixels.expand(-1, 3, -1, -1)
        fitted = pixels if native else fit_batch(pixels, p)
        rows[start : start + len(images)] = fitted.permute(0, 2, 3, 1)

    for start, _ in in_order(fill, range(0, len(split), _BLOCK), threads):
        if progress:
            progress(min(start + _BLOCK, len(split)), len(split))
    images, labels = rows.permute(0, 3, 1, 2), torch.from_numpy(split.labels)
    fitted = None if native else Geometry.of(p)
    return Pixels(
        images=images,
        labels=labels,
        names=tuple(item.name for item in split),
        fingerprints=fingerprints,
        digest=_digest(images, labels, fitted, threads),
        bad=(),
        fitted=fitted,
    )


@contextmanager
def _shelf(listing: Listing, p: Preprocessing, folder: Path | None) -> Iterator[Shelf | None]:
    if folder is None or listing.stamp is None:
        yield None
        return
    key = shelf_key(
        origin=os.path.realpath(listing.info.origin),
        geometry=Geometry.of(p),
        background=p.background,
        max_pixels=p.max_pixels,
        versions=(PIL.__version__, torch.__version__),
    )
    with opened(folder, key) as shelf:
        yield shelf


def _load(
    listing: Listing, item: Item, p: Preprocessing, shelf: Shelf | None, *, keep_size: bool
) -> _Loaded | BadImage:
    """An image from the shelf where its file is as it was, else decoded."""
    # Before the file is read: what is written later must be noticed by the next run.
    stamp = listing.stamp(item) if listing.stamp and shelf else 0
    row = shelf.find(item.name) if shelf else None
    if shelf and row is not None and stamp and stamp == int(row["stamp"]) and (found := shelf.take(row)):
        return _Loaded(found, stamp, row, "none")
    try:
        data = listing.read(item)
    except (OSError, MemoryError) as error:
        return BadImage(f"cannot be read: {reason_of(error)}")
    fingerprint = hashlib.sha256(data).digest()
    if shelf and row is not None and row["digest"].tobytes() == fingerprint:
        found = shelf.take(row)
        if found is not None:
            return _Loaded(found, stamp, row, "touched")
        row = None
    decoded = _decoded(data, fingerprint, p, keep_size=keep_size)
    if isinstance(decoded, BadImage):
        return decoded
    return _Loaded(decoded, stamp, None, "new" if row is None else "changed")


def _decoded(data: bytes, fingerprint: bytes, p: Preprocessing, *, keep_size: bool) -> Kept | BadImage:
    """An image as decoded if it may keep its size and is not larger than the network's, else fitted."""
    try:
        image, facts = decode_with_facts(data, p)
    except BadImage as bad:
        return bad
    except MemoryError as error:
        return BadImage(f"cannot be read: {reason_of(error)}")
    fitted = not (keep_size and max(image.shape[1:]) <= p.size)
    return Kept(fit(image, p) if fitted else image, fitted, fingerprint, facts)


class _Store:
    """Rows of images: at their own size until a second size turns up, from then on all fitted."""

    def __init__(self, capacity: int, p: Preprocessing, budget: int, scratch: Path | None):
        self.native = True
        self._capacity = capacity
        self._p = p
        self._budget = budget
        self._scratch = scratch
        self._count = 0
        self._rows = torch.empty((0, 0, 0, 3), dtype=torch.uint8)

    def add(self, decoded: Kept) -> None:
        image = decoded.image.permute(1, 2, 0)
        if self._count == 0:
            self.native = not decoded.fitted
            self._rows = self._allocate(image.shape[0], image.shape[1])
        elif self.native and (decoded.fitted or image.shape != self._rows.shape[1:]):
            self._fit_all()
        if not self.native and not decoded.fitted:
            image = fit(decoded.image, self._p).permute(1, 2, 0)
        self._rows[self._count] = image
        self._count += 1

    def images(self) -> Tensor:
        return self._rows[: self._count].permute(0, 3, 1, 2)

    def _fit_all(self) -> None:
        own = self.images()
        self.native = False
        self._rows = self._allocate(self._p.size, self._p.size)
        for start in range(0, len(own), _BLOCK):
            part = fit_batch(own[start : start + _BLOCK], self._p)
            self._rows[start : start + len(part)] = part.permute(0, 2, 3, 1)

    def _allocate(self, height: int, width: int) -> Tensor:
        return _room(self._capacity, (height, width), self._budget, self._scratch)


def _room(count: int, sides: tuple[int, int], budget: int, scratch: Path | None) -> Tensor:
    """Room for ``(count, height, width, 3)`` bytes: in memory within the budget, else on disk."""
    shape = (count, *sides, 3)
    size = prod(shape)
    return torch.empty(shape, dtype=torch.uint8) if size <= budget else _on_disk(shape, size, scratch)


def _on_disk(shape: tuple[int, ...], size: int, folder: Path | None) -> Tensor:
    where = folder or Path(tempfile.gettempdir())
    try:
        with files.scratch_file(where, size) as descriptor, open(descriptor, "r+b", closefd=False) as file:
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))
    except OSError as error:
        message = f"`{where}` cannot hold {size / 2**20:,.0f} MiB of decoded images: {reason_of(error)}"
        cure = "make room, or choose a smaller `data.size`"
        raise TlrecipeError.of("TLR901", message, help=cure) from error


def _bad_files(bad: Sequence[tuple[str, str]], listing: Listing) -> list[Diagnostic]:
    cure = 'repair or remove them, or leave them out with `data.on_bad = "skip"`'
    return capped([Diagnostic("TLR404", f"`{name}`: {reason}", listing.place, cure) for name, reason in bad])


def _refuse_lost_classes(listing: Listing, split: str, kept: Sequence[Item]) -> None:
    before = set(listing.splits[split].labels.tolist())
    lost = sorted(before - {item.label for item in kept})
    if lost:
        names = ", ".join(f"`{listing.info.classes[label]}`" for label in lost)
        raise TlrecipeError.of("TLR402", f"no image in {split} can be used of {names}", path=listing.place)


def _digest(images: Tensor, labels: Tensor, fitted: Geometry | None, threads: int | None) -> str:
    rows = images.permute(0, 2, 3, 1).numpy()
    total = hashlib.sha256(f"{rows.shape} {fitted}".encode())
    total.update(labels.numpy().astype("<i8").tobytes())

    def block_digest(start: int) -> bytes:
        return hashlib.sha256(rows[start : start + _BLOCK].data).digest()

    for _, digest in in_order(block_digest, range(0, len(rows), _BLOCK), threads):
        total.update(digest)
    return total.hexdigest()


def duplicates(a: Pixels, b: Pixels) -> list[tuple[str, str]]:
    """Images of ``b`` whose file is, byte for byte, also in ``a``: pairs of the names in ``a`` and ``b``."""
    first: dict[bytes, str] = {}
    for name, fingerprint in zip(a.names, a.fingerprints, strict=True):
        first.setdefault(fingerprint.tobytes(), name)
    pairs = zip(b.names, b.fingerprints, strict=True)
    return [(first[mark], name) for name, mark in ((n, f.tobytes()) for n, f in pairs) if mark in first]


# --------------------------------------------------------------------------- single files


def decode_files(
    paths: Sequence[Path], p: Preprocessing, *, threads: int | None = None
) -> Iterator[tuple[Path, Tensor | BadImage]]:
    """Each path in the order given, with its image as uint8 ``(3, size, size)`` or why there is none."""

    def load(path: Path) -> Tensor | BadImage:
        try:
            data = read_bytes(path)
        except (OSError, MemoryError) as error:
            return BadImage(f"cannot be read: {reason_of(error)}")
        result = _decoded(data, b"", p, keep_size=False)
        return result if isinstance(result, BadImage) else result.image

    yield from in_order(load, paths, threads, named=str)
