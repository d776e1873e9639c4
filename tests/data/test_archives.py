import copy
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from image_files import folder_spec, pets, plant

from tlrecipe.data.sources import list_data
from tlrecipe.language.diagnostics import TlrecipeError


@pytest.fixture
def zipped(tmp_path):
    """A zip file of a planted tree, with a folder around it if ``top`` is given."""

    def zipped(files, top="", method=zipfile.ZIP_DEFLATED, folders=()):
        root = plant(tmp_path / "tree", files)
        path = tmp_path / "pets.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in folders:
                archive.writestr(zipfile.ZipInfo(f"{top}{name}/"), b"")
            for name in reversed(list(files)):
                archive.write(root / name, f"{top}{name}")
        return path

    return zipped


def complaints(path):
    with pytest.raises(TlrecipeError) as caught:
        list_data(folder_spec(path, val=0.0), seed=0)
    return [(problem.code, problem.message) for problem in caught.value.diagnostics]


TREE = pets(9, "train/") + pets(2, "test/")


@pytest.mark.parametrize("top", ["", "pets-v1/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_zip_is_the_same_data_set_as_its_tree(tmp_path, zipped, top, method):
    path = zipped(TREE, top, method)
    packed, plain = (list_data(folder_spec(place, val=0.3), seed=5) for place in (path, tmp_path / "tree"))
    assert packed.info.counts == plain.info.counts == {"train": 12, "val": 6, "test": 4}
    for split in plain.splits:
        for left, right in zip(packed.splits[split], plain.splits[split], strict=True):
            assert (left.name, left.label) == (right.name, right.label)
            assert packed.read(left) == plain.read(right)


def test_threads_read_side_by_side(zipped):
    listing = list_data(folder_spec(zipped(pets(40)), val=0.0), seed=0)
    items = list(listing.splits["train"]) * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(listing.read, items)) == [listing.read(item) for item in items]


def test_clutter_of_archives_is_ignored(zipped):
    clutter = ["__MACOSX/cat/._0.png", "cat/.DS_Store", ".git/x.png", "readme.txt"]
    listing = list_data(folder_spec(zipped([*pets(), *clutter]), val=0.0), seed=0)
    assert listing.info.counts == {"train": 8}
    assert listing.ignored == {"system": 1, "hidden": 2, "text or data": 1}


def test_an_empty_class_folder_in_a_zip_is_seen(zipped):
    path = zipped(pets(), folders=["emu"])
    assert complaints(path) == [("TLR402", f"no images in `emu` of `{path}`")]


@pytest.mark.parametrize(
    "name", ["", "/cat/1.png", "../cat/1.png", "cat/../../1.png", "C:/cat/1.png", "cat\\1.png"]
)
def test_names_that_lead_out_are_refused(zipped, name):
    path = zipped(pets())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        archive.writestr(info, b"x")
    ((code, message),) = complaints(path)
    assert code == "TLR401"
    assert f"`{name}`" in message


def test_encrypted_members_are_refused(zipped):
    path = zipped(pets())
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    ((code, message),) = complaints(path)
    assert (code, message.endswith("is encrypted")) == ("TLR401", True)


def test_unusual_packing_is_refused(zipped):
    found = complaints(zipped(pets(1), method=zipfile.ZIP_LZMA))
    assert {code for code, _ in found} == {"TLR401"}
    assert all("other than deflate" in message for _, message in found)


def test_a_member_named_twice_is_refused(zipped):
    path = zipped(pets())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("cat/0.png", b"other")
    assert complaints(path) == [("TLR401", f"`{path}`: `cat/0.png` is there twice")]


def test_a_member_that_unpacks_to_more_than_one_image_is_refused(zipped):
    path = zipped(pets())
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\1\2")
    data[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    ((code, message),) = complaints(path)
    assert (code, message.endswith("unpacks to more than 1024 MiB")) == ("TLR401", True)


def test_a_bomb_of_overlapping_members_is_refused(zipped):
    path = zipped({**dict.fromkeys(pets()), "cat/big.png": bytes(range(256)) * 40}, method=zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(3):
            again = copy.copy(archive.getinfo("cat/big.png"))
            again.filename = f"cat/big{number}.png"
            archive.filelist.append(again)
        archive.writestr("dog/last.png", b"")
    assert complaints(path) == [("TLR401", f"`{path}`: its members overlap")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("place", ["header", "data"])
def test_damage_is_noticed_when_a_member_is_read(zipped, method, place):
    path = zipped(pets(), method=method)
    listing = list_data(folder_spec(path, val=0.0), seed=0)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("cat/2.png")
    data[info.header_offset + (0 if place == "header" else 30 + len("cat/2.png") + 40)] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        listing.read(listing.splits["train"][2])
    assert listing.read(listing.splits["train"][3])


def test_an_archive_that_shrank_is_noticed(zipped):
    path = zipped(pets())
    listing = list_data(folder_spec(path, val=0.0), seed=0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(OSError):
        [listing.read(item) for item in listing.splits["train"]]
