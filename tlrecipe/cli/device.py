"""Where to compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch


def pick_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``. Raises a usage error where there is no such device."""
    from tlrecipe.workflow import device

    try:
        return device.pick_device(wanted)
    except ValueError as error:
        raise click.UsageError(f"--{error}") from error
