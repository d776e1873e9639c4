"""Data sets of the ``datasets`` library: its own files, our decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tlrecipe.data.labelled import ONE_CLASS, labelled, quoted, several_at_once
from tlrecipe.data.listing import Found, Item, Tree
from tlrecipe.data.reading import read_bytes, reason_of
from tlrecipe.language.diagnostics import TlrecipeError, did_you_mean
from tlrecipe.language.spec import HuggingFaceData

if TYPE_CHECKING:
    import datasets

_USUAL = {"val": ("validation", "valid", "val"), "test": ("test",)}


def huggingface_data(spec: HuggingFaceData, *, fetch: bool) -> Found:
    """The splits of a data set, without decoding an image.

    Files of the hub that are not in the library's cache are fetched, unless ``fetch`` is false or
    ``HF_HUB_OFFLINE`` is set.

    Raises ``TlrecipeError``: TLR102 (both or neither of ``path`` and ``name``), TLR401 (not installed,
    not there, no such split or column), TLR402 (labels that are no classes), TLR402 and TLR403 as
    :func:`labelled`.
    """
    chosen = [key for key in ("path", "name") if getattr(spec, key) is not None]
    if len(chosen) != 1:
        message = "`path` and `name` are both set" if chosen else "neither `path` nor `name` is set"
        help = "`path` is a folder of save_to_disk, `name` a data set of the hub: set one of them"
        raise TlrecipeError.of("TLR102", message, path=("data",), help=help)
    place = ("data", chosen[0])
    origin = str(spec.path or spec.name)
    parts = _splits(spec, _load(spec, place, fetch=fetch), origin)
    images, labels = {}, {}
    names: tuple[str, ...] = ()
    for split, part in parts.items():
        _check_columns(spec, part)
        images[split] = part.cast_column(spec.image, _undecoded())
        labels[split], names = _labels(spec, part, names)
    tree = Tree.of({"": [], **{split: _numbered(len(part)) for split, part in images.items()}})
    rows = {split: np.array(tree.rows(split), dtype=np.int64) for split in images}
    meaning = labelled(tree, rows, labels, names, origin, place)

    def read(item: Item) -> bytes:
        split, _, number = item.name.partition("/")
        stored = images[split][int(number)][spec.image]
        if stored is None:
            raise OSError("there is no image in this row")
        data: bytes = stored["bytes"] if stored["bytes"] is not None else read_bytes(stored["path"])
        return data

    return Found(
        classes=meaning.classes,
        splits=meaning.splits,
        read=read,
        origin=origin,
        place=place,
        ignored={},
        warnings=meaning.warnings,
    )


def _load(spec: HuggingFaceData, place: tuple[str, str], *, fetch: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        message = "this source needs the `datasets` library, which is not installed"
        help = 'pip install "tlrecipe[huggingface]"'
        raise TlrecipeError.of("TLR401", message, path=("data", "source"), help=help) from error
    try:
        if spec.path is not None:
            return datasets.load_from_disk(spec.path)
        with nullcontext() if fetch else _offline():
            return datasets.load_dataset(spec.name, revision=spec.revision)
    except Exception as error:  # the library raises whatever a missing or torn file leads to
        where = "a folder of save_to_disk" if spec.path is not None else "on the hub or in its cache"
        message = f"`{spec.path or spec.name}` cannot be loaded ({where}): {reason_of(error).splitlines()[0]}"
        absent = spec.path is not None and not Path(spec.path).exists()
        cure = "the folder does not exist" if absent else None
        raise TlrecipeError.of("TLR401", message, path=place, help=cure) from error


@contextmanager
def _offline() -> Iterator[None]:
    """As if HF_HUB_OFFLINE were set, which both libraries read once, when they are imported."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _splits(spec: HuggingFaceData, loaded: Any, origin: str) -> Mapping[str, datasets.Dataset]:
    if not isinstance(loaded, dict):
        loaded = {spec.train: loaded}
    wanted: Mapping[str, str | None] = {"train": spec.train, "val": spec.validation, "test": spec.test}
    found: dict[str, Any] = {}
    for split, name in wanted.items():
        if name is None:
            name = next((usual for usual in _USUAL[split] if usual in loaded), None)
        elif name not in loaded:
            key = "validation" if split == "val" else split
            help = did_you_mean(name, list(loaded)) or f"it has {quoted(loaded)}"
            raise TlrecipeError.of(
                "TLR401", f"`{origin}` has no split `{name}`", path=("data", key), help=help
            )
        if name is not None:
            found[split] = loaded[name]
    return found


def _check_columns(spec: HuggingFaceData, part: datasets.Dataset) -> None:
    for key in ("image", "label"):
        column = getattr(spec, key)
        if column not in part.column_names:
            help = did_you_mean(column, part.column_names) or f"it has {quoted(part.column_names)}"
            raise TlrecipeError.of("TLR401", f"no column `{column}`", path=("data", key), help=help)
    import datasets

    feature = part.features[spec.image]
    if not isinstance(feature, datasets.Image):
        message = f"column `{spec.image}` holds {type(feature).__name__}, not images"
        raise TlrecipeError.of("TLR401", message, path=("data", "image"))


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)


def _labels(
    spec: HuggingFaceData, part: datasets.Dataset, names: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as places in the names of all classes, to which those that are new here are added."""
    import datasets

    feature = part.features[spec.label]
    values = part.with_format(None)[spec.label][:]
    if isinstance(feature, datasets.ClassLabel):
        count = len(feature.names)
        if (odd := next((n for n, v in enumerate(values) if v is not None and v >= count), None)) is not None:
            message = f"row {odd} of a split has the label {values[odd]}, and there are {count} classes"
            raise TlrecipeError.of("TLR402", message, path=("data", "label"))
        texts = [None if value is None or value < 0 else feature.names[value] for value in values]
    elif isinstance(feature, datasets.Value) and ("int" in feature.dtype or "string" in feature.dtype):
        texts = [None if value is None else str(value) for value in values]
        if several := several_at_once({text for text in texts if text is not None}):
            message = f"labels of column `{spec.label}` are several classes at once: {quoted(several)}"
            raise TlrecipeError.of("TLR402", message, path=("data", "label"), help=ONE_CLASS)
    else:
        message = f"column `{spec.label}` holds {feature}"
        raise TlrecipeError.of("TLR402", message, path=("data", "label"), help=ONE_CLASS)
    if None in texts:
        message = f"row {texts.index(None)} of a split has no label"
        raise TlrecipeError.of("TLR402", message, path=("data", "label"))
    position = {name: place for place, name in enumerate(names)}
    labels = [position.setdefault(str(text), len(position)) for text in texts]
    return np.array(labels, dtype=np.int64), tuple(position)


def _numbered(count: int) -> list[str]:
    width = len(str(max(count - 1, 0)))
    return [f"{number:0{width}}" for number in range(count)]
