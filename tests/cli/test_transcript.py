"""An author's first quarter of an hour: from a folder of images to the label of one.

`TLRECIPE_UPDATE_SNAPSHOTS=1 pytest tests/cli/test_transcript.py` writes transcript.txt anew. Numbers that
differ from machine to machine stand as `N`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from project import invoke, write_images

TRANSCRIPT = Path(__file__).with_name("transcript.txt")

SESSION = """\
tlrecipe new photos
sed -i 's/@backbone/@backbon/; s/epochs = .*/epoch = 2/' photos.toml
tlrecipe validate photos.toml
sed -i 's/epoch = 2/epochs = 2/' photos.toml
tlrecipe validate photos.toml
sed -i 's/@backbon/@backbone/' photos.toml
tlrecipe validate photos.toml
tlrecipe explain photos.toml
tlrecipe run photos.toml --run-dir first --device cpu
ls first/model first/report.html
tlrecipe predict first photos/test/red/0.png
"""

_VARYING = re.compile(r"\d+\.\d+(e[+-]\d+)?|(?<=in epoch )\d+|\d+(:\d\d)+(?= left)")
_REASON = re.compile(r"(frozen part: ).*")
# How often progress is told depends on the clock.
_PROGRESS = re.compile(r"^(?:decoding|features) .*\n", re.MULTILINE)
# What these print is the same on every machine.
_SAME = ("explain", "new", "validate")


def said(command: str) -> str:
    program, *arguments = shlex.split(command)
    if program != "tlrecipe":
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        return done.stdout
    result = invoke(*arguments)
    # On a terminal the progress comes before the result.
    printed = result.stderr + result.stdout
    if arguments[0] in _SAME:
        return printed
    return _VARYING.sub("N", _REASON.sub(r"\1…", _PROGRESS.sub("", printed)))


def test_the_first_quarter_of_an_hour(here: Path) -> None:
    write_images(here / "photos" / "train", 8)
    write_images(here / "photos" / "test", 2)
    transcript = "\n".join(f"$ {command}\n{said(command)}" for command in SESSION.splitlines())
    if os.environ.get("TLRECIPE_UPDATE_SNAPSHOTS") == "1":
        TRANSCRIPT.write_text(transcript, encoding="utf-8")
    assert transcript == TRANSCRIPT.read_text(encoding="utf-8")
