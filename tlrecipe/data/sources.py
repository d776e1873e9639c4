"""Where images come from: one row per data source of the grammar, and the listing that all share."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from tlrecipe.data.archives import scan_zip
from tlrecipe.data.folders import class_folders, scan_folder
from tlrecipe.data.huggingface import huggingface_data
from tlrecipe.data.listing import Found, Item, Listing, Split, Tree
from tlrecipe.data.manifest import manifest_data
from tlrecipe.data.reading import file_stamp, read_bytes, reason_of
from tlrecipe.data.splits import few, hold_out, hold_out_groups
from tlrecipe.language import diagnostics
from tlrecipe.language.diagnostics import TlrecipeError, did_you_mean
from tlrecipe.language.spec import (
    DataSpec,
    DataTable,
    FolderData,
    HuggingFaceData,
    ManifestData,
    SampleData,
    TorchvisionData,
)
from tlrecipe.planning.facts import DatasetInfo


def list_data(spec: DataSpec, seed: int, *, fetch: bool = True) -> Listing:
    """The classes and splits of a data source, without decoding an image.

    Where the source has no validation split, ``spec.val`` of the training images become one. ``fetch``
    false keeps from the network even a source that may use it.

    Raises ``TlrecipeError`` with all mistakes found: TLR401 (not there or not readable), TLR402 (no
    usable classes), TLR403 (splits disagree), TLR405 (no validation split possible).
    """
    found = SOURCES[type(spec)](spec, fetch)
    splits = dict(found.splits)
    if "val" not in splits and spec.val > 0:
        train, groups = splits["train"], found.groups
        if groups is None:
            splits["train"], splits["val"] = hold_out(train, spec.val, seed, found.classes)
        else:
            splits["train"], splits["val"] = hold_out_groups(train, groups, spec.val, seed, found.classes)
    if spec.per_class is not None:
        splits["train"] = few(splits["train"], spec.per_class, seed)
    order = [split for split in ("train", "val", "test") if split in splits]
    ordered: dict[str, Split] = {split: splits[split] for split in order}
    counts = {split: len(images) for split, images in ordered.items()}
    per_class = np.bincount(ordered["train"].labels, minlength=len(found.classes))
    return Listing(
        info=DatasetInfo(found.classes, counts, found.origin, tuple(per_class.tolist())),
        splits=ordered,
        ignored=found.ignored,
        warnings=found.warnings,
        place=found.place,
        reader=found.read,
        arrays=found.arrays,
        stamp=found.stamp,
    )


def _sample(spec: SampleData, _fetch: bool) -> Found:
    archive = files("tlrecipe.data").joinpath("samples", f"{spec.name}.zip")
    return _zip(Path(str(archive)), ("data", "name"))


def _folder(spec: FolderData, _fetch: bool) -> Found:
    path, place = Path(spec.path), ("data", "path")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"`{path}` does not exist"
        raise TlrecipeError.of("TLR401", message, path=place, help=_neighbour(path)) from error
    except (OSError, ValueError) as error:
        message = f"`{path}` cannot be read: {reason_of(error)}"
        raise TlrecipeError.of("TLR401", message, path=place) from error
    if stat.S_ISREG(mode):
        return _zip(path, place)
    if stat.S_ISDIR(mode):
        tree, ignored = scan_folder(path, place)
        # Texts, because joining a hundred thousand paths takes longer than looking at their files.
        return _found(
            tree,
            ignored,
            lambda item: read_bytes(f"{path}/{item.name}"),
            lambda item: file_stamp(f"{path}/{item.name}"),
            path,
            place,
        )
    raise TlrecipeError.of("TLR401", f"`{path}` is neither a folder nor a file", path=place)


def _neighbour(path: Path) -> str | None:
    try:
        return did_you_mean(path.name, [beside.name for beside in path.parent.iterdir()])
    except OSError:
        return None


def _zip(path: Path, place: diagnostics.Path) -> Found:
    tree, archive, ignored = scan_zip(path, place)
    return _found(
        tree, ignored, lambda item: archive.read(item.row), lambda item: archive.stamp(item.row), path, place
    )


def _found(
    tree: Tree,
    ignored: Counter[str],
    read: Callable[[Item], bytes],
    stamp: Callable[[Item], int],
    path: Path,
    place: diagnostics.Path,
) -> Found:
    meaning = class_folders(tree, str(path), place)
    return Found(
        classes=meaning.classes,
        splits=meaning.splits,
        read=read,
        origin=str(path),
        place=place,
        ignored=ignored + Counter(meaning.ignored),
        warnings=meaning.warnings,
        stamp=stamp,
    )


def _manifest(spec: ManifestData, _fetch: bool) -> Found:
    return manifest_data(spec)


def _torchvision(spec: TorchvisionData, fetch: bool) -> Found:
    # Imports torch, which the other sources do without.
    from tlrecipe.data.torchvision_sets import torchvision_data

    return torchvision_data(spec if fetch else spec.model_copy(update={"download": False}))


def _huggingface(spec: HuggingFaceData, fetch: bool) -> Found:
    return huggingface_data(spec, fetch=fetch)


SOURCES: Mapping[type[DataTable], Callable[[Any, bool], Found]] = {
    SampleData: _sample,
    FolderData: _folder,
    ManifestData: _manifest,
    TorchvisionData: _torchvision,
    HuggingFaceData: _huggingface,
}
"""How each data source of the grammar is listed; the second argument says whether it may use the network."""
