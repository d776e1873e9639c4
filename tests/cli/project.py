"""What tests of the command line work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from tlrecipe.cli.app import cli

CLASSES = ("blue", "green", "red")

RECIPE = """\
format = 1
name = "tiny"
description = "Three colours."

[data]
source = "folder"
path = "colours"
size = 64
batch_size = 8
val = 0.25

[backbone]
source = "timm"
name = "test_resnet"
weights = "none"

[[group]]
name = "head"
match = ["@head"]

[[group]]
name = "rest"
match = ["**"]
lr_scale = 0.5

[[phase]]
name = "all"
freeze = []
epochs = 2
lr = 1e-3
"""


@dataclass(frozen=True)
class Finished:
    """A run that is done, and what it printed."""

    directory: Path
    printed: Result


def invoke(*arguments: object) -> Result:
    """The command line in this process, with stdout and stderr apart."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def write_images(folder: Path, count: int, classes: Sequence[str] = CLASSES) -> None:
    """Images that are mostly of their class's colour; no two files are the same."""
    random = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 120, (20, 20, 3), dtype=np.uint8)
            pixels[..., ("red", "green", "blue").index(name)] += 100
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
