"""Writing that is whole or not at all, whatever fails and wherever a process dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tlrecipe import files
from tlrecipe.language.diagnostics import TlrecipeError

OLD, NEW = b"old content", b"new content, which is longer"


class Dead(BaseException):
    """The process is gone: nothing after this happens."""


class Failing(files.Operations):
    """Does ``fail`` at the ``k``-th operation; with Dead also at every one after it."""

    def __init__(self, k: int, fail: Callable[[], BaseException]):
        self.left = k
        self.fail = fail
        self.calls: list[str] = []

    def _step(self, name: str) -> None:
        self.calls.append(name)
        self.left -= 1
        error = self.fail()
        if self.left == 0 or (self.left < 0 and isinstance(error, Dead)):
            raise error

    def open(self, path: Path, flags: int) -> int:
        self._step("open")
        return super().open(path, flags)

    def write(self, descriptor: int, data: memoryview) -> int:
        # Half of it reaches the disk before the failure.
        if self.left == 1:
            super().write(descriptor, data[: len(data) // 2])
        self._step("write")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._step("fsync")
        super().fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename")
        super().rename(source, target)

    def mkdir(self, path: Path) -> None:
        self._step("mkdir")
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def rmtree(self, path: Path) -> None:
        self._step("rmtree")
        super().rmtree(path)


def replace_file(folder: Path) -> None:
    files.write_atomic(folder / "state", iter([NEW[:5], NEW[5:]]), size=len(NEW))


def write_folder(folder: Path) -> None:
    with files.new_folder(folder / "model") as inside:
        files.write_atomic(inside / "a", OLD)
        files.write_atomic(inside / "b", NEW)


def operations_of(work: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    counting = Failing(0, lambda: OSError())
    monkeypatch.setattr(files, "operations", counting)
    work(folder)
    return counting.calls


def visible(folder: Path) -> dict[str, bytes]:
    hidden = set(files.leftovers(folder))
    return {p.name: p.read_bytes() for p in folder.iterdir() if p not in hidden and p.is_file()}


def test_a_file_is_flushed_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = operations_of(replace_file, tmp_path, monkeypatch)
    assert calls == ["open", "write", "write", "fsync", "rename", "open", "fsync"]


@pytest.mark.parametrize("k", range(1, 8))
def test_a_crash_at_any_operation_leaves_the_old_file_or_the_new(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_bytes(OLD)
    monkeypatch.setattr(files, "operations", Failing(k, Dead))
    with pytest.raises(Dead):
        replace_file(tmp_path)
    assert visible(tmp_path) == {"state": OLD if k <= 5 else NEW}
    assert len(files.leftovers(tmp_path)) == (1 if 2 <= k <= 5 else 0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EBUSY])
@pytest.mark.parametrize("k", range(1, 8))
def test_an_error_at_any_operation_is_reported_and_leaves_no_temporary_file(
    k: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_bytes(OLD)
    monkeypatch.setattr(files, "operations", Failing(k, lambda: OSError(code, os.strerror(code))))
    with pytest.raises(TlrecipeError) as caught:
        replace_file(tmp_path)
    assert caught.value.exit_code == 9
    assert errno.errorcode[code] in str(caught.value)
    assert visible(tmp_path) == {"state": OLD if k <= 5 else NEW}
    assert files.leftovers(tmp_path) == []


def test_a_failed_flush_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(4, lambda: OSError(errno.EIO, "broken"))
    monkeypatch.setattr(files, "operations", failing)
    with pytest.raises(TlrecipeError):
        replace_file(tmp_path)
    assert failing.calls.count("fsync") == 1


def test_a_full_disk_says_what_was_needed_and_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "operations", Failing(2, lambda: OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(TlrecipeError, match=r"ENOSPC .*: needs 45 MB, .* free") as caught:
        files.write_atomic(tmp_path / "x", iter([b"part"]), size=45_000_000)
    assert caught.value.diagnostics[0].help


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(files.Operations):
        def write(self, descriptor: int, data: memoryview) -> int:
            return super().write(descriptor, data[:3])

    monkeypatch.setattr(files, "operations", Short())
    files.write_atomic(tmp_path / "x", NEW)
    files.append_line(tmp_path / "x", "and a line")
    assert (tmp_path / "x").read_bytes() == NEW + b"and a line\n"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_between_pieces_leaves_nothing(interrupt: type[BaseException], tmp_path: Path) -> None:
    def pieces() -> object:
        yield b"first"
        raise interrupt

    with pytest.raises(interrupt):
        files.write_atomic(tmp_path / "x", pieces())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_crash_anywhere_in_a_new_folder_shows_all_of_it_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "count").mkdir()
    total = len(operations_of(write_folder, tmp_path / "count", monkeypatch))
    assert total > 10
    for k in range(1, total + 1):
        folder = tmp_path / str(k)
        folder.mkdir()
        monkeypatch.setattr(files, "operations", Failing(k, Dead))
        with pytest.raises(Dead):
            write_folder(folder)
        if (folder / "model").exists():
            assert visible(folder / "model") == {"a": OLD, "b": NEW}


def test_a_failed_new_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "model") as inside:
        files.write_atomic(inside / "a", OLD)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_never_replaces_one(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(TlrecipeError) as caught:
        write_folder(tmp_path)
    assert caught.value.diagnostics[0].code == "TLR601"
    assert visible(tmp_path / "model") == {"a": OLD, "b": NEW}
    assert files.leftovers(tmp_path) == []


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_line(path, "first")
    # Operation 1 opens; of operation 2, the write, half reaches the file.
    monkeypatch.setattr(files, "operations", Failing(2, lambda: OSError(errno.ENOSPC, "full")))
    with pytest.raises(TlrecipeError) as caught:
        files.append_line(path, "second")
    assert caught.value.exit_code == 9
    assert path.read_bytes() == b"first\n"


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    files.remove(tmp_path / "nothing")
    write_folder(tmp_path)
    files.remove(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_removing_a_link_to_a_folder_leaves_the_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    files.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_reading_refuses_a_fifo_at_once_and_what_is_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name, reason in [("fifo", "regular"), ("large", "larger"), ("none", "ENOENT"), (".", "regular")]:
        with pytest.raises(TlrecipeError, match=reason) as caught:
            files.read(tmp_path / name, code="TLR504", limit=10)
        assert caught.value.exit_code == 5
    assert files.read(tmp_path / "large", code="TLR504", limit=11) == b"x" * 11


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("TLRECIPE_CACHE_DIR", raising=False)
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert files.cache_dir() == Path("/somewhere/tlrecipe")
    monkeypatch.setenv("TLRECIPE_CACHE_DIR", "/elsewhere")
    assert files.cache_dir() == Path("/elsewhere")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (45_000_000, "45 MB"), (999_600, "1.0 MB")],
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert files.size_text(count) == text
