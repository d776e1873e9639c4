"""Checkpoints: the state of a run between two steps, one file each, with its digest in its name.

The newest valid one is found by verification, never by a pointer that could be wrong. A file is a
safetensors file whose metadata holds the plain values as JSON: it runs no code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from tlrecipe import files
from tlrecipe.artifacts.tensors import file_size, pieces
from tlrecipe.language.diagnostics import TlrecipeError

_FORMAT = 1
_NAME = re.compile(r"^(\d{8})-([0-9a-f]{64})\.safetensors$")
# Two verified files stay, so that one damaged by the disk is not the only one.
_KEPT = 2


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read back and verified."""

    path: Path
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    run: Mapping[str, Any]
    """What the run was when it was saved: recipe digest, versions, threads."""


def save(
    folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], run: Mapping[str, Any]
) -> Path:
    """Write a checkpoint into ``folder`` and drop those that are no longer needed.

    The tensors are written one after another, without a second copy of them all. Older files go only
    after the new one is flushed to the disk. Raises TLR901 with the older files untouched.
    """
    about = {"tlrecipe": json.dumps({"format": _FORMAT, "values": values, "run": run}, allow_nan=False)}
    digest = hashlib.sha256()
    for piece in pieces(tensors, about):
        digest.update(piece)
    number = max((int(match[1]) for _, match in _named(folder)), default=0) + 1
    path = folder / f"{number:08d}-{digest.hexdigest()}.safetensors"

    files.write_atomic(path, pieces(tensors, about), size=file_size(tensors, about))
    for old, _ in sorted(_named(folder), key=lambda item: item[1][1], reverse=True)[_KEPT:]:
        files.remove(old)
    for leftover in files.leftovers(folder):
        files.remove(leftover)
    return path


def newest(folder: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence about each damaged one that was passed over.

    None where no checkpoint was ever written.

    Raises:
        TlrecipeError: TLR602 where there are some and none verifies: never a fresh start.
    """
    damaged: list[str] = []
    for path, match in sorted(_named(folder), key=lambda item: item[1][1], reverse=True):
        try:
            return _read(path, match[2]), damaged
        except TlrecipeError as error:
            damaged.append(f"{path.name[:20]}… is damaged: {error.diagnostics[0].message}")
    if damaged:
        raise TlrecipeError.of(
            "TLR602",
            f"all {len(damaged)} checkpoints in `{folder}` are damaged: {damaged[0]}",
            help="start the recipe again in a new run directory",
        )
    return None, []


def _read(path: Path, digest: str) -> Saved:
    content = files.read(path, code="TLR602")
    if hashlib.sha256(content).hexdigest() != digest:
        raise TlrecipeError.of("TLR602", "its bytes are not those of its name")
    try:
        length = int.from_bytes(content[:8], "little")
        about = json.loads(
            json.loads(content[8 : 8 + length])["__metadata__"]["tlrecipe"],
            object_pairs_hook=_without_doubles,
        )
        if about["format"] != _FORMAT:
            raise TlrecipeError.of(
                "TLR602", f"it has format {about['format']!r}, and this version reads {_FORMAT}"
            )
        tensors = safetensors.torch.load(content)
        return Saved(path, tensors, dict(about["values"]), dict(about["run"]))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TlrecipeError.of("TLR602", f"it cannot be read: {type(error).__name__}") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key is there twice")
    return table


def _named(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(path, match) for path in entries if (match := _NAME.match(path.name))]
