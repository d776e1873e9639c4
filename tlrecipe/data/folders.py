"""Class folders: which files a folder holds, and which of them are the splits and classes."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tlrecipe.data.listing import Split, Tree
from tlrecipe.data.reading import reason_of
from tlrecipe.language import diagnostics
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped, did_you_mean

SPLIT_FOLDERS: Mapping[str, str] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Folder names, in any case, and the splits that they hold."""

# Inside class folders content decides what is an image; outside, the ending has to.
_IMAGE_ENDINGS = frozenset(
    {"bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "tif", "tiff", "webp"} | {"pbm", "pgm", "pnm", "ppm"}
)
_TEXT_ENDINGS = frozenset(
    {"cfg", "csv", "htm", "html", "ini", "ipynb", "json", "jsonl", "log", "md", "npy", "parquet", "pdf"}
    | {"py", "rst", "sh", "toml", "tsv", "txt", "xml", "yaml", "yml"}
)
_SYSTEM_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "lost+found", "icon\r"})


def passed_over(name: str) -> str | None:
    """Why a file or folder of this name is passed over by rule, or None."""
    if name.startswith("."):
        return "hidden"
    return "system" if name.lower() in _SYSTEM_NAMES else None


def is_text(name: str) -> bool:
    """Whether a file's ending says that it is text or data such as people keep beside images."""
    return _ending(name) in _TEXT_ENDINGS


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


# --------------------------------------------------------------------------- a folder on disk


def scan_folder(root: Path, place: diagnostics.Path) -> tuple[Tree, Counter[str]]:
    """All files below ``root``, and how many were passed over, by reason.

    Links to files inside the root count as files. Any other link is an error: following it could leave
    the root or run in a circle, and not following it would make the data set smaller. So is a folder
    that cannot be read. Raises ``TlrecipeError`` (TLR401) with all of them.
    """
    files: dict[str, list[str]] = {}
    ignored: Counter[str] = Counter()
    problems: list[Diagnostic] = []
    pending = [""]
    real_root = root.resolve()
    while pending:
        folder = pending.pop()
        files[folder] = []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if reason := passed_over(entry.name):
                        ignored[reason] += 1
                    elif problem := _entry_problem(entry, real_root, place):
                        problems.append(problem)
                    elif entry.is_dir():
                        pending.append(f"{folder}/{entry.name}" if folder else entry.name)
                    elif not entry.is_file():
                        ignored["special file"] += 1
                    elif is_text(entry.name):
                        ignored["text or data"] += 1
                    else:
                        files[folder].append(entry.name)
        except OSError as error:
            message = f"`{root / folder}` cannot be read: {reason_of(error)}"
            problems.append(Diagnostic("TLR401", message, place))
    if problems:
        raise TlrecipeError(capped(sorted(problems, key=lambda problem: problem.message)))
    return Tree.of(files), ignored


def _entry_problem(entry: os.DirEntry[str], real_root: Path, place: diagnostics.Path) -> Diagnostic | None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
        return Diagnostic("TLR401", f"the name `{shown}` is not UTF-8", place, "rename it")
    if not entry.is_symlink():
        return None
    target = Path(os.path.realpath(entry.path))
    if not target.is_relative_to(real_root):
        leads = "out of the data folder"
    elif not target.exists():
        leads = "to nothing"
    elif target.is_dir():
        leads = "to a folder"
    else:
        return None
    cure = "put what it points to in its place, or remove it"
    return Diagnostic("TLR401", f"`{entry.path}` is a link {leads}", place, cure)


# --------------------------------------------------------------------------- splits and classes


@dataclass(frozen=True)
class ClassFolders:
    """What a tree of class folders means."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    ignored: Mapping[str, int]
    warnings: tuple[Diagnostic, ...]


def class_folders(tree: Tree, origin: str, place: diagnostics.Path) -> ClassFolders:
    """Splits and classes of a tree: ``class/file`` or ``split/class/file``.

    The classes are the folders in ``train``, sorted by name; the other splits are mapped by name. A
    folder called like a split is one only if ``train`` holds folders; otherwise it is a class.

    Raises ``TlrecipeError`` with all that is wrong: TLR402 (no, one or empty classes; images outside
    class folders), TLR403 (a class that ``train`` lacks; no ``train``; two folders for one split),
    TLR405 (an empty validation folder).
    """
    layout = _Layout.of(tree, origin, place)
    problems = [*layout.misplaced_images(), *layout.class_problems()]
    if problems:
        raise TlrecipeError(capped(problems))
    classes = tuple(sorted(layout.folders["train"]))
    splits = {split: _split(tree, inside, classes) for split, inside in layout.folders.items()}
    outside = len(tree.bases) - sum(map(len, splits.values()))
    return ClassFolders(
        classes,
        splits,
        {"outside class folders": outside} if outside else {},
        tuple(capped([*layout.absent_classes(), *layout.alike_names()])),
    )


def _split(tree: Tree, folders: Mapping[str, str], classes: tuple[str, ...]) -> Split:
    inside = [tree.rows(folders[name]) if name in folders else range(0) for name in classes]
    return Split(
        tree,
        np.concatenate([np.arange(rows.start, rows.stop, dtype=np.int64) for rows in inside]),
        np.repeat(np.arange(len(classes)), [len(rows) for rows in inside]),
    )


@dataclass(frozen=True)
class _Layout:
    tree: Tree
    origin: str
    place: diagnostics.Path
    tops: Mapping[str, str]
    """Split to the folder that holds its class folders."""
    folders: Mapping[str, Mapping[str, str]]
    """Split, then class, to the class folder."""

    @classmethod
    def of(cls, tree: Tree, origin: str, place: diagnostics.Path) -> _Layout:
        tops = _split_folders(tree, origin, place)
        folders = {
            split: {name: f"{top}/{name}" if top else name for name in tree.subfolders(top)}
            for split, top in tops.items()
        }
        return cls(tree, origin, place, tops, folders)

    def misplaced_images(self) -> Iterator[Diagnostic]:
        """Images above the class folders, or in folders inside them."""
        cure = f"put every image into the folder of its class, such as `{self.origin}/cat/1.jpg`"
        for folder in sorted({"", *self.tops.values()}):
            images = [row for row in self.tree.rows(folder) if _looks_like_image(self.tree.bases[row])]
            if images:
                example = self.tree.name(images[0])
                message = f"images outside class folders: {len(images):,} in {self._shown(folder)}"
                yield Diagnostic("TLR402", f"{message}, such as `{example}`", self.place, cure)
        classes = {folder for inside in self.folders.values() for folder in inside.values()}
        for folder in self.tree.folders:
            parts = folder.split("/")
            above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
            if self.tree.rows(folder) and above & classes:
                message = f"{self._shown(folder)} holds images, but lies inside a class folder"
                yield Diagnostic("TLR402", message, self.place, cure)

    def class_problems(self) -> Iterator[Diagnostic]:
        """Splits without classes, classes without images, classes that only one split knows."""
        train = self.folders["train"]
        for split, inside in self.folders.items():
            where = self._shown(self.tops[split])
            if not inside:
                code = "TLR405" if split == "val" else "TLR402"
                cure = "make one folder per class in it" + ("" if split == "train" else ", or remove it")
                yield Diagnostic(code, f"no class folders in {where}", self.place, cure)
            if split == "train" and len(inside) == 1:
                message = f"one class only, {_quoted(inside)}, in {where}"
                yield Diagnostic("TLR402", message, self.place, "two classes are the least")
            empty = [folder for folder in inside.values() if not self.tree.rows(folder)]
            if empty:
                message = f"no images in {_quoted(empty)} of `{self.origin}`"
                yield Diagnostic("TLR402", message, self.place, "fill the folder or remove it")
            unknown = sorted(inside.keys() - train.keys())
            if unknown:
                message = f"`{split}` has classes that `train` has not: {_quoted(unknown)}"
                yield Diagnostic("TLR403", message, self.place, _known_name(unknown[0], train))

    def absent_classes(self) -> Iterator[Diagnostic]:
        """Warnings: classes that validation or test cannot say anything about."""
        for split, inside in self.folders.items():
            absent = sorted(self.folders["train"].keys() - inside.keys())
            if absent:
                message = f"`{split}` has no images of {_quoted(absent)}"
                yield Diagnostic("TLR403", message, self.place, severity="warning")

    def alike_names(self) -> Iterator[Diagnostic]:
        """Warnings: names that look the same but differ in bytes, as trees made on two systems have them."""
        seen: dict[str, str] = {}
        for name in (*self.tree.folders, *map(self.tree.name, self.tree.non_ascii())):
            first = seen.setdefault(unicodedata.normalize("NFC", name), name)
            if first != name:
                message = f"two names look the same, but differ in Unicode: {name!a} and {first!a}"
                yield Diagnostic("TLR402", message, self.place, severity="warning")

    def _shown(self, folder: str) -> str:
        return f"`{self.origin}/{folder}`" if folder else f"`{self.origin}`"


def _split_folders(tree: Tree, origin: str, place: diagnostics.Path) -> Mapping[str, str]:
    """Split to the folder that holds its class folders; the root is ``train`` where there are none."""
    tops = tree.subfolders("")
    named: dict[str, list[str]] = {}
    for name in tops:
        if split := SPLIT_FOLDERS.get(name.casefold()):
            named.setdefault(split, []).append(name)
    there = [name for names in named.values() for name in names]
    has_classes = any(tree.subfolders(name) for name in named.get("train", ()))
    if not has_classes and (not named or len(there) < len(tops)):
        return {"train": ""}
    if "train" not in named:
        message = f"`{origin}` has no `train` folder beside {_quoted(there)}"
        raise TlrecipeError.of("TLR403", message, path=place)
    for split, names in named.items():
        if len(names) > 1:
            message = f"`{origin}` has more than one {split} folder: {_quoted(names)}"
            raise TlrecipeError.of("TLR403", message, path=place)
    return {split: named[split][0] for split in ("train", "val", "test") if split in named}


def _looks_like_image(name: str) -> bool:
    return _ending(name) in _IMAGE_ENDINGS


def _known_name(unknown: str, known: Iterable[str]) -> str | None:
    for name in known:
        if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", unknown):
            return f"a class of `train` looks the same, but differs in Unicode: {unknown!a} and {name!a}"
    return did_you_mean(unknown, list(known))


def _quoted(names: Iterable[str], limit: int = 10) -> str:
    listed = [f"`{name}`" for name in names]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
