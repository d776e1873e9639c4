"""Images inside a zip file, read in place: nothing is unpacked, and threads read side by side."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from tlrecipe.data.folders import SPLIT_FOLDERS, is_text, passed_over
from tlrecipe.data.listing import Tree
from tlrecipe.data.reading import MAX_FILE_BYTES, read_bytes, reason_of
from tlrecipe.language import diagnostics
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive:
    """Where the members of a zip file lie, by row of its tree; 40 bytes each.

    ``zipfile`` keeps an object of several hundred bytes per member and one file position for all
    readers; here each read opens the file for itself.
    """

    def __init__(self, path: Path, members: Sequence[zipfile.ZipInfo]):
        self._path = path
        self._members = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in members],
            dtype=np.int64,
        ).reshape(-1, 5)

    def stamp(self, row: int) -> int:
        """A number that changes with a member: its length and checksum as the archive lists them."""
        _, _, length, checksum, _ = self._members[row].tolist()
        return int(length << 32 | checksum)

    def read(self, row: int) -> bytes:
        """The unpacked bytes of a member. Raises ``OSError`` if they are not what the archive lists."""
        offset, packed, length, checksum, method = self._members[row].tolist()
        magic, name, extra = _LOCAL_HEADER.unpack(read_bytes(self._path, offset, _LOCAL_HEADER.size))
        if magic != b"PK\3\4":
            raise OSError("the archive is damaged or has changed")
        data = read_bytes(self._path, offset + _LOCAL_HEADER.size + name + extra, packed)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, length + 1)
            except zlib.error as error:
                raise OSError(f"damaged in the archive: {error}") from error
        if len(data) != length or zlib.crc32(data) != checksum:
            raise OSError("damaged in the archive: length or checksum differs")
        return data


def scan_zip(path: Path, place: diagnostics.Path) -> tuple[Tree, Archive, Counter[str]]:
    """The files in a zip, without a single folder around all; and how many were passed over, by reason.

    Raises ``TlrecipeError`` (TLR401) for what is no zip file, and for members that are encrypted, packed
    by an unusual method, too large, named twice or named out of the archive.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        message = f"`{path}` cannot be read as a zip file: {reason_of(error)}"
        raise TlrecipeError.of("TLR401", message, path=place) from error

    ignored: Counter[str] = Counter()
    problems: list[str] = []
    files: dict[str, dict[str, zipfile.ZipInfo]] = {"": {}}
    for info in infos:
        member = PurePosixPath(info.filename)
        reason = next(filter(None, map(passed_over, member.parts)), None)
        if problem := _unsafe_name(info.filename):
            problems.append(f"`{info.filename}` {problem}")
        elif reason:
            ignored[reason] += not info.is_dir()
        elif info.is_dir():
            _add_folder(files, member)
        elif is_text(member.name):
            ignored["text or data"] += 1
        elif problem := _unreadable(info):
            problems.append(f"`{info.filename}` {problem}")
        elif files[_add_folder(files, member.parent)].setdefault(member.name, info) is not info:
            problems.append(f"`{info.filename}` is there twice")
    # Honest members lie side by side. Those of a decompression bomb share their bytes.
    if sum(info.compress_size for info in infos) > size:
        problems.append("its members overlap")
    if problems:
        raise TlrecipeError(
            capped([Diagnostic("TLR401", f"`{path}`: {problem}", place) for problem in problems])
        )

    tree = Tree.of({folder: list(members) for folder, members in files.items()})
    members = [files[folder][tree.bases[row]] for folder in tree.folders for row in tree.rows(folder)]
    return _unwrapped(tree), Archive(path, members), ignored


def _unsafe_name(name: str) -> str | None:
    if not name:
        return "is a member without a name"
    if "\\" in name:
        return "has a backslash in its name"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "is named out of the archive"
    return None


def _unreadable(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in _READABLE:
        return "is packed by a method other than deflate"
    if info.file_size > MAX_FILE_BYTES:
        return f"unpacks to more than {MAX_FILE_BYTES >> 20} MiB"
    return None


def _add_folder(files: dict[str, dict[str, zipfile.ZipInfo]], folder: PurePosixPath) -> str:
    """Enters a folder and those around it; returns its key, which for the root is empty."""
    for around in (folder, *folder.parents):
        files.setdefault("" if around == PurePosixPath() else str(around), {})
    return "" if folder == PurePosixPath() else str(folder)


def _unwrapped(tree: Tree) -> Tree:
    """The tree without the one folder that archives often put around all others."""
    tops = tree.subfolders("")
    if len(tops) == 1 and not tree.rows("") and tops[0].casefold() not in SPLIT_FOLDERS:
        return tree.below(tops[0]) if tree.subfolders(tops[0]) else tree
    return tree
