"""All that tlrecipe changes on a disk goes through ``tlrecipe/files.py``, where tests make it fail: nothing
else in the package opens a file to write, renames or removes one, or has a library do so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tlrecipe"

_DEVELOPERS = "for developers: writes a page or the schema of the source tree"
ALLOWED = {
    "files.py": "the one place",
    "language/explanations.py: write_text": _DEVELOPERS,
    "language/reference.py: write_text": _DEVELOPERS,
    "language/schema.py: write_text": _DEVELOPERS,
    "artifacts/rundir.py: write_text": "the method of RunDirectory, by files.py",
    "workflow/running.py: write_text": "the method of RunDirectory, by files.py",
    "artifacts/report/shapes.py: save": "into memory",
    "artifacts/report/thumbnails.py: save": "into memory",
    "cli/preview.py: save": "into memory",
    "data/shelf.py: np.save": "into memory",
    "training/interpreter.py: save": "the function that it was given",
    "workflow/running.py: save": "of checkpoint.py, by files.py",
    "artifacts/tracking.py: save": "Weights & Biases' own, asked for by name",
    "data/pixels.py: open": "the descriptor of a scratch file of files.py",
    "data/pixels.py: memmap": "the same scratch file",
    "training/features.py: from_file": "maps a file that files.py has reserved",
    "data/reading.py: os.open": "adds a flag to those of a file that is opened to be read",
    "models/weights.py: hf_hub_download": "the hub's client and its own cache",
}
"""What may change a disk, as ``file: call``, and why."""

# What changes files: functions by their module, and methods by a name that says so.
_OS = {
    "rename",
    "renames",
    "replace",
    "remove",
    "unlink",
    "mkdir",
    "makedirs",
    "rmdir",
    "removedirs",
    "mkfifo",
}
_OS |= {"truncate", "ftruncate", "link", "symlink", "chmod", "chown", "utime", "write", "pwrite", "writev"}
_SHUTIL = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree", "make_archive"}
_TEMPFILE = {"mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"}
_FUNCTIONS = {
    "os": _OS,
    "shutil": _SHUTIL | {"unpack_archive"},
    "tempfile": _TEMPFILE,
    "np": {"save", "savez", "savez_compressed", "savetxt", "memmap"},
    **{module: {"dump", "save"} for module in ("json", "pickle", "tomli_w", "torch")},
}
_METHODS = {"write_text", "write_bytes", "unlink", "rmdir", "touch", "mkdir", "symlink_to", "hardlink_to"}
_METHODS |= {"save", "save_file", "savefig", "tofile", "extract", "extractall", "from_file", "to_csv"}
_METHODS |= {"hf_hub_download", "snapshot_download", "download_url_to_file", "load_state_dict_from_url"}


def writers(source: str) -> Iterator[str]:
    """The names of the calls in a source text that may change a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := _writing(node)):
            yield name


def _writing(call: ast.Call) -> str | None:
    match call.func:
        case ast.Attribute(ast.Name("os"), "open"):
            flags = ast.unparse(call.args[1])
            return None if flags.startswith("os.O_RDONLY") and "O_CREAT" not in flags else "os.open"
        case ast.Attribute(ast.Attribute(ast.Name("files"), "operations")) | ast.Attribute(ast.Name("files")):
            return None
        case ast.Name("open" | "ZipFile" | "TarFile") | ast.Attribute(_, "open" | "ZipFile" | "TarFile"):
            written = any(_is_mode_of_writing(argument) for argument in _arguments(call))
            return ast.unparse(call.func).rpartition(".")[2] if written else None
        case ast.Attribute(ast.Name(module), name) if name in _FUNCTIONS.get(module, ()):
            return name if name == "memmap" else f"{module}.{name}"
        case ast.Attribute(_, name) | ast.Name(name) if name in _METHODS:
            return name
    return None


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _is_mode_of_writing(argument: ast.expr) -> bool:
    match argument:
        case ast.Constant(str(text)):
            return len(text) <= 3 and bool(set(text) & set("wax+"))
    return False


def test_nothing_changes_files_but_what_is_listed() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if place in ALLOWED:
            found.add(place)
        else:
            found |= {f"{place}: {name}" for name in writers(path.read_text(encoding="utf-8"))}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "call",
    [
        *("open(path, 'w')", "path.open('ab')", "open(path, mode='r+')", "io.open(path, 'x')"),
        *("os.open(path, os.O_RDWR)", "os.open(path, flags)", "os.replace(a, b)", "path.write_text('x')"),
        *("path.unlink()", "shutil.rmtree(a)", "torch.save(x, path)", "safetensors.torch.save_file(x, path)"),
        *(
            "np.memmap(path, mode='w+')",
            "zipfile.ZipFile(path, 'w')",
            "json.dump(x, file)",
            "image.save(path)",
        ),
    ],
)
def test_what_changes_a_file_is_seen(call: str) -> None:
    assert list(writers(f"def f():\n    {call}\n"))


@pytest.mark.parametrize(
    "call",
    [
        *("open(path)", "path.open('rb')", "os.open(path, os.O_RDONLY | os.O_NONBLOCK)"),
        *(
            "files.write_atomic(path, b'')",
            "zipfile.ZipFile(path)",
            "text.replace('a', 'b')",
            "json.dumps(x)",
        ),
    ],
)
def test_what_only_reads_is_not(call: str) -> None:
    assert not list(writers(call))
