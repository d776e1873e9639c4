"""Decoded images that outlive a run: found again by name, as long as their files have not changed.

A shelf is a folder with two files. ``pixels.bin`` only grows, so another process may read what it knows
while this one adds. ``index.npy`` says what lies where; it is replaced whole, after the pixels that it
names have been written. A torn or missing part costs decoding again, and never a wrong pixel: each image
has a checksum.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlrecipe import files
from tlrecipe.data.preprocess import Facts
from tlrecipe.language.diagnostics import TlrecipeError

if sys.platform != "win32":
    import fcntl

LIMIT_BYTES = 20 << 30
"""Largest size of all shelves together; the least recently used go first."""

_FORMAT = 1
_ROW = np.dtype(
    [
        ("key", "<u8"),
        ("stamp", "<u8"),
        ("digest", "u1", 32),
        ("offset", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("fitted", "?"),
        ("checksum", "<u4"),
        ("format", "S8"),
        ("file_height", "<i4"),
        ("file_width", "<i4"),
        ("traits", "<u2"),
    ]
)


class Kept(NamedTuple):
    """An image on a shelf, or on its way there."""

    image: Tensor
    """uint8 ``(3, H, W)``."""
    fitted: bool
    """Whether it has the network's size and not its own."""
    fingerprint: bytes
    """SHA-256 of its file."""
    facts: Facts


def shelf_key(**parts: Any) -> str:
    """The name of a shelf: a digest of all that its pixels depend on beside their files."""
    parts["format"] = _FORMAT
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@contextmanager
def opened(folder: Path, key: str, limit: int = LIMIT_BYTES) -> Iterator[Shelf | None]:
    """The shelf ``key`` in ``folder`` while the block runs; what was added is there for later runs, also
    where the block was left by an error. None where the disk refuses."""
    place = folder / key
    try:
        files.make_folder(place)
        _make_room(folder, key, limit)
        shelf = Shelf(place, limit)
    except (OSError, TlrecipeError):  # a cache that cannot be written is no reason to stop
        yield None
        return
    try:
        yield shelf
    finally:
        shelf.close()


class Shelf:
    """Images by the name of their file. Reading is safe from several threads; adding is for one."""

    def __init__(self, place: Path, limit: int):
        self._place = place
        self._room = limit
        self._rows = _read_index(place / "index.npy")
        self._added: list[tuple[Any, ...]] = []
        self._pixels = files.operations.open(place / "pixels.bin", os.O_RDWR | os.O_CREAT)
        # A second process reads beside the first, and does not add.
        self._writes = _locked(self._pixels)
        self._end = os.lseek(self._pixels, 0, os.SEEK_END)
        self._buffer = io.BytesIO()

    def find(self, name: str) -> Any | None:
        """What is known of a file: a row with ``stamp`` and ``digest`` among others, or None."""
        key = _key(name)
        at = int(np.searchsorted(self._rows["key"], np.uint64(key)))
        return self._rows[at] if at < len(self._rows) and int(self._rows["key"][at]) == key else None

    def take(self, row: Any) -> Kept | None:
        """The image of a row, or None where its bytes are not those that were written."""
        height, width = int(row["height"]), int(row["width"])
        size = height * width * 3
        data = os.pread(self._pixels, size, int(row["offset"])) if hasattr(os, "pread") else b""
        if len(data) != size or zlib.crc32(data) != int(row["checksum"]):
            return None
        image = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8).reshape(height, width, 3))
        facts = Facts(
            row["format"].decode(), int(row["file_height"]), int(row["file_width"]), int(row["traits"])
        )
        return Kept(image.permute(2, 0, 1), bool(row["fitted"]), row["digest"].tobytes(), facts)

    def add(self, name: str, stamp: int, kept: Kept, row: Any | None = None) -> None:
        """Remember an image. ``row`` is that of the same bytes, whose file was merely touched."""
        if not self._writes:
            return
        if row is not None:
            place = tuple(row[field].item() for field in ("offset", "height", "width", "fitted", "checksum"))
        else:
            pixels = kept.image.permute(1, 2, 0).contiguous().numpy()
            offset = self._end + self._buffer.tell()
            if offset + pixels.nbytes > self._room:
                return
            self._buffer.write(pixels.data)
            place = (offset, pixels.shape[0], pixels.shape[1], kept.fitted, zlib.crc32(pixels.data))
            if self._buffer.tell() > 1 << 24:
                self._flush()
        digest = np.frombuffer(kept.fingerprint, dtype=np.uint8)
        facts = kept.facts
        about = (facts.format.encode(), facts.height, facts.width, facts.traits)
        self._added.append((_key(name), stamp, digest, *place, *about))

    def close(self) -> None:
        """Write what was added, and let go of the files."""
        try:
            if self._writes and self._added:
                self._flush()
                new = np.array(self._added, dtype=_ROW)
                # Of two rows of one file the later one counts.
                rows = np.concatenate([self._rows[~np.isin(self._rows["key"], new["key"])], new[::-1]])
                _, first = np.unique(rows["key"], return_index=True)
                content = io.BytesIO()
                np.save(content, rows[first], allow_pickle=False)
                files.write_atomic(self._place / "index.npy", content.getvalue())
            with suppress(OSError):
                files.touch(self._place)
        except (OSError, TlrecipeError):
            pass  # the disk is full: later runs decode again
        finally:
            os.close(self._pixels)

    def _flush(self) -> None:
        data = self._buffer.getvalue()
        try:
            os.lseek(self._pixels, self._end, os.SEEK_SET)
            files.write_all(self._pixels, data)
        except OSError:
            self._writes = False
            self._added.clear()
            return
        self._end += len(data)
        self._buffer = io.BytesIO()


def _key(name: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"
    )


def _read_index(path: Path) -> NDArray[Any]:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0, dtype=_ROW)
    return rows if rows.dtype == _ROW and rows.ndim == 1 else np.empty(0, dtype=_ROW)


def _locked(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _make_room(folder: Path, keep: str, limit: int) -> None:
    """Drop the least recently used shelves until the others leave room."""
    places = [place for place in folder.iterdir() if place.is_dir()]
    sizes = {place: sum(file.stat().st_size for file in place.iterdir()) for place in places}
    total = sum(sizes.values())
    for place in sorted(places, key=lambda place: place.stat().st_mtime):
        if total > limit and place.name != keep:
            with suppress(TlrecipeError):
                files.remove(place)
            total -= sizes[place]
