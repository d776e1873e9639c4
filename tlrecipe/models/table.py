"""The parameter table as data: exact JSON, and a cache of it.

Building even an empty network means importing PyTorch and a model library, seconds where the rest of
``validate`` takes a tenth of one. A table depends on nothing but the request and the library versions,
so it is kept on disk, and this module imports neither library unless a table has to be made.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import BackboneSpec, BundleBackbone, HeadSpec
from tlrecipe.models.bundle_record import BUNDLE, backbone_bundle
from tlrecipe.planning.facts import AdapterMatch, ModuleFact, ParamFact, ParamTable, Preprocessing

FORMAT = 3
"""Raised whenever the same network would give another table: tables of other formats are made anew."""

_LIBRARIES = ("torch", "timm", "torchvision")
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weights_kind(weights: str) -> str:
    """What ``weights`` of a recipe means: ``"none"``, ``"pretrained"``, ``"path"``, or the tag itself.

    A path holds a separator or ends like a weights file; tags of timm and torchvision do neither.
    """
    if weights in ("none", "pretrained"):
        return weights
    if "/" in weights or os.sep in weights or weights.endswith(_FILE_SUFFIXES):
        return "path"
    return weights


def described(
    spec: BackboneSpec, head: HeadSpec, classes: int, cache: Path | None, size: int | None = None
) -> ParamTable:
    """:func:`tlrecipe.models.backbones.describe`, remembered under ``cache``.

    A damaged file, or one of another format or library version, is made anew. Errors are not remembered.
    """
    file = None if cache is None else cache / "tables" / f"{_key(spec, head, classes, size)}.json"
    if file is not None and (known := _read(file)) is not None:
        return known
    from tlrecipe.models.backbones import describe

    table = describe(spec, head, classes, size)
    if file is not None:
        _write(file, table)
    return table


def to_json(table: ParamTable) -> str:
    """One line of JSON; :func:`from_json` gives back an equal table."""
    return json.dumps(asdict(table), separators=(",", ":"))


def from_json(text: str) -> ParamTable:
    """The table of :func:`to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    values: dict[str, Any] = json.loads(text)
    values["params"] = tuple(ParamFact(**_with_tuples(param)) for param in values["params"])
    values["modules"] = tuple(ModuleFact(**_with_tuples(module)) for module in values["modules"])
    values["adapters"] = tuple(AdapterMatch(**_with_tuples(match)) for match in values["adapters"])
    values["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
    return ParamTable(**values)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _key(spec: BackboneSpec, head: HeadSpec, classes: int, size: int | None) -> str:
    request = {
        "format": FORMAT,
        "backbone": _identity(spec),
        "args": spec.args,
        "adapter": None if spec.adapter is None else spec.adapter.model_dump(),
        # Not part of the table, but what is wrong with it has to be said each time.
        "pinned": spec.sha256 is not None,
        "head": head.model_dump(),
        "classes": classes,
        "size": size,
        "libraries": versions(),
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """The versions of the libraries that networks come from; None for one that is not installed."""
    return {name: _version(name) for name in _LIBRARIES}


def _identity(spec: BackboneSpec) -> list[str]:
    """What names a network: of an earlier model, the content of what it says of itself."""
    if isinstance(spec, BundleBackbone):
        folder, _ = backbone_bundle(spec.path, spec.sha256)
        return [spec.source, files.sha256(folder / BUNDLE, code="TLR504")]
    return [spec.source, spec.name, weights_kind(spec.weights)]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(file: Path) -> ParamTable | None:
    try:
        digest, text = file.read_text(encoding="utf-8").split("\n", 1)
        return from_json(text) if digest == hashlib.sha256(text.encode()).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, table: ParamTable) -> None:
    text = to_json(table)
    content = f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"
    # The table is in hand: a full or read-only cache costs the next run its seconds, not this one.
    with contextlib.suppress(TlrecipeError):
        files.make_folder(file.parent)
        files.write_atomic(file, content.encode())
