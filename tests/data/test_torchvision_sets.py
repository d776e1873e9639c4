"""Every data set of torchvision, in files of its own layout that a test can write."""

import bz2
import hashlib
import pickle
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torchvision.datasets
from image_files import encoded, noise
from PIL import Image

from tlrecipe.data.pixels import decode_split
from tlrecipe.data.preprocess import decode, fit
from tlrecipe.data.sources import list_data
from tlrecipe.data.torchvision_sets import SETS
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import TorchvisionData, TorchvisionName
from tlrecipe.planning.facts import Preprocessing

P = Preprocessing(size=16)


def listed(root, name, *, val=0.0, fetch=True, **keys):
    return list_data(
        TorchvisionData(source="torchvision", name=name, root=str(root), val=val, **keys), 0, fetch=fetch
    )


def put(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(path: Path, number: int) -> None:
    put(
        path,
        encoded(
            noise(number, 12, 10),
            "JPEG" if path.suffix in (".jpg", ".jpeg") else "PPM" if path.suffix == ".ppm" else "PNG",
        ),
    )


def idx(array: np.ndarray) -> bytes:
    kind = 8 if array.dtype == np.uint8 else 12
    header = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def digits(count: int, side: int = 28) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side), dtype=np.uint8)


# --------------------------------------------------------------------------- one writer per layout


def write_mnist(root, monkeypatch, name="MNIST"):
    for prefix, count in (("train", 8), ("t10k", 4)):
        labels = np.arange(count, dtype=np.uint8) % 4
        put(root / name / "raw" / f"{prefix}-images-idx3-ubyte", idx(digits(count)))
        put(root / name / "raw" / f"{prefix}-labels-idx1-ubyte", idx(labels))


def write_emnist(root, monkeypatch):
    for prefix, count in (("train", 8), ("test", 4)):
        stem = root / "EMNIST" / "raw" / f"emnist-balanced-{prefix}"
        put(stem.with_name(f"{stem.name}-images-idx3-ubyte"), idx(digits(count)))
        put(stem.with_name(f"{stem.name}-labels-idx1-ubyte"), idx(np.arange(count, dtype=np.uint8) % 4))


def write_qmnist(root, monkeypatch):
    for what, count in (("train", 8), ("test", 12)):
        table = np.zeros((count, 8), dtype=np.int32)
        table[:, 0] = np.arange(count) % 4
        put(root / "QMNIST" / "raw" / f"qmnist-{what}-images-idx3-ubyte", idx(digits(count)))
        put(root / "QMNIST" / "raw" / f"qmnist-{what}-labels-idx2-int", idx(table))


def write_cifar(root, monkeypatch, cls=torchvision.datasets.CIFAR10, key="labels", meta=b"label_names"):
    base = root / cls.base_folder

    def batch(name, count):
        rows = digits(count, 32 * 3).reshape(count, -1)[:, : 32 * 32 * 3]
        return name, hashlib.md5(
            put(base / name, pickle.dumps({"data": rows, key: [n % 4 for n in range(count)]})).read_bytes()
        ).hexdigest()

    monkeypatch.setattr(cls, "train_list", [batch("first", 6), batch("second", 2)])
    monkeypatch.setattr(cls, "test_list", [batch("last", 4)])
    names = {meta.decode(): ["cat", "dog", "ape", "bee"]}
    put(base / "names", pickle.dumps(names))
    digest = hashlib.md5((base / "names").read_bytes()).hexdigest()
    monkeypatch.setattr(cls, "meta", {"filename": "names", "key": meta.decode(), "md5": digest})


def write_stl10(root, monkeypatch):
    base = root / "stl10_binary"
    for split, count in (("train", 8), ("test", 4)):
        put(base / f"{split}_X.bin", digits(count, 96 * 2)[:, :144].tobytes()[: count * 3 * 96 * 96])
        put(base / f"{split}_y.bin", (np.arange(count, dtype=np.uint8) % 4 + 1).tobytes())
    put(base / "class_names.txt", "cat\ndog\nape\nbee\n")
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)


def write_svhn(root, monkeypatch):
    io = pytest.importorskip("scipy.io")
    lists = {}
    for split, count in (("train", 8), ("test", 4)):
        name = f"{split}_32x32.mat"
        images = np.moveaxis(digits(count, 96)[:, :32].reshape(count, 32, 32, 3), 0, 3)
        io.savemat(root / name, {"X": images, "y": (np.arange(count) % 4 + 7)[:, None]})
        lists[split] = ["", name, hashlib.md5((root / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)


def write_usps(root, monkeypatch):
    for name, count in (("usps.bz2", 8), ("usps.t.bz2", 4)):
        lines = [f"{n % 4 + 1} " + " ".join(f"{k}:0.5" for k in range(1, 257)) + " \n" for n in range(count)]
        put(root / name, bz2.compress("".join(lines).encode()))


def write_semeion(root, monkeypatch):
    rows = [" ".join(["1.0"] * 256 + [str(int(n % 4 == k)) for k in range(10)]) for n in range(8)]
    digest = hashlib.md5(put(root / "semeion.data", "\n".join(rows)).read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.SEMEION, "md5_checksum", digest)


def write_fer2013(root, monkeypatch):
    rows = ["emotion,pixels,Usage"]
    for usage, count in (("Training", 8), ("PublicTest", 4)):
        rows += [f"{n % 4},{' '.join(['7'] * 48 * 48)},{usage}" for n in range(count)]
    put(root / "fer2013" / "fer2013.csv", "\n".join(rows) + "\n")
    monkeypatch.setattr(
        torchvision.datasets.fer2013, "check_integrity", lambda path, md5=None: Path(path).exists()
    )


def write_pcam(root, monkeypatch):
    h5py = pytest.importorskip("h5py")
    for split, files in torchvision.datasets.PCAM._FILES.items():
        count = 4 if split == "test" else 8
        (root / "pcam").mkdir(exist_ok=True)
        with h5py.File(root / "pcam" / files["images"][0], "w") as file:
            file["x"] = (
                digits(count, 96 * 2)[:, :144].reshape(-1)[: count * 96 * 96 * 3].reshape(count, 96, 96, 3)
            )
        with h5py.File(root / "pcam" / files["targets"][0], "w") as file:
            file["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)


def write_folders(root, places, counts=(2,) * 4):
    for place in places:
        for number, name in enumerate(("ape", "bee", "cat", "dog")):
            for index in range(counts[number]):
                picture(root / place.format(name=name, number=number, index=index), 10 * number + index)


def write_eurosat(root, monkeypatch):
    write_folders(root, ["eurosat/2750/{name}/{name}_{index}.jpg"])


def write_country211(root, monkeypatch):
    write_folders(
        root, [f"country211/{split}/{{name}}/{{index}}.jpg" for split in ("train", "valid", "test")]
    )


def write_caltech101(root, monkeypatch):
    (root / "caltech101" / "Annotations").mkdir(parents=True)
    (root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    write_folders(root, ["caltech101/101_ObjectCategories/{name}/image_{index:04d}.jpg"])
    for folder in (root / "caltech101" / "101_ObjectCategories").iterdir():
        for number, path in enumerate(sorted(folder.iterdir(), reverse=True)):
            path.rename(path.with_name(f"image_{2 - number:04d}.jpg"))


def write_caltech256(root, monkeypatch):
    for number, name in enumerate(("ape", "bee", "cat", "dog"), start=1):
        for index in (1, 2):
            picture(
                root
                / "caltech256"
                / "256_ObjectCategories"
                / f"{number:03d}.{name}"
                / f"{number:03d}_{index:04d}.jpg",
                index,
            )


def write_sun397(root, monkeypatch):
    names = ["/a/ape", "/b/bee", "/c/cat/indoor", "/d/dog"]
    put(root / "SUN397" / "ClassName.txt", "\n".join(names) + "\n")
    for name in names:
        for index in range(2):
            picture(root / "SUN397" / name[1:] / f"sun_{index}.jpg", index)


def write_dtd(root, monkeypatch):
    write_folders(root, ["dtd/dtd/images/{name}/{name}_{index}.jpg"])
    for split in ("train", "val", "test"):
        lines = [f"{name}/{name}_0.jpg" for name in ("ape", "bee", "cat", "dog")]
        put(root / "dtd" / "dtd" / "labels" / f"{split}1.txt", "\n".join(lines))


def write_aircraft(root, monkeypatch):
    base = root / "fgvc-aircraft-2013b" / "data"
    names = ["ape", "bee", "cat", "dog 1-2"]
    for number in range(4):
        picture(base / "images" / f"{number}.jpg", number)
    put(base / "variants.txt", "\n".join(names) + "\n")
    for split in ("train", "val", "test"):
        put(base / f"images_variant_{split}.txt", "".join(f"{n} {name}\n" for n, name in enumerate(names)))


def write_flowers(root, monkeypatch):
    io = pytest.importorskip("scipy.io")
    base = root / "flowers-102"
    for number in range(1, 13):
        picture(base / "jpg" / f"image_{number:05d}.jpg", number)
    io.savemat(base / "imagelabels.mat", {"labels": np.arange(12) % 4 + 1})
    io.savemat(
        base / "setid.mat", {"trnid": np.arange(1, 5), "valid": np.arange(5, 9), "tstid": np.arange(9, 13)}
    )
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)


def write_food(root, monkeypatch):
    write_folders(root, ["food-101/images/{name}/{index}.jpg"])
    for split, index in (("train", 0), ("test", 1)):
        text = ", ".join(f'"{name}": ["{name}/{index}"]' for name in ("ape", "bee", "cat", "dog"))
        put(root / "food-101" / "meta" / f"{split}.json", f"{{{text}}}")


def write_gtsrb(root, monkeypatch):
    base = root / "gtsrb"
    write_folders(base, ["GTSRB/Training/{number:05d}/00000_{index:05d}.ppm"])
    rows = ["Filename;Width;ClassId"]
    for number in range(4):
        picture(base / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm", number)
        rows.append(f"{number:05d}.ppm;10;{number}")
    put(base / "GT-final_test.csv", "\n".join(rows))


def write_pets(root, monkeypatch):
    base = root / "oxford-iiit-pet"
    for split, index in (("trainval", 1), ("test", 2)):
        lines = []
        for number, name in enumerate(("Abyssinian", "bengal_cat", "beagle", "boxer"), start=1):
            picture(base / "images" / f"{name}_{index}.jpg", number)
            lines.append(f"{name}_{index} {number} 1 1")
        put(base / "annotations" / f"{split}.txt", "\n".join(lines))


def write_imagenette(root, monkeypatch):
    wnids = sorted(torchvision.datasets.Imagenette._WNID_TO_CLASS)[:4]
    for split in ("train", "val"):
        for number, wnid in enumerate(wnids):
            picture(root / "imagenette2" / split / wnid / f"{number}.jpeg", number)
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_check_exists", lambda self: True, raising=False)


def write_imagenet(root, monkeypatch):
    for split in ("train", "val"):
        for number in range(4):
            picture(root / split / f"n{number:08d}" / f"{number}.JPEG", number)
    names = {
        "n00000000": ("crane",),
        "n00000001": ("crane",),
        "n00000002": ("great auk", "auk"),
        "n00000003": ("ape",),
    }
    torch.save((names, []), root / "meta.bin")


def write_inaturalist(root, monkeypatch):
    for number, name in enumerate(("ape", "bee", "cat", "dog")):
        for index in range(2):
            picture(root / "2021_train" / f"{number:05d}_a_b_c_d_e_f_{name}" / f"{index}.jpg", index)


def write_lfw(root, monkeypatch):
    base = root / "lfw-py"
    people = ["Ada_A", "Bob_B", "Cid_C", "Dan_D"]
    for person in people:
        for number in (1, 2):
            picture(base / "lfw-deepfunneled" / person / f"{person}_{number:04d}.jpg", number)
            picture(base / "lfw_funneled" / person / f"{person}_{number:04d}.jpg", number)
    put(base / "lfw-names.txt", "".join(f"{person}\t2\n" for person in people))
    for split in ("Train", "Test"):
        put(base / f"peopleDev{split}.txt", "4\n" + "".join(f"{person}\t2\n" for person in people))
    monkeypatch.setattr(torchvision.datasets.LFWPeople, "_check_integrity", lambda self: True)


def write_omniglot(root, monkeypatch):
    write_folders(root, ["omniglot-py/images_background/Latin/{name}/{index}.png"])
    for path in root.rglob("*.png"):
        Image.open(path).convert("1").save(path)  # all of them are black and white
    monkeypatch.setattr(torchvision.datasets.Omniglot, "_check_integrity", lambda self: True)


def write_places(root, monkeypatch):
    names = ["/a/ape", "/b/bee", "/c/cat", "/d/dog"]
    cls = torchvision.datasets.Places365
    put(root / "categories_places365.txt", "".join(f"{name} {n}\n" for n, name in enumerate(names)))
    put(root / "places365_train_standard.txt", "".join(f"{name}/0.jpg {n}\n" for n, name in enumerate(names)))
    put(root / "places365_val.txt", "".join(f"{n}.jpg {n}\n" for n in range(4)))
    for number, name in enumerate(names):
        picture(root / "data_256_standard" / name[1:] / "0.jpg", number)
        picture(root / "val_256" / f"{number}.jpg", number)
    monkeypatch.setattr(cls, "_check_integrity", lambda self, file, md5, download: Path(file).exists())


def write_sst2(root, monkeypatch):
    for split in ("train", "valid", "test"):
        for number, name in enumerate(("negative", "positive")):
            for index in range(2):
                picture(root / "rendered-sst2" / split / name / f"{index}.png", 10 * number + index)


def write_cars(root, monkeypatch):
    io = pytest.importorskip("scipy.io")
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    for split in ("train", "test"):
        annotations = [{"fname": f"{n:05d}.jpg", "class": n + 1} for n in range(4)]
        place = (
            base / "devkit" / "cars_train_annos.mat"
            if split == "train"
            else base / "cars_test_annos_withlabels.mat"
        )
        io.savemat(place, {"annotations": annotations})
        for number in range(4):
            picture(base / f"cars_{split}" / f"{number:05d}.jpg", number)
    io.savemat(
        base / "devkit" / "cars_meta.mat",
        {"class_names": np.array(["ape", "bee", "cat", "dog"], dtype=object)},
    )


def write_clevr(root, monkeypatch):
    base = root / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val"):
        scenes = []
        for number in range(4):
            picture(base / "images" / split / f"{number}.png", number)
            objects = ",".join(["{}"] * (number + 7))
            scenes.append(f'{{"image_filename": "{number}.png", "objects": [{objects}]}}')
        put(base / "scenes" / f"CLEVR_{split}_scenes.json", f'{{"scenes": [{",".join(scenes)}]}}')


FOUR = ("ape", "bee", "cat", "dog")
MNIST_FOUR = ("0 - zero", "1 - one", "2 - two", "3 - three")
CASES = {
    "Caltech101": (write_caltech101, {"train": 8}, FOUR),
    "Caltech256": (write_caltech256, {"train": 8}, ("001.ape", "002.bee", "003.cat", "004.dog")),
    "CIFAR10": (write_cifar, {"train": 8, "test": 4}, FOUR),
    "CIFAR100": (
        lambda root, monkeypatch: write_cifar(
            root, monkeypatch, torchvision.datasets.CIFAR100, "fine_labels", b"fine_label_names"
        ),
        {"train": 8, "test": 4},
        FOUR,
    ),
    "CLEVRClassification": (write_clevr, {"train": 4, "val": 4}, ("07", "08", "09", "10")),
    "Country211": (write_country211, {"train": 8, "val": 8, "test": 8}, FOUR),
    "DTD": (write_dtd, {"train": 4, "val": 4, "test": 4}, FOUR),
    "EMNIST": (write_emnist, {"train": 8, "test": 4}, ("0", "1", "2", "3")),
    "EuroSAT": (write_eurosat, {"train": 8}, FOUR),
    "FashionMNIST": (
        lambda root, monkeypatch: write_mnist(root, monkeypatch, "FashionMNIST"),
        {"train": 8, "test": 4},
        ("Dress", "Pullover", "T-shirt/top", "Trouser"),
    ),
    "FER2013": (write_fer2013, {"train": 8, "test": 4}, ("angry", "disgust", "fear", "happy")),
    "FGVCAircraft": (write_aircraft, {"train": 4, "val": 4, "test": 4}, ("ape", "bee", "cat", "dog 1-2")),
    "Flowers102": (
        write_flowers,
        {"train": 4, "val": 4, "test": 4},
        ("canterbury bells", "hard-leaved pocket orchid", "pink primrose", "sweet pea"),
    ),
    "Food101": (write_food, {"train": 4, "test": 4}, FOUR),
    "GTSRB": (write_gtsrb, {"train": 8, "test": 4}, ("0", "1", "2", "3")),
    "ImageNet": (
        write_imagenet,
        {"train": 4, "val": 4},
        ("ape", "crane (n00000000)", "crane (n00000001)", "great auk, auk"),
    ),
    "Imagenette": (
        write_imagenette,
        {"train": 4, "val": 4},
        (
            "English springer, English springer spaniel",
            "cassette player",
            "chain saw, chainsaw",
            "tench, Tinca tinca",
        ),
    ),
    "INaturalist": (
        write_inaturalist,
        {"train": 8},
        tuple(f"{number:05d}_a_b_c_d_e_f_{name}" for number, name in enumerate(FOUR)),
    ),
    "KMNIST": (
        lambda root, monkeypatch: write_mnist(root, monkeypatch, "KMNIST"),
        {"train": 8, "test": 4},
        ("ki", "o", "su", "tsu"),
    ),
    "LFWPeople": (write_lfw, {"train": 8, "test": 8}, ("Ada_A", "Bob_B", "Cid_C", "Dan_D")),
    "MNIST": (write_mnist, {"train": 8, "test": 4}, MNIST_FOUR),
    "Omniglot": (write_omniglot, {"train": 8}, tuple(f"Latin/{name}" for name in FOUR)),
    "OxfordIIITPet": (write_pets, {"train": 4, "test": 4}, ("Abyssinian", "Beagle", "Bengal Cat", "Boxer")),
    "PCAM": (write_pcam, {"train": 8, "val": 8, "test": 4}, ("0", "1")),
    "Places365": (write_places, {"train": 4, "val": 4}, ("/a/ape", "/b/bee", "/c/cat", "/d/dog")),
    "QMNIST": (write_qmnist, {"train": 8, "test": 12}, MNIST_FOUR),
    "RenderedSST2": (write_sst2, {"train": 4, "val": 4, "test": 4}, ("negative", "positive")),
    "SEMEION": (write_semeion, {"train": 8}, ("0", "1", "2", "3")),
    "StanfordCars": (write_cars, {"train": 4, "test": 4}, FOUR),
    "STL10": (write_stl10, {"train": 8, "test": 4}, FOUR),
    "SUN397": (write_sun397, {"train": 8}, ("ape", "bee", "cat/indoor", "dog")),
    "SVHN": (write_svhn, {"train": 8, "test": 4}, ("0", "7", "8", "9")),
    "USPS": (write_usps, {"train": 8, "test": 4}, ("0", "1", "2", "3")),
}
ARGUMENTS = {"Places365": {"variant": "small"}}


def test_every_name_of_the_grammar_has_a_row_and_a_case():
    assert set(SETS) == set(get_args(TorchvisionName)) == set(CASES)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("name", CASES)
def test_classes_splits_and_pixels_are_those_of_torchvision(tmp_path, monkeypatch, no_network, name):
    write, counts, classes = CASES[name]
    write(tmp_path, monkeypatch)
    listing = listed(tmp_path, name, **ARGUMENTS.get(name, {}))
    assert listing.info.counts == counts
    assert listing.info.classes == classes
    row = SETS[name]
    for split in listing.splits:
        pixels = decode_split(listing, split, P, on_bad="error")
        assert len(pixels) == counts[split]
        arguments = {**next(iter(row.variants.values()), {}), **row.splits[split]}
        if row.downloads:
            arguments["download"] = False
        theirs = getattr(torchvision.datasets, name)(root=str(tmp_path), **arguments)
        expected = sorted(images_digest(fit(as_tensor(theirs[index][0]), P)) for index in range(len(theirs)))
        found = pixels.batch(torch.arange(len(pixels)), P)
        assert sorted(map(images_digest, found)) == expected


def as_tensor(image: Image.Image) -> torch.Tensor:
    return decode(encoded(image), P)


def images_digest(image: torch.Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


# --------------------------------------------------------------------------- labels, errors, variants


def test_labels_follow_their_images(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch, "FashionMNIST")
    listing = listed(tmp_path, "FashionMNIST")
    pixels = decode_split(listing, "train", Preprocessing(size=28), on_bad="error")
    own = ["T-shirt/top", "Trouser", "Pullover", "Dress"]
    for image, label, item in zip(pixels.images, pixels.labels, listing.splits["train"], strict=True):
        number = int(item.name.removeprefix("train/"))
        assert torch.equal(image, torch.from_numpy(digits(8)[number]).expand(3, 28, 28))
        assert listing.info.classes[label] == own[number % 4]


def test_a_validation_split_is_taken_from_arrays_too(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch)
    listing = listed(tmp_path, "MNIST", val=0.5)
    assert listing.info.counts == {"train": 4, "val": 4, "test": 4}
    names = [item.name for split in ("train", "val") for item in listing.splits[split]]
    assert sorted(names) == [f"train/{number}" for number in range(8)]


@pytest.mark.parametrize("threads", [1, 3])
def test_arrays_larger_than_the_network_are_fitted_in_blocks(tmp_path, monkeypatch, threads):
    monkeypatch.setattr("tlrecipe.data.pixels._BLOCK", 3)
    write_mnist(tmp_path, monkeypatch)
    steps = []
    pixels = decode_split(
        listed(tmp_path, "MNIST"),
        "train",
        P,
        on_bad="error",
        threads=threads,
        progress=lambda *at: steps.append(at),
    )
    assert pixels.images.shape == (8, 3, 16, 16)
    assert steps == [(3, 8), (6, 8), (8, 8)]
    order = [int(name.removeprefix("train/")) for name in pixels.names]
    grey = torch.from_numpy(digits(8))[order]
    assert torch.equal(pixels.images, torch.stack([fit(image.expand(3, 28, 28), P) for image in grey]))
    assert [mark.tobytes() for mark in pixels.fingerprints] == [
        hashlib.sha256(image.numpy().tobytes()).digest() for image in grey
    ]


@pytest.mark.parametrize("name", CASES)
def test_files_that_are_not_there_are_an_error_that_says_where(tmp_path, no_network, name):
    pytest.importorskip(SETS[name].needs or "torch")
    with pytest.raises(TlrecipeError) as caught:
        listed(tmp_path / "nowhere", name, fetch=False, **ARGUMENTS.get(name, {}))
    (problem,) = caught.value.diagnostics
    assert problem.code == "TLR401"
    assert str(tmp_path / "nowhere" / SETS[name].folder) in problem.message
    assert problem.help
    assert ("data.download" in problem.help) == SETS[name].downloads


def test_nothing_is_downloaded_unless_the_recipe_says_so(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: asked.append(self.root))
    for download, fetch, expected in ((False, True, 0), (True, False, 0), (True, True, 1)):
        asked.clear()
        with pytest.raises(TlrecipeError):
            listed(tmp_path, "MNIST", download=download, fetch=fetch)
        assert len(asked) == expected


def test_what_torchvision_cannot_download_any_more_is_said(tmp_path):
    with pytest.raises(TlrecipeError, match="cannot download LFWPeople"):
        listed(tmp_path, "LFWPeople", download=True)


def test_torn_files_are_an_error(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TlrecipeError) as caught:
        listed(tmp_path, "MNIST")
    assert caught.value.exit_code == 4


def test_images_and_labels_of_different_number_are_an_error(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch)
    put(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", idx(np.zeros(5, dtype=np.uint8)))
    with pytest.raises(TlrecipeError, match="8 images, but 5 labels"):
        listed(tmp_path, "MNIST")


@pytest.mark.case("N08")
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (200, "image 3 of `train` in `MNIST`: the label 200 is none of the 10 classes"),
        (10, "image 3 of `train` in `MNIST`: the label 10 is none of the 10 classes"),
    ],
)
def test_a_label_that_is_no_named_class_is_an_error_of_the_data(tmp_path, monkeypatch, label, said):
    write_mnist(tmp_path, monkeypatch)
    labels = np.array([0, 1, label, 3, 4, 5, 6, 7], dtype=np.uint8)
    put(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", idx(labels))
    assert said in refusal(tmp_path, "MNIST")


@pytest.mark.case("N08")
@pytest.mark.parametrize(("label", "said"), [("0", "label -1 is none of"), ("9" * 12, "of the 1,000")])
def test_a_number_that_is_no_class_is_an_error_of_the_data(tmp_path, monkeypatch, label, said):
    write_usps(tmp_path, monkeypatch)
    lines = bz2.decompress((tmp_path / "usps.bz2").read_bytes()).split(b"\n")
    lines[2] = label.encode() + lines[2][1:]
    put(tmp_path / "usps.bz2", bz2.compress(b"\n".join(lines)))
    assert said in refusal(tmp_path, "USPS")


def refusal(root, name):
    with pytest.raises(TlrecipeError) as caught:
        listed(root, name)
    (problem,) = caught.value.diagnostics
    assert (problem.code, caught.value.exit_code) == ("TLR402", 4)
    return problem.message


@pytest.mark.parametrize(
    ("name", "variant", "help"),
    [("EMNIST", "leters", "letters"), ("DTD", "zzz", "there are 1, 2"), ("MNIST", "x", "leave it out")],
)
def test_an_unknown_variant_is_a_mistake_in_the_recipe(tmp_path, name, variant, help):
    with pytest.raises(TlrecipeError) as caught:
        listed(tmp_path, name, variant=variant)
    (problem,) = caught.value.diagnostics
    assert (problem.code, problem.path, caught.value.exit_code) == ("TLR102", ("data", "variant"), 3)
    assert help in problem.help
