"""What a power failure leaves, by a model of the disk: anything that was not flushed may be lost.

A file's bytes are safe once it is flushed, a change of names once its folder is. Until then each may have
reached the disk or not, alone and in any order, and bytes may be there in part or as zeros. The model
replays the real operations of a save, cuts the power after each of them, and looks at every disk there
could be.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tlrecipe import files
from tlrecipe.artifacts import checkpoint

Names = dict[str, int]
"""Names in the folder, each of a file by its number."""


@dataclass
class Disk(files.Operations):
    """Carries operations out, and keeps what may be lost of them."""

    folder: Path
    honest: bool = True
    """Whether flushing is believed; a disk that lies is the negative control."""
    content: dict[int, bytes] = field(default_factory=dict)
    flushed: set[int] = field(default_factory=set)
    durable: Names = field(default_factory=dict)
    pending: list[Names] = field(default_factory=list)
    """Changes of names since the folder was flushed; -1 takes a name away."""
    moments: list[list[dict[str, bytes]]] = field(default_factory=list)
    """After each operation, every folder that a power failure could leave."""

    def __post_init__(self) -> None:
        self._open: dict[int, int] = {}
        for number, path in enumerate(sorted(self.folder.iterdir())):
            self.content[number] = path.read_bytes()
            self.flushed.add(number)
            self.durable[path.name] = number
        self._now = dict(self.durable)

    def open(self, path: Path, flags: int) -> int:
        descriptor = super().open(path, flags)
        if flags & os.O_CREAT:
            number = len(self.content)
            self.content[number] = b""
            self._open[descriptor] = number
            self._change({path.name: number})
        else:
            self._open[descriptor] = -1
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        written = super().write(descriptor, data)
        number = self._open[descriptor]
        self.content[number] += bytes(data[:written])
        self.flushed.discard(number)
        self._moment()
        return written

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        number = self._open[descriptor]
        if self.honest and number >= 0:
            self.flushed.add(number)
        elif self.honest:
            self.durable, self.pending = dict(self._now), []
        self._moment()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._change({source.name: -1, target.name: self._now[source.name]})

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._change({path.name: -1})

    def _change(self, change: Names) -> None:
        self._now = _applied(self._now, change)
        self.pending.append(change)
        self._moment()

    def _moment(self) -> None:
        self.moments.append(list(self._after_power_loss()))

    def _after_power_loss(self) -> Iterator[dict[str, bytes]]:
        for kept in itertools.product((False, True), repeat=len(self.pending)):
            names = self.durable
            for change in itertools.compress(self.pending, kept):
                names = _applied(names, change)
            for choice in itertools.product(*(self._remains(number) for number in names.values())):
                yield dict(zip(names, choice, strict=True))

    def _remains(self, number: int) -> list[bytes]:
        whole = self.content[number]
        if number in self.flushed:
            return [whole]
        return [b"", whole[: len(whole) // 2], bytes(len(whole)), whole]


def _applied(names: Names, change: Names) -> Names:
    merged = names | change
    return {name: number for name, number in merged.items() if number >= 0}


def save(folder: Path, step: int) -> None:
    tensors = {"model/w": torch.full((5,), float(step))}
    checkpoint.save(folder, tensors, {"state": {"step": step}}, {})


def newest_after(disk: dict[str, bytes], folder: Path) -> int:
    """The step that a resume would go on from."""
    folder.mkdir()
    for name, content in disk.items():
        (folder / name).write_bytes(content)
    saved, _ = checkpoint.newest(folder)
    assert saved is not None
    step: int = saved.values["state"]["step"]
    return step


def saved_on(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", disk)
        save(disk.folder, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints, of steps 1 and 2, that are safe on the disk."""
    place = tmp_path / "checkpoints"
    place.mkdir()
    save(place, 1)
    save(place, 2)
    return place


def test_c06_power_may_fail_after_any_operation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(folder)
    saved_on(disk, monkeypatch)
    count = itertools.count()
    states = 0
    for moment in disk.moments:
        for state in moment:
            assert newest_after(state, tmp_path / str(next(count))) in (2, 3)
            states += 1
    assert states > 20
    # Once the save is done, it is done, whatever happens.
    assert {newest_after(state, tmp_path / str(next(count))) for state in disk.moments[-1]} == {3}


def test_the_model_sees_a_disk_that_does_not_flush(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(folder, honest=False)
    saved_on(disk, monkeypatch)
    found = set()
    for number, state in enumerate(disk.moments[-1]):
        found.add(newest_after(state, tmp_path / str(number)))
    assert 2 in found
