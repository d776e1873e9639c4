"""The decoded store that outlives a run: what is found again, and what is noticed."""

import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from image_files import encoded, folder_spec, noise, pets, plant

from tlrecipe.data import pixels as pixels_module
from tlrecipe.data.pixels import decode_split
from tlrecipe.data.shelf import opened
from tlrecipe.data.sources import list_data
from tlrecipe.planning.facts import Preprocessing

P = Preprocessing(size=16, crop_pct=0.8)


@pytest.fixture
def shelves(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decodes(monkeypatch):
    """Counts the files that are really decoded."""
    counted = []
    real = pixels_module.decode_with_facts

    def counting(data, p):
        counted.append(data)
        return real(data, p)

    monkeypatch.setattr(pixels_module, "decode_with_facts", counting)
    return counted


def aged(root):
    """Files that have been left alone for some time."""
    for path in [root] if root.is_file() else root.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    return root


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """The clock of the file stamps an hour ahead: files that a test has just written count as settled."""
    real = time.time_ns
    monkeypatch.setattr("tlrecipe.data.reading.time.time_ns", lambda: real() + 3_600_000_000_000)


def stored(root, shelves, p=P, split="train", val=0.0, seed=0, **keys):
    return decode_split(
        list_data(folder_spec(root, val=val), seed), split, p, on_bad="error", shelves=shelves, **keys
    )


def same(left, right):
    assert left.names == right.names
    assert left.digest == right.digest
    assert torch.equal(left.images, right.images)
    assert np.array_equal(left.fingerprints, right.fingerprints)
    assert left.facts == right.facts
    return True


def mixed(count=6):
    return {name: encoded(noise(n, 10 + 5 * n, 12)) for n, name in enumerate(pets(count))}


@pytest.mark.parametrize("files", [pets(6), mixed()], ids=["of one size", "of several sizes"])
def test_a_second_run_decodes_nothing_and_has_the_same_pixels(tmp_path, shelves, decodes, files):
    root = plant(tmp_path / "pets", files)
    first = stored(root, shelves)
    assert len(decodes) == 12
    again = stored(root, shelves)
    assert len(decodes) == 12
    assert same(first, again)
    assert same(first, stored(root, None))
    assert again.changed == ()


def test_a_zip_is_remembered_too(tmp_path, shelves, decodes):
    root = plant(tmp_path / "pets", pets(3))
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in pets(3):
            archive.write(root / name, name)
    first = stored(path, shelves)
    assert same(first, stored(path, shelves))
    assert len(decodes) == 6


def test_another_seed_finds_the_images_in_the_other_split(tmp_path, shelves, decodes):
    root = plant(tmp_path / "pets", mixed())
    for seed in range(4):
        for split in ("train", "val"):
            found = stored(root, shelves, split=split, val=0.4, seed=seed)
            assert same(found, stored(root, None, split=split, val=0.4, seed=seed))
    assert len(decodes) == 12 + 4 * 12


def test_what_is_stored_does_not_depend_on_what_an_earlier_run_saw(tmp_path, shelves):
    """A split that held one large image is fitted; without it, the small ones keep their size again."""
    root = plant(tmp_path / "pets", {**dict.fromkeys(pets(4)), "cat/large.png": encoded(noise(9, 40, 40))})
    assert stored(root, shelves).fitted is not None
    (root / "cat/large.png").unlink()
    assert stored(root, shelves).fitted is None
    assert same(stored(root, shelves), stored(root, None))


@pytest.mark.parametrize(
    "other",
    [Preprocessing(size=20, crop_pct=0.8), Preprocessing(size=16, crop_pct=0.8, background=(0, 0, 0))],
)
def test_other_preprocessing_has_a_shelf_of_its_own(tmp_path, shelves, other):
    root = plant(tmp_path / "pets", mixed())
    stored(root, shelves)
    assert same(stored(root, shelves, other), stored(root, None, other))


# --------------------------------------------------------------------------- files that change


@pytest.mark.parametrize("keep_times", [False, True])
def test_i03_changed_bytes_are_noticed_and_named(tmp_path, shelves, decodes, keep_times):
    root = plant(tmp_path / "pets", pets(4))
    stored(root, shelves)
    changed = root / "dog/2.png"
    before = changed.stat()
    changed.write_bytes(encoded(noise(99)))
    if keep_times:
        # A program can set the time of change back, but not the time of that.
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = stored(root, shelves)
    assert again.changed == ("dog/2.png",)
    assert len(decodes) == 8 + 1
    assert same(again, stored(root, None))
    assert stored(root, shelves).changed == ()
    assert len(decodes) == 8 + 1 + 8


def test_a_file_that_was_only_touched_is_not_decoded_again(tmp_path, shelves, decodes):
    root = plant(tmp_path / "pets", pets(4))
    first = stored(root, shelves)
    os.utime(root / "dog/2.png", (1e9, 1e9))
    again = stored(root, shelves)
    assert (len(decodes), again.changed) == (8, ())
    assert same(first, again)
    reads = []
    listing = list_data(folder_spec(root, val=0.0), 0)
    object.__setattr__(listing, "reader", lambda item: reads.append(item))
    decode_split(listing, "train", P, on_bad="error", shelves=shelves)
    assert reads == []


def test_new_and_removed_files(tmp_path, shelves, decodes):
    root = plant(tmp_path / "pets", pets(4))
    stored(root, shelves)
    plant(root, ["cat/new.png"])
    (root / "dog/0.png").unlink()
    assert stored(root, shelves).changed == ()
    assert len(decodes) == 8 + 1
    assert same(stored(root, shelves), stored(root, None))


def test_a_file_that_was_written_just_now_is_read_again(tmp_path, shelves, monkeypatch):
    monkeypatch.setattr("tlrecipe.data.reading.time.time_ns", lambda: 0)
    root = plant(tmp_path / "pets", pets(4))
    stored(root, shelves)
    read = []
    listing = list_data(folder_spec(root, val=0.0), 0)
    real = listing.reader
    object.__setattr__(listing, "reader", lambda item: (read.append(item), real(item))[1])
    decode_split(listing, "train", P, on_bad="error", shelves=shelves)
    assert len(read) == 8


# --------------------------------------------------------------------------- trouble with the shelf


@pytest.mark.parametrize("damage", ["flip", "cut", "no pixels", "no index", "bad index", "other index"])
def test_a_damaged_shelf_costs_time_and_no_pixel(tmp_path, shelves, decodes, damage):
    root = plant(tmp_path / "pets", pets(4))
    stored(root, shelves)
    (place,) = shelves.iterdir()
    pixels, index = place / "pixels.bin", place / "index.npy"
    content = bytearray(pixels.read_bytes())
    if damage == "flip":
        content[1000] ^= 1
        pixels.write_bytes(content)
    elif damage == "cut":
        pixels.write_bytes(content[:1000])
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "no index":
        index.unlink()
    elif damage == "bad index":
        index.write_bytes(index.read_bytes()[:50])
    else:
        np.save(index, np.zeros(3))
    assert same(stored(root, shelves), stored(root, None))
    assert same(stored(root, shelves), stored(root, None))


def test_two_processes_at_once(tmp_path, shelves):
    root = plant(tmp_path / "pets", pets(4))
    first = stored(root, None)
    key = None
    stored(root, shelves)
    (key,) = (place.name for place in shelves.iterdir())
    with opened(shelves, key) as held:
        assert held is not None
        plant(root, ["cat/new.png"])
        beside = stored(root, shelves)
        assert same(beside, stored(root, None))
    assert set(first.names) < set(beside.names)


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    root = plant(tmp_path / "pets", pets(4))
    (tmp_path / "file").write_bytes(b"")
    assert same(stored(root, tmp_path / "file" / "cache"), stored(root, None))


def test_a_full_disk_is_no_reason_to_stop(tmp_path, shelves, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    root = plant(tmp_path / "pets", pets(4))
    monkeypatch.setattr("tlrecipe.data.shelf.os.write", full)
    assert same(stored(root, shelves), stored(root, None))
    monkeypatch.undo()
    assert same(stored(root, shelves), stored(root, None))


def test_images_before_an_interrupt_are_kept(tmp_path, shelves, decodes):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    root = plant(tmp_path / "pets", pets(4))
    with pytest.raises(KeyboardInterrupt):
        stored(root, shelves, progress=stop, threads=1)
    before = len(decodes)
    stored(root, shelves)
    assert len(decodes) - before == 3


def test_the_least_recently_used_shelf_goes_first(tmp_path, shelves):
    sizes = (16, 20, 24)
    root = plant(tmp_path / "pets", mixed())
    names = []
    for age, size in enumerate(sizes):
        stored(root, shelves, Preprocessing(size=size))
        (new,) = {place.name for place in shelves.iterdir()} - set(names)
        names.append(new)
        os.utime(shelves / new, (1e9 + age, 1e9 + age))
    largest = sum(file.stat().st_size for file in (shelves / names[2]).iterdir())
    with opened(shelves, names[2], limit=largest + 100):
        pass
    assert [place.name for place in shelves.iterdir()] == [names[2]]


def test_a_killed_process_leaves_a_sound_shelf(tmp_path, shelves):
    root = aged(plant(tmp_path / "pets", pets(4)))
    code = (
        "import os, sys; from pathlib import Path; from tlrecipe.data.pixels import decode_split;"
        "from tlrecipe.data.sources import list_data; from tlrecipe.language.spec import FolderData;"
        "from tlrecipe.planning.facts import Preprocessing;"
        "listing = list_data(FolderData(source='folder', path=sys.argv[1], val=0.0), 0);"
        "decode_split(listing, 'train', Preprocessing(size=16, crop_pct=0.8), on_bad='error',"
        " shelves=Path(sys.argv[2]), progress=lambda done, total: done == 5 and os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root), str(shelves)]).returncode == 9
    assert same(stored(root, shelves), stored(root, None))
