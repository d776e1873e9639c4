"""The only way to disk for the run directory, bundles, checkpoints and the store.

A file appears under its name whole or not at all: it is written under a temporary name in the same
folder, flushed to the disk, renamed, and the folder is flushed too. After a crash at any point the name
holds the old bytes or the new ones, and temporary names (:func:`leftovers`) are never a result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path

from tlrecipe.language.diagnostics import TlrecipeError

Buffer = bytes | bytearray | memoryview

_TEMPORARY = ".tmp-"
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


class Operations:
    """The system calls that change files. Tests put another one in the place of :data:`operations` to
    fail, or to stop for good, at the k-th call."""

    def open(self, path: Path, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            # What is written is our own: never what a link that somebody left under its name leads to.
            flags |= getattr(os, "O_NOFOLLOW", 0)
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)  # noqa: PTH105 - the call that a system trace shows

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def reserve(self, descriptor: int, size: int) -> None:
        """Claim the space of a file now: a full disk met later, through a map, kills the process."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)

    def touch(self, path: Path) -> None:
        os.utime(path)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def rmtree(self, path: Path) -> None:
        shutil.rmtree(path)


operations = Operations()


def cache_dir() -> Path:
    """The cache folder: ``TLRECIPE_CACHE_DIR``, or ``tlrecipe`` where the platform keeps caches."""
    import platformdirs

    chosen = os.environ.get("TLRECIPE_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tlrecipe"))


FEATURES = "features"
"""Folder of the feature store in the cache folder."""


def read(path: Path, *, code: str, limit: int | None = None) -> bytes:
    """The bytes of a regular file.

    ``code`` is the diagnostic code of the caller's kind of file; it is raised where the file is missing,
    no regular file (a FIFO would block for ever) or longer than ``limit`` bytes.
    """
    with _regular(path, code) as file:
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise TlrecipeError.of(code, f"`{path}` is larger than {size_text(limit)}")
    return content


def sha256(path: Path, *, code: str) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces. Errors as for :func:`read`."""
    with _regular(path, code) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _regular(path: Path, code: str) -> Iterator[BufferedReader]:
    try:
        # Non-blocking, because opening a FIFO waits for its other end before it can be told from a file.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TlrecipeError.of(code, f"`{path}` is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except OSError as error:
        raise TlrecipeError.of(code, f"cannot read `{path}`: {_reason(error)}") from error


def write_atomic(
    path: Path, data: Buffer | Iterable[Buffer], *, size: int | None = None, sync: bool = True
) -> None:
    """Put ``data`` under ``path``, whole or not at all, and flushed to the disk unless ``sync`` is false.

    ``data`` may come in pieces, so that large state is never copied in memory; ``size`` is then its
    length in bytes, for the message on a full disk. On any error, an interrupt included, the temporary
    file is removed and what ``path`` held before is untouched. Raises TLR901.
    """
    chunks: Iterable[Buffer] = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    if isinstance(data, (bytes, bytearray, memoryview)):
        size = len(data)
    temporary = _temporary(path)
    try:
        with _removed_on_failure(temporary):
            descriptor = operations.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                for chunk in chunks:
                    write_all(descriptor, chunk)
                if sync:
                    # Never repeated: the kernel reports a failed write-back once and then forgets it.
                    operations.fsync(descriptor)
            finally:
                os.close(descriptor)
            operations.rename(temporary, path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        raise disk_error("write", path, error, size) from error


def append_line(path: Path, line: str, *, sync: bool = True) -> None:
    """Add one line to a file, and flush it to the disk unless ``sync`` is false. Raises TLR901.

    A line that cannot be written whole is taken back, so that the file stays a list of whole lines.
    """
    data = line.encode() + b"\n"
    try:
        descriptor = operations.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            before = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
            except OSError:
                # A device has no length to go back to.
                with contextlib.suppress(OSError):
                    operations.truncate(descriptor, before)
                raise
            if sync:
                operations.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error("write", path, error, len(data)) from error


def write_all(descriptor: int, data: Buffer) -> None:
    """Write to an open file until nothing is left: the system may take less than it is given. Raises
    ``OSError``."""
    rest = memoryview(data)
    if rest.nbytes:  # an empty view cannot be cast
        rest = rest.cast("B")
    while rest:
        rest = rest[operations.write(descriptor, rest) :]


def write_truncated(descriptor: int, data: Buffer) -> None:
    """Replace what an open file holds. Not atomic: for a file that only its holder means, such as a lock."""
    operations.truncate(descriptor, 0)
    write_all(descriptor, data)


@contextlib.contextmanager
def scratch_file(folder: Path, size: int) -> Iterator[int]:
    """A descriptor of ``size`` reserved bytes in ``folder`` (made where it is missing), to be mapped.

    The file has no name any more when the block begins, so it goes with the process, however that ends.
    Raises ``OSError``: what is lost is the caller's to say.
    """
    if not folder.exists():
        make_folder(folder)
    path = _temporary(folder / "scratch")
    descriptor = operations.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        operations.unlink(path)
        operations.reserve(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


def reserve(path: Path, size: int) -> None:
    """Make a file of ``size`` bytes, whose space is claimed, to be mapped. Raises TLR901."""
    try:
        descriptor = operations.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            operations.reserve(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error("write", path, error, size) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: yields a temporary one beside ``path``, and renames it
    when the block ends without an error. Its files are to be written by :func:`write_atomic`.

    Raises TLR601 where ``path`` is there and not an empty folder, and TLR901.
    """
    temporary = _temporary(path)
    try:
        with _removed_on_failure(temporary):
            operations.mkdir(temporary)
            yield temporary
            sync_folder(temporary)
            operations.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise TlrecipeError.of("TLR601", f"`{path}` is there already: nothing is overwritten") from error
        raise disk_error("write", path, error) from error


def make_temporary_folder(path: Path) -> Path:
    """An empty folder beside ``path`` under a temporary name, for :func:`rename_folder`. Raises TLR901."""
    temporary = _temporary(path)
    try:
        operations.mkdir(temporary)
    except OSError as error:
        raise disk_error("make", temporary, error) from error
    return temporary


def rename_folder(source: Path, target: Path) -> None:
    """Give a temporary folder its name; does nothing where ``target`` is there. Raises TLR901."""
    try:
        operations.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise disk_error("write", target, error) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each flushed to the disk. Folders that are there stay as they
    are. Raises TLR901."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                operations.mkdir(folder)
            sync_folder(folder.parent)
    except OSError as error:
        raise disk_error("make", path, error) from error


def remove(path: Path) -> None:
    """Remove a file or a whole folder; one that is not there is fine. Raises TLR901."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                operations.rmtree(path)
            else:
                operations.unlink(path)
    except OSError as error:
        raise disk_error("remove", path, error) from error


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders that a crash left in ``folder``, sorted."""
    return sorted(path for path in folder.iterdir() if path.name.startswith(".") and _TEMPORARY in path.name)


def is_being_written(leftover: Path) -> bool:
    """Whether the process that made a temporary file or folder may still be alive on this machine."""
    pid = leftover.name.rpartition(_TEMPORARY)[2].partition("-")[0]
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def touch(path: Path) -> None:
    """Set a file's time of last use to now. Raises ``OSError``."""
    operations.touch(path)


def free_bytes(path: Path) -> int | None:
    """Bytes that may still be written where ``path`` is or would be; None where that cannot be told."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(_nearest_there(path)).free
    return None


def same_disk(one: Path, other: Path) -> bool:
    """Whether two paths, which need not be there yet, share their free space."""
    try:
        return _nearest_there(one).stat().st_dev == _nearest_there(other).stat().st_dev
    except OSError:
        return False


def _nearest_there(path: Path) -> Path:
    return next((folder for folder in (path, *path.absolute().parents) if folder.exists()), path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the platform can."""
    if os.name == "nt":
        return
    descriptor = operations.open(folder, os.O_RDONLY)
    try:
        operations.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def disk_error(action: str, path: Path, error: OSError, size: int | None = None) -> TlrecipeError:
    """TLR901 for a failed operation: what was to be done, the errno by name, and, on a full disk, what
    was needed and what is free."""
    message = f"cannot {action} `{path}`: {_reason(error)}"
    help = None
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        with contextlib.suppress(OSError):
            free = size_text(shutil.disk_usage(path.parent).free)
            message += f": needs {size_text(size)}, {free} free" if size is not None else f": {free} free"
        help = "free some space, or choose a place on another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        help = "choose a folder that may be written"
    return TlrecipeError.of("TLR901", message, help=help)


def size_text(count: int) -> str:
    """Bytes for people, in powers of ten: ``45 MB``."""
    if count < 1000:
        return f"{count} B"
    value = count / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}")


@contextlib.contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, TlrecipeError):
            remove(temporary)
        raise


def _reason(error: OSError) -> str:
    name = errno.errorcode.get(error.errno or 0, "")
    text = error.strerror or str(error)
    return f"{name} ({text})" if name else text
