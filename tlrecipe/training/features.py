"""The feature store: outputs of frozen prefixes, computed once and found again by content.

An entry is addressed by everything that its numbers depend on. It is held in memory, and kept under a
folder for later runs where there is one: written beside its place and renamed, its digest checked when
it is opened, the least recently used dropped when the folder grows over its limit. Nothing is flushed to
the disk by force: a torn entry fails its digest and is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.training.numerics import rows_not_finite

_FORMAT = 1
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CHUNK = 1 << 24
_ROWS = 1024


def content_key(**parts: Any) -> str:
    """SHA-256 of named plain values: the address of an entry."""
    parts["format"] = _FORMAT
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class FeatureStore:
    """Entries by key. ``folder`` None keeps them in memory only."""

    folder: Path | None = None
    limit_bytes: int = 20 << 30
    """Largest size of the folder."""
    memory_bytes: int = 4 << 30
    """Entries up to this size are held in memory while they are computed; larger ones are mapped files."""

    def __post_init__(self) -> None:
        self._open: dict[str, tuple[Tensor, ...]] = {}
        self.hits = 0
        self.writes = 0

    def find(self, key: str) -> tuple[Tensor, ...] | None:
        """The tensors of an entry, or None. A damaged entry is removed and counts as absent."""
        if key not in self._open and self.folder is not None:
            tensors = _read(self.folder / key)
            if tensors is not None:
                self._open[key] = tensors
        found = self._open.get(key)
        self.hits += found is not None
        return found

    def has(self, key: str) -> bool:
        """Whether an entry seems to be there, without opening it."""
        return key in self._open or (self.folder is not None and (self.folder / key / "meta.json").exists())

    def create(self, key: str, count: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Entry:
        """Room for an entry of ``count`` rows; it exists for others only after :meth:`Entry.commit`."""
        size = count * sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
        scratch: Path | None = None
        if self.folder is not None and size <= self.limit_bytes:
            # A cache that cannot be written is no reason to stop.
            with suppress(TlrecipeError):
                files.make_folder(self.folder)
                self._drop_abandoned()
                scratch = files.make_temporary_folder(self.folder / key)
        mapped = scratch is not None and size > self.memory_bytes
        tensors = []
        try:
            for index, shape in enumerate(shapes):
                full = (count, *shape)
                if scratch is not None and mapped:
                    elements = torch.Size(full).numel()
                    file = scratch / f"{index}.bin"
                    files.reserve(file, elements * dtype.itemsize)
                    flat = torch.from_file(str(file), shared=True, size=elements, dtype=dtype)
                    tensors.append(flat.view(full))
                else:
                    tensors.append(torch.empty(full, dtype=dtype))
        except BaseException:
            if scratch is not None:
                _drop(scratch)
            raise
        return Entry(self, key, tuple(tensors), scratch, mapped)

    def room(self) -> int:
        """Bytes that an entry may take: in memory, or within the folder's limit and the space on its disk."""
        if self.folder is None:
            return self.memory_bytes
        free = files.free_bytes(self.folder)
        return self.limit_bytes if free is None else min(self.limit_bytes, max(self.memory_bytes, free))

    def _drop_abandoned(self) -> None:
        assert self.folder is not None
        for leftover in files.leftovers(self.folder):
            if not files.is_being_written(leftover):
                _drop(leftover)

    def _shrink(self, keep: str) -> None:
        """Drop least recently used entries until the folder fits its limit."""
        assert self.folder is not None
        entries = sorted(entries_of(self.folder), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.limit_bytes:
                return
            if entry.key != keep:
                _drop(self.folder / entry.key)
                total -= entry.size


class NotFiniteFeatures(Exception):  # noqa: N818 - a finding about images
    """Features with NaN or infinite values: of which images of a split, by row."""

    def __init__(self, split: str, rows: list[int]):
        super().__init__(split, rows)
        self.split, self.rows = split, rows


@dataclass
class Entry:
    """An entry while it is written."""

    store: FeatureStore
    key: str
    tensors: tuple[Tensor, ...]
    _scratch: Path | None
    mapped: bool

    def commit(self, about: dict[str, Any]) -> tuple[Tensor, ...]:
        """Make the entry visible, with ``about`` beside it for people; gives its tensors.

        Raises :class:`NotFiniteFeatures`, with nothing stored.
        """
        if rows := self._rows_not_finite():
            raise NotFiniteFeatures(str(about["split"]), rows)
        self.store._open[self.key] = self.tensors
        self.store.writes += 1
        if self._scratch is not None and self.store.folder is not None:
            # The disk is full: this run has the features, later ones compute them.
            with suppress(TlrecipeError):
                self._write(self._scratch, self.store.folder / self.key, about)
                self.store._shrink(self.key)
        return self.tensors

    def _rows_not_finite(self) -> list[int]:
        return sorted(
            {
                start + row
                for tensor in self.tensors
                for start in range(0, len(tensor), _ROWS)
                for row in rows_not_finite(tensor[start : start + _ROWS])
            }
        )

    def _write(self, scratch: Path, place: Path, about: dict[str, Any]) -> None:
        digests = []
        try:
            for index, tensor in enumerate(self.tensors):
                data = tensor.reshape(-1).view(torch.uint8).numpy().data
                if not self.mapped:
                    files.write_atomic(scratch / f"{index}.bin", data, sync=False)
                digests.append(_digest(data))
            meta = {
                "shapes": [list(tensor.shape) for tensor in self.tensors],
                "dtype": str(self.tensors[0].dtype).removeprefix("torch."),
                "sha256": digests,
                "about": about,
            }
            files.write_atomic(scratch / "meta.json", json.dumps(meta, indent=1).encode(), sync=False)
            # Another process may have been faster with the same numbers; then its entry stays.
            files.rename_folder(scratch, place)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was written; does nothing after a successful commit."""
        if self._scratch is not None:
            _drop(self._scratch)


@dataclass(frozen=True)
class Stored:
    """An entry on disk, as ``tlrecipe cache list`` shows it."""

    key: str
    size: int
    used: float
    """Seconds since the epoch of the last use."""
    about: dict[str, Any]


def entries_of(folder: Path) -> list[Stored]:
    """All entries of a store's folder."""
    entries = []
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        if place.name.startswith("."):
            continue
        with suppress(OSError, ValueError, KeyError):
            meta = json.loads((place / "meta.json").read_text())
            size = sum(file.stat().st_size for file in place.iterdir())
            entries.append(Stored(place.name, size, (place / "meta.json").stat().st_mtime, meta["about"]))
    return entries


def _read(place: Path) -> tuple[Tensor, ...] | None:
    if not (place / "meta.json").exists():
        return None
    try:
        meta = json.loads((place / "meta.json").read_text())
        dtype = _DTYPES[meta["dtype"]]
        tensors = []
        for index, (shape, digest) in enumerate(zip(meta["shapes"], meta["sha256"], strict=True)):
            file = place / f"{index}.bin"
            elements = torch.Size(shape).numel()
            if file.stat().st_size != elements * dtype.itemsize:
                raise ValueError("wrong size")
            flat = torch.from_file(str(file), shared=False, size=elements, dtype=dtype)
            if _digest(flat.view(torch.uint8).numpy().data) != digest:
                raise ValueError("wrong digest")
            tensors.append(flat.view(shape))
        with suppress(OSError):  # a read-only cache is read all the same
            files.touch(place / "meta.json")
        return tuple(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        _drop(place)
        return None


def _digest(data: memoryview) -> str:
    total = hashlib.sha256()
    for start in range(0, len(data), _CHUNK):
        total.update(data[start : start + _CHUNK])
    return total.hexdigest()


def _drop(place: Path) -> None:
    """Remove what is only a cache; where that fails, it stays."""
    with suppress(TlrecipeError):
        files.remove(place)
