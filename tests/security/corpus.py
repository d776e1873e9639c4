"""Files made to attack: recipes, data folders, archives, weights, run directories and bundles."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from cli.project import RECIPE, write_images

from tlrecipe.artifacts.tensors import pieces

BAD_NAME = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\x9b31m\u200b"
"""Clears a terminal, renames its window, turns the reading direction round, hides a character."""
FORMULA = "=cmd|'/c calc'!A0"
SHELL = "$(touch pwned);`touch pwned`|touch pwned"


class Canary:
    """Pickled, this makes a folder when it is read without restriction."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


# --------------------------------------------------------------------------- recipes


def recipes(folder: Path, canary: Path) -> dict[str, Path]:
    """Hostile recipes by name. Sound data for those that get that far lies beside them."""
    folder.mkdir()
    write_images(folder / "colours" / "train", 8)
    write_images(folder / "colours" / "test", 2)
    found = {}
    for name, text in _recipe_texts(folder, canary).items():
        path = folder / f"{name}.toml"
        path.write_text(text)
        found[name] = path
    os.mkfifo(folder / "fifo.toml")
    (folder / "cycle.toml").symlink_to("cycle.toml")
    (folder / "python.toml").write_bytes(b"import os\nos.mkdir('owned')\n")
    return found | {name: folder / f"{name}.toml" for name in ("fifo", "cycle", "python")}


def _recipe_texts(folder: Path, canary: Path) -> dict[str, str]:
    def changed(old: str, new: str) -> str:
        assert old in RECIPE
        return RECIPE.replace(old, new)

    def data(path: str) -> str:
        return changed('path = "colours"', f"path = {json.dumps(path)}")

    escaped = json.dumps(BAD_NAME)[1:-1]
    return {
        "name-leads-out": changed('name = "tiny"', 'name = "../../owned"'),
        "phase-leads-out": changed('name = "all"', 'name = "../owned"'),
        "escapes-in-words": changed("Three colours.", escaped),
        "escapes-in-keys": changed("size = 64", f'"{escaped}" = 1'),
        "escapes-in-patterns": changed('["@head"]', f'["{escaped}"]'),
        "escapes-raw": RECIPE + f"# {BAD_NAME}\n",
        "shell-in-paths": data(SHELL),
        "environment": data("$HOME/${PATH}/~root"),
        "extends-itself": 'extends = "extends-itself.toml"\n' + RECIPE,
        "extends-device": 'extends = "/dev/zero"\n' + RECIPE,
        "extends-fifo": 'extends = "fifo.toml"\n' + RECIPE,
        "data-is-a-device": data("/dev/zero"),
        "data-is-memory": data("/proc/self/mem"),
        "data-is-null-byte": data("a\0b"),
        "backbone-from-the-hub": changed('name = "test_resnet"', 'name = "hf-hub:evil/model"'),
        "backbone-from-a-folder": changed('name = "test_resnet"', 'name = "local-dir:/etc"'),
        "backbone-is-a-class": changed('name = "test_resnet"', 'name = "os.system"'),
        "weights-from-a-url": changed('weights = "none"', 'weights = "https://example.org/w.pt"'),
        "weights-are-a-device": changed('weights = "none"', 'weights = "/dev/zero"'),
        "braces": changed('["@head"]', '["' + "{a,b}" * 90 + '"]'),
        "stars": changed('["@head"]', '["' + "**a" * 160 + 'b"]'),
        "deep": RECIPE + "x = " + "[" * 5000 + "]" * 5000 + "\n",
        "endless": changed("epochs = 2", "epochs = 1000000000000000000"),
        "huge-batch": changed("batch_size = 8", "batch_size = 99999999"),
        "class-path": changed('name = "test_resnet"', "name = \"__import__('os').mkdir('owned')\""),
    }


# --------------------------------------------------------------------------- data folders


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_PROGRAM = b"__import__('os').mkdir('owned')\n"

IMAGES: Mapping[str, bytes] = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch owned) (w) file\nshowpage\n",
    "eps-binary": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, 60) + bytes(20) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "psd": b"8BPS\0\1" + bytes(40),
    "fits": b"SIMPLE  =                    T" + bytes(2880),
    "msp": b"DanM" + bytes(60),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "im": b"Image type: RGB\r\n" + bytes(600),
    "mpeg": b"\x00\x00\x01\xb3" + bytes(40),
    "avif": b"\0\0\0\x20ftypavif" + bytes(40),
    "html": b"<html><script>alert(1)</script>",
    "python": _PROGRAM,
    "elf": b"\x7fELF" + bytes(60),
    "bomb-in-the-header": png(50_000, 50_000),
    "bomb-of-zeros": png(9_000, 9_000, zlib.compress(bytes(1 << 22))),
    "bomb-below-the-limit": png(9_000, 9_000, zlib.compress(bytes(1000))),
    "gif-and-script": b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)",
    "tiff-loop": b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 256, 4, 1, 1) + struct.pack("<I", 8),
}
"""Files that are called images and are something else, too large, or both."""


def data_folders(folder: Path, secret: Path) -> dict[str, Path]:
    """Hostile data folders by name."""
    found = {}

    def new(name: str) -> Path:
        write_images(folder / name / "train", 8)
        write_images(folder / name / "test", 2)
        found[name] = folder / name
        return folder / name

    root = new("links-out")
    (root / "train" / "red" / "secret.png").symlink_to(secret / "key.png")
    (root / "train" / "violet").symlink_to(secret, target_is_directory=True)
    root = new("links-in-circles")
    (root / "train" / "red" / "again").symlink_to(root / "train", target_is_directory=True)
    (root / "test" / "red" / "self.png").symlink_to("self.png")
    root = new("names")
    for split in ("train", "test"):
        for odd in (BAD_NAME, FORMULA, SHELL.replace("/", ":"), "a\nb", "-rf"):
            shutil.copytree(root / split / "red", root / split / odd)
        (root / split / "red" / f"{BAD_NAME}.png").write_bytes((root / split / "red" / "0.png").read_bytes())
    root = new("images")
    for name, content in IMAGES.items():
        (root / "train" / "red" / f"{name}.png").write_bytes(content)
    root = new("images-with-tails")
    for tail in (_PROGRAM, b"<?php system('touch owned'); ?>"):
        path = root / "train" / "red" / f"{len(tail)}.png"
        path.write_bytes((root / "train" / "red" / "0.png").read_bytes() + tail)
    root = new("special-files")
    os.mkfifo(root / "train" / "red" / "pipe.png")
    root = new("code")
    for module in (
        "torch",
        "timm",
        "numpy",
        "PIL",
        "sitecustomize",
        "conftest",
        "tlrecipe",
        "json",
        "__init__",
    ):
        for place in (root, root / "train", root / "train" / "red"):
            (place / f"{module}.py").write_bytes(_PROGRAM)
    (root / "evil.pth").write_bytes(b"import os; " + _PROGRAM)
    (root / "pyproject.toml").write_text('[project.entry-points."tlrecipe"]\nevil = "evil:run"\n')
    return found


def archives(folder: Path) -> dict[str, Path]:
    """Hostile zip files of class folders by name."""
    folder.mkdir()
    found = {}
    write_images(folder / "tree" / "train", 8)

    def new(name: str, more: Mapping[str, bytes], change: Callable[[zipfile.ZipInfo], object] = bool) -> Path:
        path = folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((folder / "tree").rglob("*.png")):
                archive.write(file, file.relative_to(folder / "tree"))
            for member, content in more.items():
                info = zipfile.ZipInfo("placeholder")
                info.filename = member
                change(info)
                archive.writestr(info, content)
        found[name] = path
        return path

    image = (folder / "tree" / "train" / "red" / "0.png").read_bytes()
    new("slip", {"train/red/../../../../owned.png": image})
    new("slip-absolute", {"/owned.png": image})
    new("slip-backslash", {"train\\..\\..\\owned.png": image})
    new("slip-drive", {"C:/owned.png": image})
    new(
        "link",
        {"train/red/link.png": b"/etc/passwd"},
        lambda info: setattr(info, "external_attr", 0xA1FF << 16),
    )
    new("names", {f"train/{odd}/{index}.png": image for odd in (BAD_NAME, FORMULA) for index in range(8)})
    new("nested", {"train/red/inner.png": new("inner", {}).read_bytes()})
    path = new("bomb", {"train/red/bomb.png": image[:8] + bytes(30 << 20)})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 24 :][:4] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(content)
    path = new("bomb-that-lies", {"train/red/bomb.png": image[:8] + bytes(30 << 20)})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    path = new("overlapping", {})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("train/red/long.png", bytes(1 << 16))
        for number in range(9):
            again = copy.copy(archive.getinfo("train/red/long.png"))
            again.filename = f"train/red/long{number}.png"
            archive.filelist.append(again)
        archive.writestr("train/red/end.png", b"")
    path = new("cut", {})
    path.write_bytes(path.read_bytes()[:-30])
    path = new("many", {f"train/red/{index}x.png": b"" for index in range(300)})
    return found


# --------------------------------------------------------------------------- weights


def weights(folder: Path, canary: Path) -> dict[str, Path]:
    """Hostile weights files by name."""
    folder.mkdir()
    found = {}

    def new(name: str, content: bytes) -> Path:
        found[name.partition(".")[0]] = folder / name
        (folder / name).write_bytes(content)
        return folder / name

    def saved(value: Any, **options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    evil = {"conv.weight": torch.ones(2), "x": Canary(canary)}
    new("reduce.pth", saved(evil))
    new("reduce-old.pth", saved(evil, _use_new_zipfile_serialization=False))
    new("reduce-bare.pth", pickle.dumps(Canary(canary)))
    new("reduce-protocol-0.pth", pickle.dumps(Canary(canary), protocol=0))
    new("reduce-as-safetensors.safetensors", pickle.dumps(Canary(canary)))
    new("module.pth", saved(torch.nn.Linear(2, 2)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("pickle", "storages", "tensors", "../owned"):
            info = tarfile.TarInfo(name)
            info.size = len(content := pickle.dumps(Canary(canary)))
            archive.addfile(info, io.BytesIO(content))
    new("tar.pth", buffer.getvalue())
    plain = saved({"conv.weight": torch.ones(64)})
    new("bomb-deflated.pth", _repacked(plain, bytes(200 << 20)))
    new("bomb-strides.pth", saved({"conv.weight": torch.ones(1).expand(1 << 40)}))
    new("header-huge.safetensors", (2**62).to_bytes(8, "little") + b"{}")
    new("header-deep.safetensors", _safetensors(b"[" * 50_000))
    new("header-escapes.safetensors", _safetensors(json.dumps({BAD_NAME: 1}).encode()))
    state = {f"{BAD_NAME}{FORMULA}": torch.ones(2)}
    safetensors.torch.save_file(state, folder / "names.safetensors")
    found["names"] = folder / "names.safetensors"
    os.mkfifo(folder / "pipe.pth")
    found["pipe"] = folder / "pipe.pth"
    return found


def _repacked(plain: bytes, storage: bytes) -> bytes:
    """A file of PyTorch whose storage is packed: small here, large when it is read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, storage if "/data/" in info.filename else content)
    return buffer.getvalue()


def _safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


# --------------------------------------------------------------------------- run directories and bundles


def run_directories(folder: Path, stopped: Path, outside: Path) -> dict[str, Path]:
    """Hostile run directories by name. ``stopped`` is a sound one that can be resumed."""
    folder.mkdir()
    found = {}

    def new(name: str) -> Path:
        found[name] = Path(shutil.copytree(stopped, folder / name))
        return found[name]

    for name in ("lock", "metrics.jsonl", "log.jsonl", "result.json", "recipe.toml"):
        root = new(f"link-{name.partition('.')[0]}")
        (root / name).unlink(missing_ok=True)
        (outside / name).write_text("precious\n")
        (root / name).symlink_to(outside / name)
        root = new(f"pipe-{name.partition('.')[0]}")
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)
    root = new("link-checkpoints")
    shutil.copytree(root / "checkpoints", outside / "checkpoints")
    shutil.rmtree(root / "checkpoints")
    (root / "checkpoints").symlink_to(outside / "checkpoints", target_is_directory=True)
    root = new("link-model")
    (outside / "model").mkdir()
    (outside / "model" / "precious.txt").write_text("precious\n")
    (root / "model").symlink_to(outside / "model", target_is_directory=True)

    for name, change in _CHECKPOINT_CHANGES.items():
        _rewrite_checkpoints(new(name), lambda about, change=change: _changed(about, change))
    root = new("checkpoint-pickled")
    for path in (root / "checkpoints").iterdir():
        path.unlink()
    content = pickle.dumps(Canary(outside / "owned"))
    name = f"00000009-{hashlib.sha256(content).hexdigest()}.safetensors"
    (root / "checkpoints" / name).write_bytes(content)
    root = new("result-deep")
    (root / "result.json").write_text("[" * 100_000)
    root = new("result-escapes")
    (root / "result.json").write_text(json.dumps({"status": BAD_NAME}))
    root = new("recipe-escapes")
    recipe = root / "recipe.resolved.toml"
    recipe.write_text(recipe.read_text().replace('name = "test_resnet"', f"name = {json.dumps(BAD_NAME)}"))
    return found


def _changed(about: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> str:
    change(about)
    return json.dumps(about)


def _rewrite_checkpoints(root: Path, said: Callable[[dict[str, Any]], str]) -> None:
    """Put other plain values into all checkpoints, of which ``said`` gives the JSON; digests stay sound."""
    for path in (root / "checkpoints").iterdir():
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["tlrecipe"])
        told = {"tlrecipe": said(about)}
        content = b"".join(bytes(piece) for piece in pieces(safetensors.torch.load(content), told))
        path.unlink()
        name = f"{path.name[:8]}-{hashlib.sha256(content).hexdigest()}.safetensors"
        (path.parent / name).write_bytes(content)


_CHECKPOINT_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "run-escapes": lambda about: about["run"].update(recipe=BAD_NAME),
    "numerics-escape": lambda about: about["run"]["numerics"].update(processor=BAD_NAME),
    "numerics-are-text": lambda about: about["run"].update(numerics=BAD_NAME),
    "run-is-empty": lambda about: about["run"].clear(),
}

_NESTED: Any = []
for _ in range(900):  # as much as a reader of JSON takes, and more than what comes after it may
    _NESTED = [_NESTED]

_ODD: Mapping[str, Any] = {
    "text": BAD_NAME,
    "code": "__import__('os').mkdir('owned')",
    "none": None,
    "true": True,
    "negative": -1,
    "fraction": 0.5,
    "huge": 10**30,
    "nan": float("nan"),
    "infinite": float("inf"),
    "list": [BAD_NAME],
    "table": {BAD_NAME: 1},
    "deep": _NESTED,
    "surrogate": "\ud800",
}

_PLACES: Mapping[str, Callable[[dict[str, Any]], tuple[dict[str, Any], str]]] = {
    "format": lambda about: (about, "format"),
    "values": lambda about: (about, "values"),
    "run": lambda about: (about, "run"),
    "state": lambda about: (about["values"], "state"),
    "choices": lambda about: (about["values"], "choices"),
    "precision": lambda about: (about["values"], "precision"),
    "stateless": lambda about: (about["values"], "stateless"),
    "phase": lambda about: (about["values"]["state"], "phase"),
    "step": lambda about: (about["values"]["state"], "step"),
    "records": lambda about: (about["values"]["state"], "records"),
    "loss": lambda about: (about["values"]["state"], "loss_sum"),
    "best": lambda about: (about["values"]["state"], "best"),
    "clocks": lambda about: (about["values"]["state"], "clocks"),
    "results": lambda about: (about["values"]["state"], "results"),
    "choice": lambda about: (about["values"]["choices"][0], "mode"),
    "cut": lambda about: (about["values"]["choices"][0], "cut"),
    "classes": lambda about: (about["run"], "classes"),
    "pixels": lambda about: (about["run"], "pixels"),
    "numerics": lambda about: (about["run"], "numerics"),
}


def _odd(place: str, value: Any) -> Callable[[dict[str, Any]], str]:
    def said(about: dict[str, Any]) -> str:
        table, key = _PLACES[place](about)
        table[key] = value
        return json.dumps(about)

    return said


def checkpoints(folder: Path, stopped: Path) -> dict[str, Path]:
    """Run directories whose checkpoints are whole, and say what no run of theirs can have said."""
    folder.mkdir()
    texts: dict[str, Callable[[dict[str, Any]], str]] = {
        "no-json": lambda about: BAD_NAME,
        "deep": lambda about: "[" * 100_000,
        "deep-inside": lambda about: json.dumps(about).replace('"best": null', '"best": ' + "[" * 100_000),
        "twice": lambda about: json.dumps(about)[:-1] + ', "format": 1}',
        "twice-inside": lambda about: json.dumps(about).replace('"phase": ', '"phase": 0, "phase": ', 1),
        "many-digits": lambda about: json.dumps(about).replace('"step": ', '"step": ' + "9" * 5000, 1),
        "step-too-far": _odd("step", 10**9),
        "phase-too-far": _odd("phase", 10**9),
        "records-too-many": _odd("records", 10**9),
        "stateless-is-unknown": _odd("stateless", ["../../etc/passwd"]),
    }
    # Each kind of value in a few places, and each place with a few kinds: all of both would be hundreds.
    kinds = list(_ODD)
    for number, place in enumerate(_PLACES):
        for kind in (kinds[(number + step) % len(kinds)] for step in (0, 5)):
            texts[f"{place}-{kind}"] = _odd(place, _ODD[kind])
    found = {}
    for name, said in texts.items():
        found[name] = Path(shutil.copytree(stopped, folder / name))
        _rewrite_checkpoints(found[name], said)
    return found


def reported(folder: Path, finished: Path, secret: Path) -> dict[str, Path]:
    """Finished run directories, of which one file each is hostile: for what is made of them."""
    folder.mkdir()
    found = {}

    def new(name: str, file: str, content: bytes) -> Path:
        root = found[name] = Path(shutil.copytree(finished, folder / name))
        (root / file).unlink()
        if content:
            (root / file).write_bytes(content)
        return root / file

    for file in _READ:
        sound = (finished / file).read_bytes()
        stem = file.rpartition("/")[2].replace(".", "-")
        new(f"{stem}-deep", file, b"[" * 100_000)
        new(f"{stem}-binary", file, bytes(range(256)))
        new(f"{stem}-link", file, b"").symlink_to(secret / "key.png")
        os.mkfifo(new(f"{stem}-pipe", file, b""))
        if not file.endswith("json"):
            continue
        value = json.loads(sound)
        for kind in ("text", "none", "nan", "huge", "negative", "list"):
            other = json.dumps(_leaves(value, _ODD[kind])).encode()
            new(f"{stem}-{kind}", file, other)
        new(f"{stem}-keys", file, json.dumps(_leaves(value, None, keys=True)).encode())
    rows = (finished / "metrics.jsonl").read_text().splitlines()
    values = [json.dumps(_leaves(json.loads(row), float("nan"))) for row in rows]
    new("metrics-nan", "metrics.jsonl", "\n".join(values).encode())
    root = new("predictions-names", "predictions.csv", b"").parent
    lines = (finished / "predictions.csv").read_text().splitlines()
    odd = (BAD_NAME, FORMULA, "<script>alert(1)</script>", "../../etc/passwd")
    named = [
        lines[0],
        *(",".join([f'"{name}"', *line.split(",")[1:]]) for name, line in zip(odd, lines[1:], strict=False)),
    ]
    (root / "predictions.csv").write_text("\n".join(named) + "\n")
    return found


_READ = (
    *("plan.json", "result.json", "environment.json", "evaluation.json", "plots/thumbnails.json"),
    *("model/bundle.json", "predictions.csv", "metrics.jsonl", "recipe.resolved.toml"),
)


def _leaves(value: Any, other: Any, *, keys: bool = False) -> Any:
    """Plain values with ``other`` in the place of all that is no table or list; or with hostile keys."""
    if isinstance(value, dict):
        return {BAD_NAME + key if keys else key: _leaves(v, other, keys=keys) for key, v in value.items()}
    if isinstance(value, list):
        return [_leaves(item, other, keys=keys) for item in value]
    return value if keys else other


def bundles(folder: Path, sound: Path, secret: Path, canary: Path) -> dict[str, Path]:
    """Hostile bundles by name."""
    folder.mkdir()
    found = {}

    def new(name: str, change: Callable[[dict[str, Any]], object] = bool) -> Path:
        found[name] = Path(shutil.copytree(sound, folder / name))
        values = json.loads((sound / "bundle.json").read_text())
        change(values)
        (folder / name / "bundle.json").write_text(json.dumps(values))
        return found[name]

    def weighted(name: str, content: bytes) -> None:
        root = new(name, lambda b: b.update(model_sha256=hashlib.sha256(content).hexdigest()))
        (root / "model.safetensors").write_bytes(content)

    new("names", lambda b: b.update(classes=[BAD_NAME, FORMULA, "a\nb<script>alert(1)</script>"]))
    new("metrics", lambda b: b.update(metrics={BAD_NAME: {BAD_NAME: BAD_NAME}}, origin=BAD_NAME))
    new("backbone-path", lambda b: b["backbone"].update(name="local-dir:/etc"))
    new("backbone-escapes", lambda b: b["backbone"].update(name=BAD_NAME))
    new("weights-path", lambda b: b["backbone"].update(weights="../../secret"))
    new("data-is-a-device", lambda b: b.update(data={"source": "folder", "path": "/dev/zero"}))
    new("data-escapes", lambda b: b.update(data={"source": "folder", "path": BAD_NAME}))
    new("head", lambda b: b.update(heads=["__class__.__init__"]))
    new("more", lambda b: b.update({BAD_NAME: "x"}))
    weighted("pickled", pickle.dumps(Canary(canary)))
    weighted("header", (2**62).to_bytes(8, "little"))
    root = new("link")
    (root / "bundle.json").unlink()
    (root / "bundle.json").symlink_to("/dev/zero")
    root = new("code")
    for name in ("bundle.py", "__init__.py", "torch.py", "modeling.py"):
        (root / name).write_bytes(_PROGRAM)
    (root / "config.json").write_text(json.dumps({"architecture": "evil", "auto_map": {"A": "modeling.A"}}))
    root = new("deep")
    (root / "bundle.json").write_text("[" * 100_000)
    return found
