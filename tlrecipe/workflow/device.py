"""Where to compute."""

from __future__ import annotations

import torch

DEVICES = ("auto", "cpu", "cuda")


def pick_device(wanted: torch.device | str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``. Raises ValueError where there is no such device."""
    if isinstance(wanted, torch.device):
        return wanted
    if wanted not in DEVICES:
        raise ValueError(f"device {wanted!r} is none of {', '.join(DEVICES)}")
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ValueError("device cuda: this machine, or this build of PyTorch, has no CUDA device")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
