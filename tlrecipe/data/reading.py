"""Bytes from files that may be large, missing, special or on a failing disk."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused: none of them is one image."""

_TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN})
_WAITS = (0.1, 0.4, 1.6)
_SETTLED = 2_000_000_000


def read_bytes(path: str | os.PathLike[str], offset: int = 0, length: int | None = None) -> bytes:
    """``length`` bytes of a regular file from ``offset`` on; all of it without a length.

    Errors that a network file system or a tired disk may recover from are tried three times more,
    with growing waits. Raises ``OSError`` for everything that cannot be read: a file that is missing,
    not regular (a pipe would block for ever), over ``MAX_FILE_BYTES``, or shorter than asked for.
    """
    for wait in _WAITS:
        try:
            return _read_once(path, offset, length)
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
        time.sleep(wait)
    return _read_once(path, offset, length)


def _read_once(path: str | os.PathLike[str], offset: int, length: int | None) -> bytes:
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        wanted = found.st_size - offset if length is None else length
        if wanted > MAX_FILE_BYTES:
            raise OSError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        if offset:
            file.seek(offset)
        parts, missing = list[bytes](), wanted
        while missing > 0 and (part := file.read(missing)):
            parts.append(part)
            missing -= len(part)
        if length is not None and missing:
            raise OSError("ends too early")
        return b"".join(parts)


def _open_at_once(path: str, flags: int) -> int:
    # Opening a pipe for reading waits for a writer; O_NONBLOCK does not, and means nothing to files.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def file_stamp(path: str | os.PathLike[str]) -> int:
    """A number that changes when a file is written, without reading it; 0 where that cannot be said.

    Times of a file have the grain of a clock tick, so a file that was written just now could be written
    again without a sign: it gets 0 until it has been left alone for two seconds.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 (a hundred thousand of them)
    except OSError:
        return 0
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _SETTLED:
        return 0
    parts = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def reason_of(error: BaseException) -> str:
    """What went wrong, in words and without the path, which every report names itself."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
