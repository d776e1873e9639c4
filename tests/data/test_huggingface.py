import socket

import pytest
from image_files import encoded, noise

from tlrecipe.data.pixels import decode_split
from tlrecipe.data.preprocess import decode
from tlrecipe.data.sources import list_data
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import HuggingFaceData
from tlrecipe.planning.facts import Preprocessing

datasets = pytest.importorskip("datasets")

P = Preprocessing(size=16)


def part(labels, feature, *, first=0, image="image", label="label"):
    columns = {
        image: [{"bytes": encoded(noise(first + number)), "path": None} for number in range(len(labels))],
        label: labels,
    }
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features({image: datasets.Image(), label: feature})
    )


@pytest.fixture
def saved(tmp_path):
    """Saves splits as the library does, and gives the folder."""

    def saved(parts):
        data = datasets.DatasetDict(parts) if isinstance(parts, dict) else parts
        data.save_to_disk(str(tmp_path / "set"))
        return tmp_path / "set"

    return saved


def listed(path=None, *, fetch=True, **keys):
    keys = {"val": 0.0, "path": None if path is None else str(path)} | keys
    return list_data(HuggingFaceData(source="huggingface", **keys), 0, fetch=fetch)


def complaint(*args, **keys):
    with pytest.raises(TlrecipeError) as caught:
        listed(*args, **keys)
    (problem,) = caught.value.diagnostics
    return problem


NAMES = datasets.ClassLabel(names=["dog", "ape", "cat"])


def test_splits_classes_and_pixels(saved):
    path = saved(
        {
            "train": part([0, 1, 2, 0], NAMES),
            "validation": part([2, 1, 0], NAMES, first=10),
            "test": part([1, 2, 0], NAMES, first=20),
        }
    )
    listing = listed(path)
    assert listing.info.classes == ("ape", "cat", "dog")
    assert listing.info.counts == {"train": 4, "val": 3, "test": 3}
    pixels = decode_split(listing, "train", P, on_bad="error", threads=4)
    assert pixels.names == ("train/1", "train/2", "train/0", "train/3")
    assert pixels.labels.tolist() == [0, 1, 2, 2]
    for image, name in zip(pixels.images, pixels.names, strict=True):
        own = decode(encoded(noise(int(name.removeprefix("train/")))), P)
        assert (image == own).all()


def test_one_data_set_without_splits(saved):
    listing = listed(saved(part([0, 1, 2, 0, 1, 2], NAMES)), val=0.5)
    assert listing.info.counts == {"train": 3, "val": 3}


@pytest.mark.parametrize(
    ("labels", "feature", "classes"),
    [
        (["b", "a", "b"], datasets.Value("string"), ("a", "b")),
        ([3, 10, 3], datasets.Value("int64"), ("10", "3")),
    ],
)
def test_texts_and_whole_numbers_are_labels(saved, labels, feature, classes):
    assert listed(saved(part(labels, feature))).info.classes == classes


def test_columns_and_splits_of_other_names(saved):
    path = saved(
        {
            "fit": part([0, 1], NAMES, image="img", label="fine"),
            "dev": part([1, 0], NAMES, image="img", label="fine"),
        }
    )
    listing = listed(path, train="fit", validation="dev", image="img", label="fine")
    assert listing.info.counts == {"train": 2, "val": 2}


def test_images_that_are_kept_as_paths(saved, tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(number)))
    data = datasets.Dataset.from_dict(
        {"image": [str(tmp_path / f"{number}.png") for number in range(2)], "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": NAMES}),
    )
    listing = listed(saved(data))
    assert [listing.read(item) for item in listing.splits["train"]] == [encoded(noise(n)) for n in (1, 0)]


@pytest.mark.parametrize(
    ("keys", "code", "key", "help"),
    [
        ({"image": "imgae"}, "TLR401", "image", "did you mean `image`?"),
        ({"label": "labels"}, "TLR401", "label", "did you mean `label`?"),
        ({"image": "label"}, "TLR401", "image", None),
        ({"validation": "dev"}, "TLR401", "validation", "it has `train`, `test`"),
        ({"train": "trian"}, "TLR401", "train", "did you mean `train`?"),
    ],
)
def test_names_that_the_data_set_lacks(saved, keys, code, key, help):
    path = saved({"train": part([0, 1], NAMES), "test": part([0, 1], NAMES)})
    problem = complaint(path, **keys)
    assert (problem.code, problem.path, problem.help) == (code, ("data", key), help)


@pytest.mark.parametrize(
    ("labels", "feature"),
    [([[0], [1, 2]], datasets.List(NAMES)), ([0.5, 1.0], datasets.Value("float32")), ([0, -1], NAMES)],
)
def test_labels_that_are_not_one_class_are_refused(saved, labels, feature):
    problem = complaint(saved(part(labels, feature)))
    assert (problem.code, problem.path) == ("TLR402", ("data", "label"))


@pytest.mark.case("N08")
def test_a_label_that_is_no_class_is_refused(saved):
    """The library refuses to write one, so it is written with more names than are then read."""
    path = saved(part([0, 3, 1], datasets.ClassLabel(names=["dog", "ape", "cat", "eel"])))
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"cat",', '"cat"').replace('"eel"', ""))
    assert "row 1 of a split has the label 3, and there are 3 classes" in complaint(path).message


def test_several_labels_to_an_image_are_refused_as_such(saved):
    problem = complaint(saved(part([[0], [1, 2]], datasets.List(NAMES))))
    assert problem.help == "tlrecipe learns one class per image"


def test_labels_that_mean_several_classes_are_refused(saved):
    problem = complaint(saved(part(["cat|dog", "cat", "dog"], datasets.Value("string"))))
    assert (problem.code, problem.path) == ("TLR402", ("data", "label"))
    assert "several classes at once: `cat|dog`" in problem.message


def test_a_folder_that_is_not_there(tmp_path):
    problem = complaint(tmp_path / "gone")
    assert (problem.code, problem.help) == ("TLR401", "the folder does not exist")


@pytest.mark.parametrize("keys", [{}, {"path": "a", "name": "b/c"}])
def test_a_path_or_a_name_and_not_both(keys):
    assert complaint(**keys).code == "TLR102"


@pytest.mark.parametrize("fetch", [True, False])
def test_the_network_is_left_alone_where_it_may_not_be_used(monkeypatch, tmp_path, fetch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    if fetch:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    problem = complaint(name="nobody/nothing", fetch=fetch)
    assert problem.code == "TLR401"
    assert "network was used" not in problem.message
