import errno
import os

import pytest

from tlrecipe.data import reading
from tlrecipe.data.reading import read_bytes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture
def failing(monkeypatch):
    """Lets the next ``times`` openings fail with an error number; returns the waits that were made."""
    waits = []
    monkeypatch.setattr(reading.time, "sleep", waits.append)

    def failing(number, times):
        opened = os.open
        left = [times]

        def fail(*args):
            if left[0]:
                left[0] -= 1
                raise OSError(number, os.strerror(number))
            return opened(*args)

        monkeypatch.setattr(reading.os, "open", fail)
        return waits

    return failing


def test_ranges(file):
    assert read_bytes(file) == b"0123456789"
    assert read_bytes(file, 3) == b"3456789"
    assert read_bytes(file, 3, 4) == b"3456"
    assert read_bytes(file, 3, 0) == b""
    with pytest.raises(OSError, match="too early"):
        read_bytes(file, 8, 3)


def test_d18_a_disk_that_recovers_is_waited_for(file, failing):
    waits = failing(errno.EIO, 3)
    assert read_bytes(file) == b"0123456789"
    assert waits == [0.1, 0.4, 1.6]


def test_d18_a_disk_that_does_not_recover_is_an_error(file, failing):
    failing(errno.EIO, 4)
    with pytest.raises(OSError, match="Input/output error"):
        read_bytes(file)


def test_lasting_errors_are_not_repeated(file, failing):
    waits = failing(errno.EACCES, 1)
    with pytest.raises(PermissionError):
        read_bytes(file)
    assert waits == []


def test_i14_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(tmp_path / "pipe")


def test_a_device_is_no_image():
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes("/dev/zero")


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, (1 << 30) + 1)
    with pytest.raises(OSError, match="larger than 1024 MiB"):
        read_bytes(path)
