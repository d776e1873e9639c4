import os
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from typing import get_args

import pytest
from image_files import encoded, folder_spec, noise, pets, plant

from tlrecipe.data.sources import SOURCES, list_data
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import DataSpec, SampleData


def complaints(path, **keys):
    """(code, message) of everything that is wrong with a folder."""
    with pytest.raises(TlrecipeError) as caught:
        list_data(folder_spec(path, **keys), seed=0)
    assert all(problem.path[0] == "data" for problem in caught.value.diagnostics)
    assert caught.value.exit_code == 4
    return [(problem.code, problem.message) for problem in caught.value.diagnostics]


def names(listing, split):
    return [item.name for item in listing.splits[split]]


def test_every_data_source_of_the_grammar_has_a_row():
    union = get_args(DataSpec)[0]
    assert set(SOURCES) == set(get_args(union))


def test_the_sample_is_balanced_cifar10():
    listing = list_data(SampleData(source="sample", val=0.0), seed=0)
    assert listing.info.counts == {"train": 1000, "test": 1000}
    assert len(listing.info.classes) == 10
    assert listing.info.classes[0] == "airplane"
    for split in listing.splits.values():
        assert [(split.labels == label).sum() for label in range(10)] == [100] * 10
    assert listing.read(listing.splits["test"][0]).startswith(b"\x89PNG")


# --------------------------------------------------------------------------- layouts


def test_class_folders_alone_are_the_training_split(tmp_path):
    root = plant(tmp_path, ["dog/a.png", "cat/b.JPG", "cat/a", "dog/B.png"])
    listing = list_data(folder_spec(root, val=0.0), seed=0)
    assert listing.info.classes == ("cat", "dog")
    assert names(listing, "train") == ["cat/a", "cat/b.JPG", "dog/B.png", "dog/a.png"]
    assert listing.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert [listing.read(item) for item in listing.splits["train"]] == [
        (root / item.name).read_bytes() for item in listing.splits["train"]
    ]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_are_found_under_their_usual_names(tmp_path, val):
    root = plant(tmp_path, pets(3, "train/") + pets(2, f"{val}/") + pets(1, "test/"))
    listing = list_data(folder_spec(root), seed=0)
    assert list(listing.info.counts.items()) == [("train", 6), ("val", 4), ("test", 2)]
    assert names(listing, "val")[0] == f"{val}/cat/0.png"


def test_a_class_may_be_called_like_a_split(tmp_path):
    root = plant(tmp_path, pets(2, classes=("car", "train", "test")))
    listing = list_data(folder_spec(root, val=0.0), seed=0)
    assert listing.info.classes == ("car", "test", "train")
    assert listing.info.counts == {"train": 6}


def test_labels_come_from_train_by_name_whatever_another_split_lacks(tmp_path):
    root = plant(tmp_path, pets(2, "train/", ("a", "b", "c")) + pets(1, "test/", ("c",)))
    listing = list_data(folder_spec(root, val=0.0), seed=0)
    assert [item.label for item in listing.splits["test"]] == [2]
    assert [(w.code, w.severity) for w in listing.warnings] == [("TLR403", "warning")]
    assert "`a`, `b`" in listing.warnings[0].message


def test_a_split_can_be_sliced_and_indexed_from_the_end(tmp_path):
    train = list_data(folder_spec(plant(tmp_path, pets(3)), val=0.0), seed=0).splits["train"]
    assert [item.name for item in train[1:3]] == ["cat/1.png", "cat/2.png"]
    assert train[-1].name == "dog/2.png"
    with pytest.raises(IndexError):
        train[6]


def test_d08_files_that_are_no_images_are_ignored_by_rule_and_counted(tmp_path):
    clutter = [
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "cat/._0.png",
        "dog/notes.TXT",
        ".git/config",
        "README.md",
        "LICENSE",
    ]
    root = plant(tmp_path, [*pets(), *clutter, "cat/5.JPG", "cat/6"])
    os.mkfifo(root / "cat" / "pipe.png")
    listing = list_data(folder_spec(root, val=0.0), seed=0)
    assert listing.info.counts == {"train": 10}
    assert listing.ignored == {
        "hidden": 3,
        "system": 1,
        "text or data": 2,
        "outside class folders": 1,
        "special file": 1,
    }


def test_folders_beside_the_splits_are_counted(tmp_path):
    root = plant(tmp_path, [*pets(2, "train/"), "masks/1.png", "masks/deep/2.png"])
    assert list_data(folder_spec(root, val=0.0), seed=0).ignored == {"outside class folders": 2}


# --------------------------------------------------------------------------- what is refused

NFC, NFD = "caf\u00e9", "cafe\u0301"

WRONG_TREES = {
    "D02-no-class-folders": (["notes.txt"], [("TLR402", "no class folders")]),
    "D02-images-in-the-root": (
        [*pets(), "stray.jpg"],
        [("TLR402", "images outside class folders: 1 in `{root}`, such as `stray.jpg`")],
    ),
    "D02-images-in-train": (
        [*pets(2, "train/"), "train/stray.PNG"],
        [("TLR402", "1 in `{root}/train`, such as `train/stray.PNG`")],
    ),
    "D02-train-and-test-without-classes": (
        ["train/1.png", "test/2.png"],
        [
            ("TLR402", "images outside class folders: 1 in `{root}/test`"),
            ("TLR402", "images outside class folders: 1 in `{root}/train`"),
            ("TLR402", "no class folders in `{root}/train`"),
            ("TLR402", "no class folders in `{root}/test`"),
        ],
    ),
    "D02-images-below-class-folders": (
        [*pets(), "cat/red/1.png"],
        [("TLR402", "`{root}/cat/red` holds images, but lies inside a class folder")],
    ),
    "D03-one-class": (pets(classes=("cat",)), [("TLR402", "one class only, `cat`")]),
    "D03-class-without-images": (
        [*pets(), "empty/notes.txt", "void/.hidden"],
        [("TLR402", "no images in `empty`, `void`")],
    ),
    "D04-class-that-train-lacks": (
        [*pets(2, "train/"), *pets(1, "val/", ("cat", "dgo", "emu"))],
        [("TLR403", "`val` has classes that `train` has not: `dgo`, `emu`")],
    ),
    "D04-no-train": (pets(1, "val/") + pets(1, "test/"), [("TLR403", "no `train` folder")]),
    "D04-two-validation-folders": (
        pets(2, "train/") + pets(1, "val/") + pets(1, "valid/"),
        [("TLR403", "more than one val folder: `val`, `valid`")],
    ),
    "D12-empty-val": (
        [*pets(2, "train/"), "val/notes.txt"],
        [("TLR405", "no class folders in `{root}/val`")],
    ),
    "D12-one-image-of-a-class": (
        [*pets(), "emu/1.png", "fox/1.png"],
        [("TLR405", "class `emu` has 1 image"), ("TLR405", "class `fox` has 1 image")],
    ),
    "R27-class-in-other-unicode": (
        pets(2, "train/", ("a", NFC)) + pets(1, "test/", ("a", NFD)),
        [("TLR403", f"`{NFD}`")],
    ),
    "two-independent-mistakes": (
        [*pets(classes=("cat",)), "stray.jpg"],
        [("TLR402", "images outside class folders"), ("TLR402", "one class only")],
    ),
}


@pytest.mark.parametrize(("files", "expected"), WRONG_TREES.values(), ids=WRONG_TREES)
def test_a_tree_that_cannot_be_used(tmp_path, files, expected):
    found = complaints(plant(tmp_path, files))
    assert [code for code, _ in found] == [code for code, _ in expected]
    for (_, message), (_, part) in zip(found, expected, strict=True):
        assert part.format(root=tmp_path) in message


def test_d01_a_missing_root_is_named_with_its_neighbour(tmp_path):
    plant(tmp_path / "flowers", pets())
    with pytest.raises(TlrecipeError) as caught:
        list_data(folder_spec(tmp_path / "flwoers"), seed=0)
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.path) == ("TLR401", ("data", "path"))
    assert problem.message == f"`{tmp_path / 'flwoers'}` does not exist"
    assert problem.help == "did you mean `flowers`?"


def test_d01_a_root_that_is_a_file_but_no_zip(tmp_path):
    path = tmp_path / "pets.tar"
    path.write_bytes(b"ustar")
    assert complaints(path) == [("TLR401", f"`{path}` cannot be read as a zip file: File is not a zip file")]


def test_d01_a_root_that_is_a_device():
    assert complaints("/dev/null") == [("TLR401", "`/dev/null` is neither a folder nor a file")]


@pytest.fixture
def locked_tree():
    """A tree with one class folder that this process may not read, root or not."""
    root = Path(tempfile.mkdtemp())
    plant(root, pets())
    (root / "cat").chmod(0)
    privileged = os.geteuid() == 0
    if privileged:
        root.chmod(0o755)
        os.seteuid(65534)
    yield root
    if privileged:
        os.seteuid(0)
    (root / "cat").chmod(0o755)
    shutil.rmtree(root)


def test_d01_an_unreadable_class_folder_is_an_error_and_not_a_smaller_data_set(locked_tree):
    assert complaints(locked_tree) == [
        ("TLR401", f"`{locked_tree / 'cat'}` cannot be read: Permission denied")
    ]


def test_links_lead_neither_out_of_the_root_nor_in_circles(tmp_path):
    root = plant(tmp_path / "pets", pets())
    plant(tmp_path / "outside", ["1.png"])
    (root / "cat" / "secret.png").symlink_to(tmp_path / "outside" / "1.png")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "emu").symlink_to(tmp_path / "outside")
    assert complaints(root) == [
        ("TLR401", f"`{root}/cat/gone.png` is a link to nothing"),
        ("TLR401", f"`{root}/cat/secret.png` is a link out of the data folder"),
        ("TLR401", f"`{root}/cat/up` is a link to a folder"),
        ("TLR401", f"`{root}/emu` is a link out of the data folder"),
    ]


def test_links_to_files_inside_the_root_are_files(tmp_path):
    root = plant(tmp_path / "pets", [*pets(1, "train/"), "pool/7.png"])
    (root / "train" / "cat" / "7.png").symlink_to("../../pool/7.png")
    listing = list_data(folder_spec(tmp_path / "pets", val=0.0), seed=0)
    assert names(listing, "train")[1] == "train/cat/7.png"
    assert listing.read(listing.splits["train"][1]) == (root / "pool/7.png").read_bytes()


def test_names_that_are_not_utf8_are_refused(tmp_path):
    root = plant(tmp_path, pets())
    (root / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    ((code, message),) = complaints(root)
    assert code == "TLR401"
    assert r"\xff.png` is not UTF-8" in message


def test_many_mistakes_are_counted_after_twenty(tmp_path):
    root = plant(tmp_path, pets())
    for number in range(25):
        (root / "cat" / f"{number:02}.lnk").symlink_to("nowhere")
    found = complaints(root)
    assert len(found) == 21
    assert found[-1] == ("TLR401", "and 5 more")


def test_r27_names_that_look_the_same_are_kept_apart_with_a_warning(tmp_path):
    root = plant(tmp_path, [*pets(2, classes=("cat", NFC, NFD)), f"cat/{NFC}.png", f"cat/{NFD}.png"])
    listing = list_data(folder_spec(root, val=0.0), seed=0)
    assert listing.info.classes == (NFD, NFC, "cat")
    assert len(listing.warnings) == 2
    for warning in listing.warnings:
        assert warning.severity == "warning"
        assert r"'caf\xe9" in warning.message or r"caf\xe9.png" in warning.message


# --------------------------------------------------------------------------- size


def test_d11_the_index_takes_less_than_200_bytes_a_file(tmp_path):
    classes, per_class = 20, 1000
    for label in range(classes):
        folder = tmp_path / f"class-{label:02}"
        folder.mkdir()
        for number in range(per_class):
            (folder / f"IMG_2024_{number:06}.jpg").touch()
    tracemalloc.start()
    listing = list_data(folder_spec(tmp_path), seed=0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(listing.info.counts.values()) == classes * per_class
    assert held / (classes * per_class) < 200


def test_listing_decodes_nothing(tmp_path):
    root = plant(tmp_path, dict.fromkeys(pets(), b"no image"))
    assert list_data(folder_spec(root, val=0.0), seed=0).info.counts == {"train": 8}


def test_a_file_may_be_replaced_between_listing_and_reading(tmp_path):
    root = plant(tmp_path, pets())
    item = list_data(folder_spec(root, val=0.0), seed=0).splits["train"][0]
    (root / item.name).write_bytes(new := encoded(noise(99)))
    assert list_data(folder_spec(root, val=0.0), seed=0).read(item) == new
