"""Where to compute."""

from __future__ import annotations

import torch

from tlrecipe.models.forked import refuse_dead_threads

DEVICES = ("auto", "cpu", "cuda")


def pick_device(wanted: torch.device | str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``.

    Raises ValueError where there is no such device, and RuntimeError where this process was forked too late
    to compute at all.
    """
    refuse_dead_threads()
    if isinstance(wanted, torch.device):
        return wanted
    if wanted not in DEVICES:
        raise ValueError(f"device {wanted!r} is none of {', '.join(DEVICES)}")
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ValueError("device cuda: this machine, or this build of PyTorch, has no CUDA device")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
