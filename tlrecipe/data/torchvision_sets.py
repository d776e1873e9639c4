"""The classification data sets of torchvision, each by torchvision's own reader.

torchvision keeps an image either in an array or in a file. Arrays are taken whole; of a file only the
path is taken, so that it is decoded by the same rules as any other file.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torchvision.datasets
from numpy.typing import NDArray

from tlrecipe.data.labelled import labelled
from tlrecipe.data.listing import Found, Item, Tree
from tlrecipe.data.reading import file_stamp, read_bytes, reason_of
from tlrecipe.language.diagnostics import TlrecipeError, did_you_mean
from tlrecipe.language.spec import TorchvisionData, TorchvisionName

_PLACE = ("data", "root")


class _Samples(NamedTuple):
    images: Any
    """uint8 ``(N, H, W)`` grey or ``(N, H, W, 3)`` RGB, or a list of paths."""
    labels: NDArray[np.int64]


def _arrays(dataset: Any) -> _Samples:
    labels = getattr(dataset, "labels", None)
    images = np.asarray(dataset.data)
    return _Samples(images, np.asarray(dataset.targets if labels is None else labels, dtype=np.int64))


def _channels_first(dataset: Any) -> _Samples:
    images, labels = _arrays(dataset)
    return _Samples(images.transpose(0, 2, 3, 1), labels)


def _qmnist(dataset: Any) -> _Samples:
    # With each digit come its writer and more; the first column is the class.
    return _Samples(np.asarray(dataset.data), np.asarray(dataset.targets)[:, 0].astype(np.int64))


def _fer2013(dataset: Any) -> _Samples:
    if any(label is None for _, label in dataset._samples):
        raise RuntimeError("test.csv has no labels; put fer2013.csv or icml_face_data.csv there")
    images = np.stack([image.numpy() for image, _ in dataset._samples])
    return _Samples(images, np.array([label for _, label in dataset._samples], dtype=np.int64))


def _pcam(dataset: Any) -> _Samples:
    files = dataset._FILES[dataset._split]
    with dataset.h5py.File(dataset._base_folder / files["targets"][0]) as file:
        labels = file["y"][:].reshape(-1).astype(np.int64)
    return _Samples(_InFile(dataset.h5py, dataset._base_folder / files["images"][0]), labels)


class _InFile:
    """Images that stay in an HDF5 file of several gigabytes until they are asked for."""

    def __init__(self, h5py: Any, path: Path):
        self._h5py, self._path = h5py, path

    def __len__(self) -> int:
        with self._h5py.File(self._path) as file:
            return len(file["x"])

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        # HDF5 reads in rising order only.
        order = np.argsort(rows)
        found = np.empty((len(rows), 96, 96, 3), dtype=np.uint8)
        with self._h5py.File(self._path) as file:
            found[order] = file["x"][rows[order]]
        return found


def _paths(dataset: Any) -> _Samples:
    """By ``dataset[i]``, where the loader has been told to give the path."""
    samples = [dataset[index] for index in range(len(dataset))]
    return _Samples([path for path, _ in samples], np.array([label for _, label in samples], dtype=np.int64))


def _gtsrb(dataset: Any) -> _Samples:
    paths, labels = zip(*dataset._samples, strict=True)
    return _Samples(list(map(str, paths)), np.array(labels, dtype=np.int64))


def _pets(dataset: Any) -> _Samples:
    return _Samples(list(map(str, dataset._images)), np.array(dataset._labels, dtype=np.int64))


def _caltech101(dataset: Any) -> _Samples:
    above = os.path.join(dataset.root, "101_ObjectCategories")  # noqa: PTH118 (a hundred thousand of them)
    names = dataset.categories
    numbered = zip(dataset.y, dataset.index, strict=True)
    paths = [f"{above}/{names[label]}/image_{number:04d}.jpg" for label, number in numbered]
    return _Samples(paths, np.array(dataset.y, dtype=np.int64))


def _caltech256(dataset: Any) -> _Samples:
    above = os.path.join(dataset.root, "256_ObjectCategories")  # noqa: PTH118
    names = dataset.categories
    numbered = zip(dataset.y, dataset.index, strict=True)
    paths = [f"{above}/{names[label]}/{label + 1:03d}_{number:04d}.jpg" for label, number in numbered]
    return _Samples(paths, np.array(dataset.y, dtype=np.int64))


def _classes(dataset: Any) -> Sequence[str]:
    return [str(name) for name in dataset.classes]


def _imagenet_classes(dataset: Any) -> Sequence[str]:
    names = [", ".join(words) for words in dataset.classes]
    # Two classes of ImageNet may have one name: `crane` is a bird and a machine.
    often = Counter(names)
    wnids = getattr(dataset, "wnids", None) or range(len(names))
    return [f"{name} ({wnid})" if often[name] > 1 else name for name, wnid in zip(names, wnids, strict=True)]


# No set whose classes are numbers has a class beyond it: such a label is a damaged file.
_HIGHEST_NUMBER = 999


def _numbers(dataset: Any) -> None:
    """No names: the labels themselves, with zeros in front so that their order is that of numbers."""


_BY_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_IN_TWO: Mapping[str, Mapping[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_IN_THREE: Mapping[str, Mapping[str, Any]] = {split: {"split": split} for split in ("train", "val", "test")}
_WHOLE: Mapping[str, Mapping[str, Any]] = {"train": {}}


@dataclass(frozen=True)
class _Set:
    """How torchvision keeps one of its data sets."""

    folder: str
    """Where below the root its files are."""
    splits: Mapping[str, Mapping[str, Any]]
    """Arguments of the constructor for each split."""
    samples: Callable[[Any], _Samples]
    names: Callable[[Any], Sequence[str] | None] = _classes
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further arguments by variant; the first is the default."""
    downloads: bool = True
    """Whether torchvision can still fetch it."""
    needs: str | None = None
    """The package that its reader imports beside torchvision."""


def _one_of(argument: str, *values: Any) -> Mapping[str, Mapping[str, Any]]:
    return {str(value): {argument: value} for value in values}


SETS: Mapping[TorchvisionName, _Set] = {
    "Caltech101": _Set("caltech101", _WHOLE, _caltech101, lambda dataset: list(dataset.categories)),
    "Caltech256": _Set("caltech256", _WHOLE, _caltech256, lambda dataset: list(dataset.categories)),
    "CIFAR10": _Set("cifar-10-batches-py", _BY_FLAG, _arrays),
    "CIFAR100": _Set("cifar-100-python", _BY_FLAG, _arrays),
    # The test images have no labels.
    "CLEVRClassification": _Set(
        "clevr", {"train": {"split": "train"}, "val": {"split": "val"}}, _paths, _numbers
    ),
    "Country211": _Set(
        "country211",
        {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
        _paths,
    ),
    "DTD": _Set("dtd", _IN_THREE, _paths, variants=_one_of("partition", *range(1, 11))),
    "EMNIST": _Set(
        "EMNIST/raw",
        _BY_FLAG,
        _arrays,
        variants=_one_of("split", "balanced", "byclass", "bymerge", "letters", "digits", "mnist"),
    ),
    "EuroSAT": _Set("eurosat", _WHOLE, _paths),
    "FashionMNIST": _Set("FashionMNIST/raw", _BY_FLAG, _arrays),
    "FER2013": _Set(
        "fer2013",
        _IN_TWO,
        _fer2013,
        lambda _: ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"],
        downloads=False,
    ),
    "FGVCAircraft": _Set(
        "fgvc-aircraft-2013b",
        _IN_THREE,
        _paths,
        variants=_one_of("annotation_level", "variant", "family", "manufacturer"),
    ),
    "Flowers102": _Set("flowers-102", _IN_THREE, _paths, needs="scipy"),
    "Food101": _Set("food-101", _IN_TWO, _paths),
    "GTSRB": _Set("gtsrb", _IN_TWO, _gtsrb, _numbers),
    "ImageNet": _Set(
        "",
        {"train": {"split": "train"}, "val": {"split": "val"}},
        _paths,
        _imagenet_classes,
        downloads=False,
        needs="scipy",
    ),
    "Imagenette": _Set(
        "imagenette2",
        {"train": {"split": "train"}, "val": {"split": "val"}},
        _paths,
        _imagenet_classes,
        variants=_one_of("size", "full", "320px", "160px"),
    ),
    "INaturalist": _Set(
        "",
        _WHOLE,
        _paths,
        lambda dataset: list(dataset.all_categories),
        variants=_one_of("version", "2021_train", "2021_train_mini", "2021_valid", "2019", "2018", "2017"),
    ),
    "KMNIST": _Set("KMNIST/raw", _BY_FLAG, _arrays),
    "LFWPeople": _Set(
        "lfw-py",
        _IN_TWO,
        _paths,
        lambda dataset: list(dataset.class_to_idx),
        variants=_one_of("image_set", "funneled", "original", "deepfunneled"),
        downloads=False,
    ),
    "MNIST": _Set("MNIST/raw", _BY_FLAG, _arrays),
    "Omniglot": _Set(
        "omniglot-py",
        _WHOLE,
        _paths,
        lambda dataset: list(dataset._characters),
        variants={"background": {"background": True}, "evaluation": {"background": False}},
    ),
    "OxfordIIITPet": _Set(
        "oxford-iiit-pet", {"train": {"split": "trainval"}, "test": {"split": "test"}}, _pets
    ),
    "PCAM": _Set("pcam", _IN_THREE, _pcam, _numbers, needs="h5py"),
    "Places365": _Set(
        "",
        {"train": {"split": "train-standard"}, "val": {"split": "val"}},
        _paths,
        variants={"small": {"small": True}, "large": {"small": False}},
    ),
    "QMNIST": _Set(
        "QMNIST/raw",
        {"train": {"what": "train"}, "test": {}},
        _qmnist,
        variants=_one_of("what", "test10k", "test50k", "test"),
    ),
    "RenderedSST2": _Set("rendered-sst2", _IN_THREE, _paths),
    "SEMEION": _Set("", _WHOLE, _arrays, _numbers),
    "StanfordCars": _Set("stanford_cars", _IN_TWO, _paths, downloads=False, needs="scipy"),
    "STL10": _Set("stl10_binary", _IN_TWO, _channels_first),
    "SUN397": _Set("SUN397", _WHOLE, _paths),
    "SVHN": _Set("", _IN_TWO, _channels_first, _numbers, needs="scipy"),
    "USPS": _Set("", _BY_FLAG, _arrays, _numbers),
}
"""Every data set that a recipe may name."""


def torchvision_data(spec: TorchvisionData) -> Found:
    """A data set of torchvision, with its own splits and class names.

    Raises ``TlrecipeError``: TLR102 (a variant that there is not), TLR401 (the files are not there, not
    whole, or cannot be fetched), TLR402 and TLR403 as :func:`labelled`.
    """
    row = SETS[spec.name]
    variant = _variant(spec, row)
    names: list[str] = []
    samples: dict[str, _Samples] = {}
    for split, arguments in row.splits.items():
        dataset = _open(spec, row, {**variant, **arguments})
        found = samples[split] = _taken(dataset, row, spec)
        if len(found.images) != len(found.labels):
            message = (
                f"{spec.name} has {len(found.images):,} images, but {len(found.labels):,} labels in {split}"
            )
            raise TlrecipeError.of("TLR401", message, path=_PLACE, help="put the original files there")
        names = list(names or row.names(dataset) or ())
    if not names:
        top = min(max(int(found.labels.max(initial=0)) for found in samples.values()), _HIGHEST_NUMBER)
        names = [str(label).zfill(len(str(top))) for label in range(top + 1)]
    root = Path(spec.root)
    if isinstance(next(iter(samples.values())).images, list):
        tree, rows, path_of = _of_files(root, samples)
        read, stamp, arrays = (
            (lambda item: read_bytes(path_of(item))),
            (lambda item: file_stamp(path_of(item))),
            None,
        )
    else:
        tree, rows, arrays = _of_arrays(samples)
        read, stamp = _no_file, None
    labels = {split: found.labels for split, found in samples.items()}
    meaning = labelled(tree, rows, labels, names, spec.name, ("data", "name"))
    return Found(
        classes=meaning.classes,
        splits=meaning.splits,
        read=read,
        origin=f"{spec.name} in {root}",
        place=_PLACE,
        ignored={},
        warnings=meaning.warnings,
        arrays=arrays,
        stamp=stamp,
    )


def _variant(spec: TorchvisionData, row: _Set) -> Mapping[str, Any]:
    if spec.variant is None:
        return next(iter(row.variants.values()), {})
    if spec.variant not in row.variants:
        known = list(row.variants)
        message = f"{spec.name} has no variant `{spec.variant}`"
        help = did_you_mean(spec.variant, known)
        if help is None:
            help = f"there are {', '.join(known)}" if known else "leave it out"
        raise TlrecipeError.of("TLR102", message, path=("data", "variant"), help=help)
    return row.variants[spec.variant]


def _open(spec: TorchvisionData, row: _Set, arguments: Mapping[str, Any]) -> Any:
    """The data set object; for files with a loader that gives the path."""
    where = Path(spec.root, row.folder)
    if spec.download and not row.downloads:
        message = f"torchvision cannot download {spec.name} any more"
        help = f"put its files into `{where}`, and leave `download` out"
        raise TlrecipeError.of("TLR401", message, path=("data", "download"), help=help)
    arguments = {**arguments, "root": spec.root}
    # Always said where it can be: SEMEION would download by default.
    if row.downloads:
        arguments["download"] = spec.download
    if row.samples is _paths:
        arguments["loader"] = str
    try:
        return getattr(torchvision.datasets, spec.name)(**arguments)
    except ImportError as error:
        message = f"{spec.name} is read by {row.needs or error.name}, which is not installed"
        help = f"pip install {row.needs or error.name}"
        raise TlrecipeError.of("TLR401", message, path=("data", "name"), help=help) from error
    except Exception as error:  # the readers raise whatever a missing or torn file leads to
        message = f"`{where}` does not hold {spec.name} as torchvision keeps it: {_reason(error)}"
        help = "put its files there"
        if row.downloads and not spec.download:
            help += ", or let torchvision fetch them: `data.download = true`"
        raise TlrecipeError.of("TLR401", message, path=_PLACE, help=help) from error


def _taken(dataset: Any, row: _Set, spec: TorchvisionData) -> _Samples:
    try:
        return row.samples(dataset)
    except Exception as error:  # as above, for what is read late
        message = f"{spec.name} in `{spec.root}` cannot be read: {_reason(error)}"
        raise TlrecipeError.of("TLR401", message, path=_PLACE) from error


def _reason(error: Exception) -> str:
    # torchvision's advice names its own argument; ours comes as the help.
    text = " ".join(reason_of(error).split())
    return text.partition(". You can")[0].partition(" You can download")[0].rstrip(".")


def _no_file(item: Item) -> bytes:
    raise OSError(f"{item.name} is no file")


def _of_files(
    root: Path, samples: Mapping[str, _Samples]
) -> tuple[Tree, Mapping[str, NDArray[np.int64]], Callable[[Item], str]]:
    base = os.path.expanduser(root)  # noqa: PTH111 (as torchvision does)
    names = {split: [_below(path, base) for path in found.images] for split, found in samples.items()}
    tree, row_of = Tree.of_names(name for inside in names.values() for name in inside)
    rows = {split: np.array([row_of(name) for name in inside], np.int64) for split, inside in names.items()}
    return tree, rows, lambda item: f"{base}/{item.name}"


def _below(path: str, root: str) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _of_arrays(
    samples: Mapping[str, _Samples],
) -> tuple[Tree, Mapping[str, NDArray[np.int64]], Callable[[NDArray[np.int64]], NDArray[np.uint8]]]:
    """Images are called by split and number, such as ``test/00042``."""
    width = len(str(max(len(found.labels) for found in samples.values()) - 1))
    numbered = {
        split: [f"{n:0{width}}" for n in range(len(found.labels))] for split, found in samples.items()
    }
    tree = Tree.of({"": [], **numbered})

    def arrays(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        folder = bisect_right(tree.firsts, rows[0]) - 1
        taken: NDArray[np.uint8] = samples[tree.folders[folder]].images[rows - tree.firsts[folder]]
        return taken

    rows = {split: np.arange(*_span(tree, split), dtype=np.int64) for split in samples}
    return tree, rows, arrays


def _span(tree: Tree, folder: str) -> tuple[int, int]:
    rows = tree.rows(folder)
    return rows.start, rows.stop
