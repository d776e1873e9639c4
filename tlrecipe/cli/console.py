"""Printing: results to stdout, everything else to stderr, colour where a terminal wants it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from typing import TextIO

from tlrecipe.cli.render import Segment, printable


def out(text: str = "") -> None:
    """A line of the result, as it is."""
    sys.stdout.write(text + "\n")


def data(text: str) -> None:
    """A line of a result that programs read, as it is; on a terminal, with what could act on it escaped."""
    out(printable(text) if sys.stdout.isatty() else text)


def note(text: str) -> None:
    """Lines for the person who watches. What could act on a terminal is shown as an escape."""
    sys.stderr.write("\n".join(printable(line) for line in text.split("\n")) + "\n")


def styled(segments: Iterable[Segment], stream: TextIO) -> None:
    """Segments with their colours, or their text alone."""
    if not wants_colour(stream):
        stream.write("".join(text for text, _ in segments))
        return
    from rich.console import Console
    from rich.text import Text

    # Width and wrapping are the renderer's; rich only turns styles into codes.
    console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(*segments), end="")


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour: ``NO_COLOR`` and ``FORCE_COLOR`` decide, else whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def width(stream: TextIO) -> int | None:
    """Columns of the terminal, or None where it is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None
