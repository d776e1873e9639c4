"""The run directory: everything that one run leaves behind, in one folder that is never overwritten."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError

if sys.platform != "win32":
    import fcntl

FOLDERS = ("checkpoints",)
"""Subfolders that every run directory has from the start; ``model`` appears when it is complete."""


class RunDirectory:
    """An open run directory, locked against a second run. Use as a context manager.

    Attributes:
        path: the folder.
        checkpoints: where checkpoints go.
        model: where the bundle appears at the end.
    """

    def __init__(self, path: Path):
        """Lock the existing folder ``path``.

        Raises TLR601 where another process works in it, and where it holds a link or a pipe: a run
        directory may come from a stranger, and what is written into it must not land elsewhere.
        """
        refuse_special(path)
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self._lock = _Lock(path / "lock")
        self._log = structlog.wrap_logger(
            _LogFile(path / "log.jsonl"),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            wrapper_class=structlog.BoundLogger,
        )

    @classmethod
    def create(cls, recipe: str, *, runs: Path = Path("runs"), path: Path | None = None) -> RunDirectory:
        """A new run directory ``runs/<recipe>/<time>-<id>``, or exactly ``path``.

        Raises TLR601 where ``path`` is there and holds anything (an existing run is never touched), and
        TLR901.
        """
        if path is None:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            path = runs / recipe / f"{stamp}-{secrets.token_hex(2)}"
        refuse_used(path)
        files.make_folder(path)
        run = cls(path)
        try:
            for name in FOLDERS:
                files.make_folder(path / name)
        except BaseException:
            run.close()
            raise
        return run

    def write_text(self, name: str, text: str) -> None:
        """Write ``text`` to the file ``name``, atomically. Raises TLR901."""
        # Bytes, so that a recipe with CRLF line ends stays as it was written.
        files.write_atomic(self.path / name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as JSON to the file ``name``, atomically. Raises TLR901."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``metrics.jsonl`` and flush it to the disk. Raises TLR901."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        files.append_line(self.path / "metrics.jsonl", line)

    def cut_metrics(self, rows: int) -> None:
        """Keep the first ``rows`` rows of ``metrics.jsonl``: those that a checkpoint counts. What was
        written after it is written again, and kept aside in ``metrics.cut.jsonl``.

        Raises TLR601 where rows are missing, and TLR901.
        """
        path = self.path / "metrics.jsonl"
        lines = files.read(path, code="TLR601").splitlines(keepends=True) if path.exists() else []
        if len(lines) < rows:
            raise TlrecipeError.of(
                "TLR601", f"`{path}` has {len(lines)} rows, but the checkpoint was saved after {rows}"
            )
        if len(lines) > rows:
            aside = self.path / "metrics.cut.jsonl"
            before = [files.read(aside, code="TLR601")] if aside.exists() else []
            files.write_atomic(aside, b"".join([*before, *lines[rows:]]))
            files.write_atomic(path, b"".join(lines[:rows]))

    def log(self, event: str, **fields: Any) -> None:
        """Add an event to ``log.jsonl``. Raises TLR901."""
        self._log.info(event, **fields)

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_special(path: Path) -> None:
    """Raise TLR601 where the folder ``path`` holds a link or a pipe: through it, what a stranger sent would
    read or write elsewhere."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                    kind = "a link" if entry.is_symlink() else "a special file"
                    raise TlrecipeError.of(
                        "TLR601",
                        f"`{entry.path}` is {kind}, and a run directory holds files and folders only",
                        help="put what it stands for in its place, or remove it",
                    )
    except OSError as error:
        raise files.disk_error("read", path, error) from error


def refuse_used(path: Path) -> None:
    """Raise TLR601 where ``path`` holds anything, with the process that works in it, if one does."""
    try:
        used = any(path.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise TlrecipeError.of("TLR601", f"the run directory `{path}` is a file") from error
    except OSError as error:
        raise files.disk_error("read", path, error) from error
    if used:
        if _is_held(path / "lock"):
            raise _in_use(path / "lock")
        raise TlrecipeError.of(
            "TLR601",
            f"the run directory `{path}` is there already and not empty: nothing is overwritten",
            help="name another folder, or leave out --run-dir to get a new one",
        )


class _LogFile:
    """What structlog writes its finished lines to."""

    def __init__(self, path: Path):
        self._path = path

    def msg(self, line: str) -> None:
        files.append_line(self._path, line, sync=False)

    info = warning = error = msg


# --------------------------------------------------------------------------- the lock


class _Lock:
    """A lock on a file that the kernel gives back when its holder dies, however it dies: a lock file that
    a dead process left is taken over. Where the system has no ``flock``, nothing is locked.

    The process id, the host and its boot id in the file are there to be named to others; the file goes
    when the run ends.
    """

    def __init__(self, path: Path):
        self._path = path
        self._descriptor: int | None = _locked_file(path)
        content = json.dumps({"pid": os.getpid(), "host": platform.node(), "boot": _boot_id()}) + "\n"
        try:
            files.write_truncated(self._descriptor, content.encode())
        except OSError as error:
            self.release()
            raise files.disk_error("write", path, error) from error

    def release(self) -> None:
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            files.remove(self._path)
        finally:
            os.close(descriptor)


def _locked_file(path: Path) -> int:
    while True:
        try:
            descriptor = files.operations.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise files.disk_error("write", path, error) from error
        if not _flock(descriptor):
            os.close(descriptor)
            raise _in_use(path)
        # Between opening and locking, the holder before may have removed the file.
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some network file systems have no locks.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not _flock(file.fileno())
    except OSError:
        return False


def _in_use(path: Path) -> TlrecipeError:
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {int(holder['pid'])} on {_host_name(holder['host'])}"
        if holder["boot"] != _boot_id():
            who += ", another machine,"
    except (OSError, ValueError, TypeError, KeyError):
        who = "another process"
    return TlrecipeError.of("TLR601", f"{who} is working in the run directory `{path.parent}`")


def _host_name(text: Any) -> str:
    """A name from a file that anybody may have written, fit for a sentence."""
    return re.sub(r"[^A-Za-z0-9._-]", "?", str(text))[:64]


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
