"""Every image of a split, decoded once, as one array of bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlrecipe.data.listing import Item, Listing
from tlrecipe.data.preprocess import BadImage, decode, fit, fit_batch
from tlrecipe.data.reading import read_bytes, reason_of
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped
from tlrecipe.planning.facts import Preprocessing

MEMORY_BUDGET = 4 << 30
"""Bytes of pixels that are kept in memory; more go to a file."""

TIMEOUT = 120
"""Seconds after which an image that is still being read or decoded is given up."""

_BLOCK = 1024

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Geometry(NamedTuple):
    """The part of the preprocessing that stored pixels depend on once they are fitted."""

    size: int
    crop_pct: float
    interpolation: str

    @classmethod
    def of(cls, p: Preprocessing) -> Geometry:
        return cls(p.size, p.crop_pct, p.interpolation)


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


class _Decoded(NamedTuple):
    image: Tensor
    fitted: bool
    fingerprint: bytes


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
) -> Pixels:
    """Reads and decodes all images of ``split``, on several threads.

    ``progress`` is called with the images done and their number. More than ``budget`` bytes of pixels go
    to a memory-mapped file in the folder ``scratch`` (default: the system's temporary folder); it has no
    name, so it disappears with the process, however that ends.

    Raises ``TlrecipeError``: TLR404 with the files that cannot be used, unless ``on_bad`` is ``"skip"``;
    TLR402 where skipping leaves a class without images; TLR901 where the disk is full; TLR1001 with the
    file in flight where a decoder hangs.
    """
    items = listing.splits[split]
    store = _Store(len(items), p, budget, scratch)
    kept: list[Item] = []
    fingerprints: list[bytes] = []
    bad: list[tuple[str, str]] = []

    def load(item: Item) -> _Decoded | BadImage:
        return _load(lambda: listing.read(item), p, keep_size=store.native)

    decoded = _in_order(load, items, threads, named=lambda item: item.name)
    for done, (item, result) in enumerate(decoded, start=1):
        if isinstance(result, BadImage):
            bad.append((item.name, result.reason))
        else:
            store.add(result)
            kept.append(item)
            fingerprints.append(result.fingerprint)
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
    )


def _load(read: Callable[[], bytes], p: Preprocessing, *, keep_size: bool) -> _Decoded | BadImage:
    """An image as decoded if it may keep its size and is not larger than the network's, else fitted."""
    try:
        data = read()
        image = decode(data, p)
    except BadImage as bad:
        return bad
    except (OSError, MemoryError) as error:
        return BadImage(f"cannot be read: {reason_of(error)}")
    small = max(image.shape[1:]) <= p.size
    fitted = not (keep_size and small)
    return _Decoded(fit(image, p) if fitted else image, fitted, hashlib.sha256(data).digest())


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

    def add(self, decoded: _Decoded) -> None:
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
        shape = (self._capacity, height, width, 3)
        size = self._capacity * height * width * 3
        if size <= self._budget:
            return torch.empty(shape, dtype=torch.uint8)
        return _on_disk(shape, size, self._scratch)


def _on_disk(shape: tuple[int, ...], size: int, folder: Path | None) -> Tensor:
    try:
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Claims the space now: a full disk met later, through the map, would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))
    except OSError as error:
        where = folder or Path(tempfile.gettempdir())
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

    for _, digest in _in_order(block_digest, range(0, len(rows), _BLOCK), threads):
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
        result = _load(lambda: read_bytes(path), p, keep_size=False)
        return result if isinstance(result, BadImage) else result.image

    yield from _in_order(load, paths, threads, named=str)


def _in_order(
    work: Callable[[_In], _Out],
    inputs: Iterable[_In],
    threads: int | None,
    named: Callable[[_In], str] | None = None,
) -> Iterator[tuple[_In, _Out]]:
    """Inputs with their results, in order. Threads run ahead by a few inputs only, to bound the memory.

    Where inputs are ``named``, one that has no result after :data:`TIMEOUT` raises TLR1001.
    """
    count = threads or min(os.cpu_count() or 1, 16)
    running: deque[tuple[_In, Future[_Out]]] = deque()
    pool = ThreadPoolExecutor(count)
    hangs = False

    def next_result() -> tuple[_In, _Out]:
        nonlocal hangs
        first, future = running.popleft()
        if named is None:
            return first, future.result()
        # Second by second, so that the time in which the process is stopped does not count.
        for _ in range(TIMEOUT):
            if future in wait([future], timeout=1).done:
                return first, future.result()
        hangs = True
        raise TlrecipeError.of(
            "TLR1001",
            f"`{named(first)}` is being read or decoded for more than {TIMEOUT} seconds",
            help="the file or the disk that it is on does not answer: remove the file or see to the disk",
        )

    try:
        for item in inputs:
            running.append((item, pool.submit(work, item)))
            if len(running) > 4 * count:
                yield next_result()
        while running:
            yield next_result()
    finally:
        pool.shutdown(wait=not hangs, cancel_futures=True)
