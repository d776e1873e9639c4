"""What reads bytes from strangers, as functions of bytes: whatever they are given, nothing but an answer to
the user may come out. Anything else would be an exit 70.

Each target takes any bytes and returns None. Hypothesis (``test_fuzz.py``) and atheris (``__main__.py``)
call the same functions, from the same seeds.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tlrecipe.language import globs
from tlrecipe.language.diagnostics import TlrecipeError

RECIPES = Path(__file__).parents[2] / "recipes"

# Wide enough for a frozen machine and far below what a matcher that backtracks takes.
_PATIENCE = 20.0


@cache
def _folder() -> Path:
    """Where targets put their files: in memory where the system has such a place."""
    memory = Path("/dev/shm")
    kept = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="tlrecipe-fuzz-")
    _FOLDERS.append(kept)
    return Path(kept.name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < seconds, "not linear"


def recipe(data: bytes) -> None:
    """The recipe reader, with the places of all that it complains about, and what it writes back."""
    from tlrecipe.language.text import load, loads

    path = _folder() / "recipe.toml"
    path.write_bytes(data)
    with suppress(TlrecipeError), _within(_PATIENCE):
        document = load(path)
        assert loads(document.resolved()).recipe == document.recipe


def override(data: bytes) -> None:
    """``--set`` with any text, on a shipped recipe."""
    from tlrecipe.language.text import load

    with suppress(TlrecipeError), _within(_PATIENCE):
        load(RECIPES / "hybrid.toml", [data.decode("utf-8", "replace")])


def pattern(data: bytes) -> None:
    """The glob matcher: a pattern, a zero byte and the name that it is tried on."""
    text, _, name = data.decode("utf-8", "replace").partition("\0")
    try:
        with _within(_PATIENCE):
            parsed = globs.parse_pattern(text)
            if isinstance(parsed, globs.Glob):
                parsed.matches(name)
    except globs.GlobError as error:
        assert error.message


def bundle(data: bytes) -> None:
    """The bundle reader: ``bundle.json``, beside weights that are empty."""
    from tlrecipe.artifacts.bundle import BUNDLE, WEIGHTS, Model

    folder = _folder() / "bundle"
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(b"")
    (folder / BUNDLE).write_bytes(data)
    with suppress(TlrecipeError):
        Model.load(folder)


def bundle_weights(data: bytes) -> None:
    """The bundle reader: ``model.safetensors``, beside a sound ``bundle.json`` that has its digest."""
    from tlrecipe.artifacts.bundle import BUNDLE, WEIGHTS, Model

    folder = _folder() / "weights"
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(data)
    said = sound_bundle() | {"model_sha256": hashlib.sha256(data).hexdigest()}
    (folder / BUNDLE).write_text(json.dumps(said))
    with suppress(TlrecipeError):
        Model.load(folder)


def checkpoint(data: bytes) -> None:
    """The checkpoint reader, on a file whose name has its digest."""
    from tlrecipe.artifacts.checkpoint import newest

    folder = _folder() / "checkpoints"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / f"00000001-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
    with suppress(TlrecipeError):
        newest(folder)


def image(data: bytes) -> None:
    """The image decoder."""
    from tlrecipe.data.preprocess import BadImage, decode
    from tlrecipe.planning.facts import Preprocessing

    with suppress(BadImage), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode(data, Preprocessing(size=16, max_pixels=1 << 20))


def archive(data: bytes) -> None:
    """A zip of class folders: its listing, and each member that it lists."""
    from tlrecipe.data.sources import list_data
    from tlrecipe.language.spec import FolderData

    path = _folder() / "data.zip"
    path.write_bytes(data)
    with suppress(TlrecipeError):
        listing = list_data(FolderData(source="folder", path=str(path), val=0.0), seed=0)
        for images in listing.splits.values():
            for item in images:
                with suppress(OSError):
                    listing.read(item)


def weights(data: bytes) -> None:
    """A state dict of PyTorch or safetensors, told by the first byte."""
    from tlrecipe.models.weights import from_path, read

    path = _folder() / ("net.safetensors" if data[:1] == b"s" else "net.pth")
    path.write_bytes(data[1:])
    with suppress(TlrecipeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(from_path(str(path)), None)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (recipe, override, pattern, bundle, bundle_weights, checkpoint, image, archive, weights)
}


# --------------------------------------------------------------------------- seeds


def sound_bundle() -> dict[str, object]:
    """A ``bundle.json`` of the smallest network of timm."""
    return {
        "format": 1,
        "tlrecipe": "1",
        "classes": ["a", "b"],
        "preprocessing": {
            "size": 64,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "background": [0, 0, 0],
            "max_pixels": 1000,
        },
        "backbone": {
            "source": "timm",
            "name": "test_resnet",
            "weights": "none",
            "head": {"dropout": 0.0, "init": "zeros"},
            "size": 64,
        },
        "heads": ["fc"],
        "averaged": False,
        "precision": "fp32",
        "metrics": {"test": {"accuracy": 0.5, "count": 8}},
        "origin": "random",
        "origin_sha256": None,
        "license": None,
        "recipe": {"name": "r", "description": "", "sha256": "0" * 64, "seed": 0},
        "data": {"source": "folder", "path": "/images"},
        "model_sha256": hashlib.sha256(b"").hexdigest(),
    }


def seeds(name: str) -> list[bytes]:
    """Sound inputs of a target, to start from."""
    return _SEEDS[name]()


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))]


def _overrides() -> list[bytes]:
    return [
        b"phase.finetune.epochs=3",
        b"data.size = 64",
        b'phase.extract.freeze=["@backbone"]',
        b"seed=[{}]",
    ]


def _patterns() -> list[bytes]:
    texts = ["layer4", "blocks.[4-6].**", "{conv_head,bn?}.weight", "**.bn*", "[a-f0-12]*", "@stage:0..2"]
    return [f"{text}\0blocks.5.bn1.weight".encode() for text in texts]


def _tensors() -> bytes:
    import torch

    from tlrecipe.artifacts.tensors import pieces

    about = {"tlrecipe": json.dumps({"format": 1, "values": {"state": {"step": 3}}, "run": {"recipe": ""}})}
    named = {"model/w": torch.ones(2, 3), "model/n": torch.tensor(1), "optimizer/w": torch.zeros(3).half()}
    return b"".join(bytes(piece) for piece in pieces(named, about))


def _images() -> list[bytes]:
    from PIL import Image

    picture = Image.effect_noise((12, 9), 90)
    found = []
    for format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"):
        for mode in ("L", "RGB"):
            buffer = io.BytesIO()
            picture.convert(mode).save(buffer, format)
            found.append(buffer.getvalue())
    return found


def _archives() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as packed:
            for member in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/x.txt"):
                packed.writestr(zipfile.ZipInfo(member), b"pixels " * 9)
        found.append(buffer.getvalue())
    return found


def _weights() -> list[bytes]:
    import torch

    found = [b"s" + _tensors()]
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"conv.weight": torch.ones(2, 2)}, buffer, _use_new_zipfile_serialization=new)
        found.append(b"p" + buffer.getvalue())
    return found


_SEEDS: Mapping[str, Callable[[], list[bytes]]] = {
    "recipe": _recipes,
    "override": _overrides,
    "pattern": _patterns,
    "bundle": lambda: [json.dumps(sound_bundle()).encode()],
    "bundle_weights": lambda: [_tensors()],
    "checkpoint": lambda: [_tensors()],
    "image": _images,
    "archive": _archives,
    "weights": _weights,
}
