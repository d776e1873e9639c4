"""Where to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``. Raises a usage error where there is no such device."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise click.UsageError("--device cuda: this machine, or this build of PyTorch, has no CUDA device")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
