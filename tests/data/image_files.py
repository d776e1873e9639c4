"""Small image files and class folders for the tests of the data part."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tlrecipe.language.spec import FolderData
from tlrecipe.planning import randomness


def encoded(image, format="PNG", **options) -> bytes:
    """The bytes of an image file. ``image`` is a Pillow image or an array."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def noise(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plant(root: Path, files) -> Path:
    """Writes files below ``root``. A name without bytes gets a small PNG that no other name gets."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given = files[name] if isinstance(files, dict) else None
        path.write_bytes(encoded(noise(randomness.key(name))) if given is None else given)
    return root


def pets(count: int = 4, above: str = "", classes=("cat", "dog")) -> list[str]:
    return [f"{above}{name}/{number}.png" for name in classes for number in range(count)]


def folder_spec(path, **keys) -> FolderData:
    return FolderData(source="folder", path=str(path), **keys)
