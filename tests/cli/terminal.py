"""Terminals to look at: what a person sees of a command, with all that moves a cursor carried out."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pyte
import pytest

from tlrecipe.cli.app import cli


class Screen(io.TextIOBase):
    """A terminal of some columns, to which a command of this process writes."""

    encoding = "utf-8"

    def __init__(self, columns: int = 80):
        self.screen = pyte.HistoryScreen(columns, 24, history=10_000)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)
        self.written = ""

    def write(self, text: str) -> int:
        self.written += text
        self.stream.feed(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """All that can be seen, by scrolling back too, without empty lines at the end."""
        return seen(self.screen)


def seen(screen: pyte.HistoryScreen) -> list[str]:
    above = ["".join(line[column].data for column in range(screen.columns)) for line in screen.history.top]
    lines = [line.rstrip() for line in [*above, *screen.display]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def show(monkeypatch: pytest.MonkeyPatch, *arguments: object, columns: int = 80) -> Screen:
    """Run a command of this process with a terminal as its stdout and stderr."""
    screen = Screen(columns)
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm-256color")
        patch.setattr(sys, "stdout", screen)
        patch.setattr(sys, "stderr", screen)
        cli.main([str(argument) for argument in arguments], prog_name="tlrecipe", standalone_mode=False)
    return screen


def in_terminal(
    command: Sequence[str], cwd: Path, columns: int = 80, **environment: str
) -> tuple[int, pyte.HistoryScreen, str]:
    """Run a command in a real pseudo-terminal; gives its exit code, the screen, and what it wrote."""
    screen = pyte.HistoryScreen(columns, 24, history=10_000)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": path} | environment
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment, start_new_session=True
    )
    os.close(slave)
    written = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
        stream.feed(part)
    os.close(master)
    return process.wait(), screen, written.decode(errors="replace")
