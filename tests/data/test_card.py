import json

import numpy as np
import pytest
from image_files import encoded, folder_spec, noise, plant
from PIL import Image

from tlrecipe.data.card import data_card, findings
from tlrecipe.data.pixels import decode_split
from tlrecipe.data.sources import list_data
from tlrecipe.planning.facts import Preprocessing

P = Preprocessing(size=16)


def photo(seed, height=12, width=12, format="PNG", mode="RGB", **options):
    return encoded(Image.fromarray(noise(seed, height, width)).convert(mode), format, **options)


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return photo(5, 20, 10, "JPEG", exif=exif)


@pytest.fixture
def root(tmp_path):
    deep = Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400)
    return plant(
        tmp_path,
        {
            "train/cat/1.png": photo(1),
            "train/cat/2.jpg": photo(2, 200, 300, "JPEG"),
            "train/cat/3.png": photo(3, mode="L"),
            "train/cat/4.png": photo(4, mode="RGBA"),
            "train/cat/5.jpg": turned(),
            "train/dog/6.jpg": photo(6, format="JPEG", mode="CMYK"),
            "train/dog/7.gif": photo(7, 5, 4, "GIF"),
            "train/cat/8.png": encoded(deep),
            "train/dog/bad.png": b"not an image",
            "val/cat/again.png": photo(1),
            "val/dog/9.png": photo(9),
            "test/cat/9.png": photo(9),
            "test/dog/10.png": photo(10),
            "train/cat/.hidden": b"",
        },
    )


@pytest.fixture
def listing(root):
    return list_data(folder_spec(root), 0)


@pytest.fixture
def card(listing):
    return data_card(
        listing, {split: decode_split(listing, split, P, on_bad="skip") for split in listing.splits}
    )


def test_images_classes_and_imbalance(card):
    assert {split: part.images for split, part in card.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert card.splits["train"].by_class == {"cat": 6, "dog": 2}
    assert card.imbalance == 3.0
    assert card.ignored == {"hidden": 1}


def test_formats_and_what_was_converted(card):
    train = card.splits["train"]
    assert train.formats == {"PNG": 4, "JPEG": 3, "GIF": 1}
    assert train.traits == {
        "grey": 2,
        "palette": 1,
        "16-bit": 1,
        "CMYK": 1,
        "transparent": 1,
        "turned by EXIF": 1,
        "decoded at a lower size": 1,
    }


def test_sizes_are_those_of_the_files(card):
    train = card.splits["train"]
    assert (train.smallest, train.median, train.largest) == ((4, 5), (12, 12), (300, 200))


def test_bad_files_are_named(card):
    ((name, reason),) = card.splits["train"].bad
    assert name == "train/dog/bad.png"
    assert reason.startswith("not an allowed format")


def test_images_in_two_splits_are_found_by_content(card, listing):
    assert [(twice.split, twice.also_in, twice.count, twice.examples) for twice in card.duplicates] == [
        ("val", "train", 1, (("train/cat/1.png", "val/cat/again.png"),)),
        ("test", "val", 1, (("val/dog/9.png", "test/cat/9.png"),)),
    ]
    assert [warning.message for warning in findings(card, listing)] == [
        "1 file of val also in train, such as val/cat/again.png and train/cat/1.png",
        "1 file of test also in val, such as test/cat/9.png and val/dog/9.png",
    ]


def test_images_in_two_classes_of_a_split_are_found_by_content(tmp_path):
    files = {
        "a/1.png": photo(1),
        "a/2.png": photo(2),
        "b/1.png": photo(1),
        "b/3.png": photo(3),
        "b/4.png": photo(3),
    }
    listing = list_data(folder_spec(plant(tmp_path, files), val=0.0), 0)
    card = data_card(listing, {"train": decode_split(listing, "train", P, on_bad="error")})
    (warning,) = findings(card, listing)
    assert (warning.code, warning.severity) == ("TLR402", "warning")
    assert warning.message == "1 file of train in more than one class, such as a/1.png and b/1.png"
    assert warning.help.startswith("tlrecipe learns one class per image")


def test_a_card_is_plain(card):
    assert json.loads(json.dumps(card.as_dict()))["splits"]["train"]["largest"] == [300, 200]
